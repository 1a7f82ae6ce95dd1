/** The search box: names that contain every word, best first. */
import { compare } from "./colours.ts";
import { type Cleanup, el } from "./model.ts";
import type { Item, Tree } from "./scopes.ts";

const SHOWN = 12;

/** Items whose id contains every word of `query`, short names first. Pure. */
export function search(tree: Tree, query: string): Item[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return [];
  const hits: Item[] = [];
  for (const item of tree.items.values()) {
    if (item === tree.root) continue;
    const text = item.kind === "op" ? `${item.id} ${tree.nodes[item.node].op}`.toLowerCase() : item.id.toLowerCase();
    if (words.every((word) => text.includes(word))) hits.push(item);
  }
  return hits.sort((a, b) => a.id.length - b.id.length || compare(a.id, b.id));
}

export interface SearchBox {
  input: HTMLInputElement;
  element: HTMLElement;
}

/** `found` hears every change, `pick` the chosen item, `leave` an Escape in an empty box. */
export function searchBox(
  tree: () => Tree,
  found: (items: Item[]) => void,
  pick: (item: Item) => void,
  leave: () => void,
  cleanup: Cleanup,
): SearchBox {
  const input = el("input", { class: "nbflow-input", type: "search", placeholder: "Search ops  /", "aria-label": "Search ops" });
  const list = el("ul", { class: "nbflow-hits", role: "listbox", "aria-label": "Search results", hidden: true });
  const element = el("div", { class: "nbflow-search" }, input, list);
  let hits: Item[] = [];
  let active = 0;
  const draw = (): void => {
    list.hidden = input.value.trim() === "";
    list.replaceChildren(
      ...hits.slice(0, SHOWN).map((item, i) =>
        el("li", { role: "option", "aria-selected": i === active, "data-at": i, text: item.id.replace(/\/$/, "") }),
      ),
    );
    if (hits.length > SHOWN) list.append(el("li", { class: "nbflow-more", text: `${hits.length - SHOWN} more` }));
    if (hits.length === 0) list.append(el("li", { class: "nbflow-more", text: "nothing found" }));
  };
  const clear = (): void => {
    input.value = "";
    hits = [];
    list.hidden = true;
    found([]);
  };
  const choose = (item: Item | undefined): void => {
    if (item === undefined) return;
    clear();
    pick(item);
  };
  cleanup.listen(input, "input", () => {
    hits = search(tree(), input.value);
    active = 0;
    draw();
    found(hits);
  });
  cleanup.listen(input, "keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") choose(hits[active]);
    else if (event.key === "Escape") {
      clear();
      leave();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      const last = Math.min(hits.length, SHOWN) - 1;
      active = Math.max(0, Math.min(last, active + (event.key === "ArrowDown" ? 1 : -1)));
      draw();
    }
  });
  // pointerdown, not click: the input's blur would close the list first.
  cleanup.listen(list, "pointerdown", (event) => {
    const at = (event.target as HTMLElement).closest<HTMLElement>("[data-at]")?.dataset.at;
    event.preventDefault();
    if (at !== undefined) choose(hits[Number(at)]);
  });
  cleanup.listen(input, "blur", () => {
    list.hidden = true;
  });
  return { input, element };
}
