/** The tree that screen readers and keyboards use: a hidden DOM copy of what is drawn. */
import { type Colouring } from "./colours.ts";
import type { Camera } from "./camera.ts";
import type { Box } from "./layout.ts";
import { el } from "./model.ts";
import { noteOf } from "./paint.ts";
import type { Item, Tree } from "./scopes.ts";

/** More entries than this slow browsers down and help nobody; search finds the rest. */
const LIMIT = 1000;
let serial = 0;

export class Mirror {
  /** Drawn items in reading order. */
  order: Item[] = [];
  private readonly prefix = `nbflow-tree-${serial++}-`;
  private readonly ids = new Map<Item, string>();

  /** Carries the entries along with the camera, so that magnifiers and highlighters find what is spoken. */
  private readonly plane = el("div", { role: "presentation" });

  constructor(private readonly root: HTMLElement) {
    root.append(this.plane);
  }

  update(tree: Tree, expanded: ReadonlySet<string>, colouring: Colouring): void {
    this.order = [];
    this.ids.clear();
    const entries: HTMLElement[] = [];
    const walk = (parent: Item, level: number): void => {
      const { main, aux } = tree.level(parent);
      const items = [...main, ...aux];
      items.forEach((item, i) => {
        this.order.push(item);
        const open = expanded.has(item.id);
        if (entries.length < LIMIT) {
          const id = `${this.prefix}${entries.length}`;
          this.ids.set(item, id);
          entries.push(entry(item, id, level, i + 1, items.length, open, noteOf(item, tree, colouring)));
        }
        if (open) walk(item, level + 1);
      });
    };
    walk(tree.root, 1);
    this.plane.replaceChildren(...entries);
  }

  /** Puts each entry where its box is drawn. Call after `update`. */
  place(boxes: Box[]): void {
    for (const { item, x, y, w, h } of boxes) {
      const id = this.ids.get(item);
      const entry = id === undefined ? null : this.plane.querySelector<HTMLElement>(`#${id}`);
      if (entry !== null) entry.style.cssText = `left: ${x}px; top: ${y}px; width: ${w}px; height: ${h}px`;
    }
  }

  follow({ x, y, scale }: Camera): void {
    this.plane.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
  }

  select(item: Item | null): void {
    for (const old of this.root.querySelectorAll("[aria-selected=true]")) old.setAttribute("aria-selected", "false");
    const id = item === null ? undefined : this.ids.get(item);
    if (id === undefined) {
      this.root.removeAttribute("aria-activedescendant");
      return;
    }
    this.root.setAttribute("aria-activedescendant", id);
    this.root.querySelector(`#${id}`)?.setAttribute("aria-selected", "true");
  }
}

function entry(item: Item, id: string, level: number, at: number, of: number, open: boolean, note: string): HTMLElement {
  const node = el("div", {
    id,
    role: "treeitem",
    "aria-level": level,
    "aria-posinset": at,
    "aria-setsize": of,
    "aria-selected": "false",
    "data-id": item.id,
    text: `${item.label}, ${item.kind}, ${note}`,
  });
  if (item.kind !== "op") node.setAttribute("aria-expanded", String(open));
  return node;
}
