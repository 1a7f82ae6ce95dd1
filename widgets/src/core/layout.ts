/**
 * The visible part of a scope tree → boxes and lines. Pure.
 *
 * Each open scope is laid out by itself and then stands in its parent as one big box: no layout ever sees the flat
 * graph, which no algorithm draws well. dagre for scopes of ordinary size, our own layout for the rest.
 */
import dagre from "@dagrejs/dagre";
import { fold } from "./fold.ts";
import { type Layout, type Point, type Size, dummyCount, layered, ranks } from "./layered.ts";
import type { Edge, Item, Tree } from "./scopes.ts";

export interface Box {
  item: Item;
  /** Top left corner and size, in graph units. */
  x: number;
  y: number;
  w: number;
  h: number;
  open: boolean;
  aux: boolean;
  /** How many open scopes surround it. */
  nesting: number;
}

export interface Line {
  edge: Edge;
  points: Point[];
}

export interface Scene {
  /** Outer boxes before inner ones. */
  boxes: Box[];
  lines: Line[];
  width: number;
  height: number;
}

export type Measure = (item: Item) => Size;

/** dagre needs O(n²) time for its dummies; beyond this many nodes and dummies ours takes over. */
const DAGRE_LIMIT = 220;
const GAPS = { rankGap: 44, nodeGap: 16 };
const PAD = 14;
export const HEADER = 26;
const AUX_GAP = 40;

export class Layouts {
  private readonly cache = new Map<string, Scene>();

  constructor(
    private readonly tree: Tree,
    private readonly measure: Measure,
  ) {}

  /** Everything that shows when the scopes in `expanded` are open. */
  scene(expanded: ReadonlySet<string>): Scene {
    return this.inside(this.tree.root, expanded, 0);
  }

  private inside(scope: Item, expanded: ReadonlySet<string>, nesting: number): Scene {
    const key = `${scope.id}\n${[...expanded].filter((id) => scope.parent === null || isBelow(this.tree, id, scope)).sort().join("\n")}`;
    let scene = this.cache.get(key);
    if (scene === undefined) {
      scene = this.compute(scope, expanded, nesting);
      this.cache.set(key, scene);
    }
    return scene;
  }

  private compute(scope: Item, expanded: ReadonlySet<string>, nesting: number): Scene {
    const level = this.tree.level(scope);
    const inner = new Map<Item, Scene>();
    const size = (item: Item): Size => {
      if (!expanded.has(item.id) || item.children.length === 0) return this.measure(item);
      const scene = this.inside(item, expanded, nesting + 1);
      inner.set(item, scene);
      return { w: Math.max(scene.width + 2 * PAD, this.measure(item).w), h: scene.height + HEADER + PAD };
    };
    const boxes: Box[] = [];
    const lines: Line[] = [];
    const place = (item: Item, centre: Point, { w, h }: Size, aux: boolean): void => {
      const box = { item, x: centre.x - w / 2, y: centre.y - h / 2, w, h, open: inner.has(item), aux, nesting };
      boxes.push(box);
      const scene = inner.get(item);
      if (scene === undefined) return;
      const dx = box.x + (w - scene.width) / 2;
      const dy = box.y + HEADER;
      for (const child of scene.boxes) boxes.push({ ...child, x: child.x + dx, y: child.y + dy, nesting: child.nesting });
      for (const line of scene.lines) lines.push({ ...line, points: line.points.map((p) => ({ x: p.x + dx, y: p.y + dy })) });
    };
    const main = flow(level.main, level.edges, level.main.map(size), place, lines);
    const strip = column(level.aux, level.aux.map(size), main, place);
    return { boxes, lines, width: strip.w, height: strip.h };
  }
}

function isBelow(tree: Tree, id: string, scope: Item): boolean {
  for (let at = tree.items.get(id); at; at = at.parent ?? undefined) if (at === scope) return true;
  return false;
}

type Place = (item: Item, centre: Point, size: Size, aux: boolean) => void;

/** Connected items in layers, the others in rows below. Returns the size of it all. */
function flow(items: Item[], edges: Edge[], sizes: Size[], place: Place, lines: Line[]): Size {
  const touched = new Set(edges.flatMap((edge) => [edge.from, edge.to]));
  const linked = items.flatMap((item, i) => (touched.has(item) ? [i] : []));
  const alone = items.flatMap((item, i) => (touched.has(item) ? [] : [i]));
  const at = new Map(linked.map((i, k) => [items[i], k]));
  const pairs = edges.map((edge): [number, number] => [at.get(edge.from) as number, at.get(edge.to) as number]);
  const linkedSizes = linked.map((i) => sizes[i]);
  const layout = arrange(linkedSizes, pairs);
  const routes = pairs.map(([a, b], e) => route(layout, a, b, linkedSizes[a], linkedSizes[b], layout.bends[e]));
  const folded = fold({ nodes: layout.nodes, lines: routes, width: layout.width, height: layout.height }, linkedSizes, pairs);
  linked.forEach((i, k) => place(items[i], folded.nodes[k], sizes[i], false));
  edges.forEach((edge, e) => lines.push({ edge, points: folded.lines[e] }));
  return rows(alone, items, sizes, { w: folded.width, h: folded.height }, place);
}

function rows(alone: number[], items: Item[], sizes: Size[], above: Size, place: Place): Size {
  const { w: width, h: height } = above;
  if (alone.length === 0) return { w: width, h: height };
  const area = alone.reduce((sum, i) => sum + (sizes[i].w + GAPS.nodeGap) * (sizes[i].h + GAPS.nodeGap), 0);
  const limit = Math.max(width, 2 * Math.sqrt(area), ...alone.map((i) => sizes[i].w));
  let [x, y, tall, right] = [0, height === 0 ? 0 : height + 2 * GAPS.nodeGap, 0, width];
  for (const i of alone) {
    if (x > 0 && x + sizes[i].w > limit) {
      x = 0;
      y += tall + GAPS.nodeGap;
      tall = 0;
    }
    place(items[i], { x: x + sizes[i].w / 2, y: y + sizes[i].h / 2 }, sizes[i], false);
    x += sizes[i].w + GAPS.nodeGap;
    right = Math.max(right, x - GAPS.nodeGap);
    tall = Math.max(tall, sizes[i].h);
  }
  return { w: right, h: y + tall };
}

/** The side strip: columns to the right of the flow, no taller than it needs. */
function column(items: Item[], sizes: Size[], main: Size, place: Place): Size {
  if (items.length === 0) return main;
  const limit = Math.max(main.h, 160, ...sizes.map((size) => size.h));
  let [x, y, wide, bottom] = [main.w + AUX_GAP, 0, 0, main.h];
  items.forEach((item, i) => {
    const { w, h } = sizes[i];
    if (y > 0 && y + h > limit) {
      x += wide + GAPS.nodeGap;
      y = 0;
      wide = 0;
    }
    place(item, { x: x + w / 2, y: y + h / 2 }, sizes[i], true);
    y += h + GAPS.nodeGap;
    wide = Math.max(wide, w);
    bottom = Math.max(bottom, y - GAPS.nodeGap);
  });
  return { w: x + wide, h: bottom };
}

function arrange(sizes: Size[], edges: [number, number][]): Layout {
  const { rank } = ranks(sizes.length, edges);
  if (sizes.length + dummyCount(rank, edges) > DAGRE_LIMIT) return layered(sizes, edges, GAPS);
  return byDagre(sizes, edges);
}

export function byDagre(sizes: Size[], edges: [number, number][]): Layout {
  if (sizes.length === 0) return { nodes: [], bends: [], width: 0, height: 0 };
  const graph = new dagre.graphlib.Graph({ multigraph: true });
  graph.setGraph({ rankdir: "LR", nodesep: GAPS.nodeGap, ranksep: GAPS.rankGap, edgesep: 8 });
  graph.setDefaultEdgeLabel(() => ({}));
  sizes.forEach((size, i) => graph.setNode(String(i), { width: size.w, height: size.h }));
  edges.forEach(([a, b], e) => graph.setEdge(String(a), String(b), {}, String(e)));
  dagre.layout(graph);
  const nodes = sizes.map((_, i) => {
    const node = graph.node(String(i)) as Point;
    return { x: node.x, y: node.y };
  });
  // dagre centres a rank's nodes on one x.
  const halves = new Map<number, number>();
  nodes.forEach(({ x }, i) => halves.set(Math.round(x), Math.max(halves.get(Math.round(x)) ?? 0, sizes[i].w / 2)));
  const bends = edges.map(([a, b], e) => {
    const { points } = graph.edge(String(a), String(b), String(e)) as { points: Point[] };
    // The ends are ours: lines leave at the right side's middle and arrive at the left side's.
    const [left, right] = [Math.min(nodes[a].x, nodes[b].x), Math.max(nodes[a].x, nodes[b].x)];
    const inner = points.slice(1, -1).filter((p) => p.x > left + 1 && p.x < right - 1);
    // A line passes a column level, or it would cut the corners of wide boxes.
    const sides = nodes[a].x <= nodes[b].x ? [-1, 1] : [1, -1];
    return inner.flatMap((p) => {
      // Points between columns only made room for labels, which we do not have.
      const half = halves.get(Math.round(p.x));
      return half === undefined ? [] : sides.map((side) => ({ x: p.x + side * half, y: p.y }));
    });
  });
  const { width = 0, height = 0 } = graph.graph();
  return { nodes, bends, width, height };
}

function route(layout: Layout, a: number, b: number, from: Size, to: Size, bends: Point[]): Point[] {
  const [p, q] = [layout.nodes[a], layout.nodes[b]];
  const side = q.x >= p.x ? 1 : -1;
  const start = { x: p.x + (side * from.w) / 2, y: p.y };
  const end = { x: q.x - (side * to.w) / 2, y: q.y };
  return [start, ...bends.filter((r) => side * (r.x - start.x) > 4 && side * (end.x - r.x) > 4), end];
}
