/** What a box's colour means: shares of categories below an item, and the legend. Pure. */
import { NEUTRAL, type Swatch, swatch } from "./palette.ts";
import { type GraphNode, shortDevice } from "./schema.ts";
import type { Item, Tree } from "./scopes.ts";

export const MODES = ["device", "asked", "cell", "op"] as const;
export type Mode = (typeof MODES)[number];
export const MODE_LABELS: Record<Mode, string> = {
  device: "device (actual)",
  asked: "device (asked)",
  cell: "cell",
  op: "kind of op",
};

const NONE: Record<Mode, string> = { device: "not placed yet", asked: "not asked", cell: "no cell", op: "?" };

export interface Category {
  name: string;
  swatch: Swatch;
  ops: number;
}

export class Colouring {
  /** Most ops first, except devices and cells, which stand in the order of their names. */
  readonly categories: Category[];
  private readonly byName: Map<string, Category>;
  private readonly shares = new Map<Item, Map<string, number>>();

  constructor(
    private readonly tree: Tree,
    readonly mode: Mode,
  ) {
    const total = this.share(tree.root);
    const names = [...total.keys()];
    const none = NONE[mode];
    if (mode === "op") names.sort((a, b) => (total.get(b) as number) - (total.get(a) as number) || compare(a, b));
    else names.sort((a, b) => Number(a === none) - Number(b === none) || compare(a, b));
    let next = 0;
    this.categories = names.map((name) => ({
      name,
      swatch: name === none ? { fill: NEUTRAL, striped: false } : swatch(next++),
      ops: total.get(name) as number,
    }));
    this.byName = new Map(this.categories.map((category) => [category.name, category]));
  }

  /** Categories below `item` with their number of ops, in the legend's order. */
  of(item: Item): { category: Category; ops: number }[] {
    const share = this.share(item);
    return this.categories.filter((c) => share.has(c.name)).map((category) => ({ category, ops: share.get(category.name) as number }));
  }

  /** The category of an op, or of most ops below a scope. */
  main(item: Item): Category {
    let best: Category | undefined;
    let most = -1;
    for (const [name, ops] of this.share(item)) if (ops > most) [best, most] = [this.byName.get(name), ops];
    return best ?? { name: NONE[this.mode], swatch: { fill: NEUTRAL, striped: false }, ops: 0 };
  }

  /** `worker:0/cpu:0`, or `3 devices`, for people who see no colours. */
  words(item: Item): string {
    const names = [...this.share(item).keys()];
    if (names.length === 1) return names[0];
    return `${names.length} ${{ device: "devices", asked: "requests", cell: "cells", op: "kinds" }[this.mode]}`;
  }

  private share(item: Item): Map<string, number> {
    let share = this.shares.get(item);
    if (share === undefined) {
      share = new Map<string, number>();
      if (item.kind === "op") share.set(categoryOf(this.tree.nodes[item.node], this.mode), 1);
      for (const child of item.children) {
        for (const [name, ops] of this.share(child)) share.set(name, (share.get(name) ?? 0) + ops);
      }
      this.shares.set(item, share);
    }
    return share;
  }
}

export function categoryOf(node: GraphNode, mode: Mode): string {
  if (mode === "device") return node.device ? shortDevice(node.device) : NONE.device;
  if (mode === "asked") return node.asked ? shortDevice(node.asked) : NONE.asked;
  if (mode === "cell") return node.cell?.label || NONE.cell;
  return node.op;
}

/** `In[2]` before `In[10]`. */
export function compare(a: string, b: string): number {
  return a.localeCompare(b, "en", { numeric: true });
}
