/** The panel that tells everything about one op or scope. */
import { type Colouring, compare } from "./colours.ts";
import { el } from "./model.ts";
import { type GraphNode, producer, specText } from "./schema.ts";
import type { Item, Tree } from "./scopes.ts";

/** Links beyond this many are counted, not listed. */
const LINKS = 40;
const KINDS = 10;

export interface DetailsActions {
  select(id: string): void;
  toggle(item: Item): void;
  close(): void;
}

export function details(tree: Tree, item: Item, colouring: Colouring, open: boolean, actions: DetailsActions): HTMLElement[] {
  const close = el("button", { class: "nbflow-icon", type: "button", "aria-label": "Close details", text: "×" });
  close.addEventListener("click", actions.close);
  const title = el("h3", { text: item.kind === "op" ? tree.nodes[item.node].name : item.id.replace(/\/$/, "") });
  const head = el("header", {}, title, close);
  if (item.kind === "op") return [head, ...opDetails(tree, item, actions)];
  return [head, ...scopeDetails(tree, item, colouring, open, actions)];
}

function opDetails(tree: Tree, item: Item, actions: DetailsActions): HTMLElement[] {
  const node = tree.nodes[item.node];
  const rows: [string, Node | string][] = [["op", el("code", { text: node.op })]];
  node.outputs.forEach((spec, i) => {
    rows.push([node.outputs.length === 1 ? "output" : `output ${i}`, el("code", { text: specText(spec) })]);
  });
  rows.push(["device", node.device ?? "not placed yet"]);
  if (node.why) rows.push(["why", node.why]);
  rows.push(["asked", node.asked || "nothing"]);
  if (node.cell) rows.push(["made by", node.line > 0 ? `${node.cell.label}, line ${node.line}` : node.cell.label]);
  if (node.stale) rows.push(["stale", node.stale]);
  if (node.flops > 0) rows.push(["work", `${amount(node.flops)} flop, ${amount(node.nbytes)}B`]);
  if (node.predicted_s != null) rows.push(["predicted", duration(node.predicted_s)]);
  if (node.measured_s != null) rows.push(["measured", duration(node.measured_s)]);
  for (const [name, value] of Object.entries(node.attrs)) rows.push([name, el("code", { text: value })]);
  return [table(rows), ...links("Inputs", node.inputs, tree, actions), ...links("Used by", consumers(tree, item), tree, actions)];
}

function scopeDetails(tree: Tree, item: Item, colouring: Colouring, open: boolean, actions: DetailsActions): HTMLElement[] {
  const toggle = el("button", { class: "nbflow-button", type: "button", text: open ? "Close this scope" : "Open this scope" });
  toggle.addEventListener("click", () => actions.toggle(item));
  const kinds = new Map<string, number>();
  const walk = (at: Item): void => {
    if (at.kind === "op") kinds.set(tree.nodes[at.node].op, (kinds.get(tree.nodes[at.node].op) ?? 0) + 1);
    at.children.forEach(walk);
  };
  walk(item);
  const rows: [string, Node | string][] = [["ops", String(item.ops)]];
  if (item.stale > 0) rows.push(["stale", `${item.stale} of them`]);
  for (const { category, ops } of colouring.of(item).slice(0, 12)) rows.push([String(ops), category.name]);
  const parts: HTMLElement[] = [table(rows), toggle];
  if (colouring.mode !== "op") {
    const sorted = [...kinds].sort((a, b) => b[1] - a[1] || compare(a[0], b[0]));
    const words = sorted.slice(0, KINDS).map(([op, ops]) => (ops === 1 ? op : `${op} ×${ops}`));
    if (sorted.length > KINDS) words.push(`${sorted.length - KINDS} more kinds`);
    parts.splice(1, 0, el("p", { text: words.join(", ") }));
  }
  return parts;
}

function table(rows: [string, Node | string][]): HTMLTableElement {
  const body = el("tbody");
  for (const [name, value] of rows) body.append(el("tr", {}, el("th", { scope: "row", text: name }), el("td", {}, value)));
  return el("table", {}, body);
}

function consumers(tree: Tree, item: Item): string[] {
  return tree.consumers[item.node].map((i) => tree.nodes[i].name);
}

function links(title: string, names: string[], tree: Tree, actions: DetailsActions): HTMLElement[] {
  if (names.length === 0) return [];
  const list = el("ul");
  for (const name of names.slice(0, LINKS)) {
    const node: GraphNode | undefined = tree.nodes[tree.find(name)];
    const id = producer(name);
    const link = el("button", { class: "nbflow-link", type: "button", text: id, disabled: node === undefined });
    link.addEventListener("click", () => actions.select(id));
    const entry = el("li", {}, link);
    const index = /:(\d+)$/.exec(name);
    const spec = node?.outputs[index ? Number(index[1]) : 0];
    if (name.startsWith("^")) entry.append(el("small", { text: "control" }));
    else if (spec !== undefined && title === "Inputs") entry.append(el("small", { text: specText(spec) }));
    list.append(entry);
  }
  if (names.length > LINKS) list.append(el("li", { text: `and ${names.length - LINKS} more` }));
  return [el("h4", { text: `${title} (${names.length})` }), list];
}

/** 0.00213 → `2.13 ms`. */
export function duration(seconds: number): string {
  const [scale, unit] = seconds >= 1 ? [1, "s"] : seconds >= 1e-3 ? [1e3, "ms"] : [1e6, "µs"];
  return `${Number((seconds * scale).toPrecision(3))} ${unit}`;
}

/** 1234567 → `1.2 M`. */
export function amount(value: number): string {
  const units = ["", "k", "M", "G", "T", "P"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}
