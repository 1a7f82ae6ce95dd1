/**
 * Graph JSON → scope tree. Pure; `scopes.py` is the same in Python (both are held to `test/scopes.json`).
 *
 * A scope's id is its path and a slash, so it never meets a node's name. Each edge between two nodes becomes a
 * meta-edge between the two siblings below their lowest common ancestor. Sibling scopes of one structure become a
 * series (`replica_0`, `replica_1` → `replica_* ×2`). Items that would tangle a level go to its side strip.
 * After Wongsuphasawat et al., Visualizing Dataflow Graphs of Deep Learning Models in TensorFlow, 2018.
 */
import { type GraphJson, type GraphNode, producer } from "./schema.ts";

export type Kind = "op" | "scope" | "series";

export interface Item {
  id: string;
  label: string;
  kind: Kind;
  parent: Item | null;
  depth: number;
  children: Item[];
  /** Index into the graph's nodes; -1 for scopes. */
  node: number;
  /** Ops inside, this one included. */
  ops: number;
  /** Stale ops inside. */
  stale: number;
}

export interface Edge {
  from: Item;
  to: Item;
  /** Data tensors bundled here; 0 when there are only control edges. */
  tensors: number;
  controls: number;
  /** Some tensor here goes from one device to another. */
  crosses: boolean;
}

export interface Level {
  main: Item[];
  /** Shown aside, edges on selection only. */
  aux: Item[];
  /** Between items of `main`. */
  edges: Edge[];
  /** With an end in `aux`. */
  hidden: Edge[];
}

const AUX_NAMES = new Set(["gradients", "save", "init"]);
/** More neighbours than this at one level tangle it. */
const AUX_DEGREE = 8;
/** A hub with more than one part in so many of a level's ops is what the level is about: it stays. */
const AUX_SHARE = 5;
/** Members of a series that feed each other read better apart unless they are many. */
const CHAIN_SERIES = 4;

export class Tree {
  readonly nodes: GraphNode[];
  readonly root: Item;
  readonly items = new Map<string, Item>();
  readonly leaves: Item[] = [];
  /** Node indices per node index. */
  readonly inputs: number[][] = [];
  readonly consumers: number[][] = [];
  private readonly index = new Map<string, number>();
  private readonly levels = new Map<Item, Level>();
  private edges: Map<Item, Map<string, Edge>>;

  constructor(graph: GraphJson) {
    this.nodes = graph.nodes;
    this.root = makeItem("/", "", "scope", null);
    this.items.set("/", this.root);
    graph.nodes.forEach((node, i) => this.index.set(node.name, i));
    const scopes = new Set<string>();
    for (const node of graph.nodes) {
      for (let at = node.name.indexOf("/"); at > 0; at = node.name.indexOf("/", at + 1)) scopes.add(node.name.slice(0, at));
    }
    graph.nodes.forEach((node, i) => this.addLeaf(node, i, scopes));
    this.connect();
    count(this.root);
    this.edges = this.metaEdges();
    if (this.collapseSeries()) {
      setDepth(this.root, 0);
      this.edges = this.metaEdges();
    }
  }

  /** The index of the node that makes an input, or -1 when it is not in this graph. */
  find(input: string): number {
    return this.index.get(producer(input)) ?? -1;
  }

  /** What stands directly below `item`, and how it is connected there. */
  level(item: Item): Level {
    let level = this.levels.get(item);
    if (level === undefined) {
      level = splitLevel(item, [...(this.edges.get(item)?.values() ?? [])]);
      this.levels.set(item, level);
    }
    return level;
  }

  /** The scopes that a reader wants open at first: a lone scope says nothing. */
  initialExpansion(): string[] {
    const open: string[] = [];
    let at = this.root;
    for (;;) {
      const scopes = at.children.filter((child) => child.kind !== "op");
      if (at.children.length > 2 || scopes.length !== 1) return open;
      at = scopes[0];
      open.push(at.id);
    }
  }

  private addLeaf(node: GraphNode, i: number, scopes: Set<string>): void {
    const parts = node.name.split("/");
    let parent = this.root;
    // A node named like a scope (`hidden` beside `hidden/weights`) stands inside it, in parentheses.
    const own = scopes.has(node.name);
    const path = own ? parts : parts.slice(0, -1);
    let id = "";
    for (const part of path) {
      id += `${part}/`;
      let scope = this.items.get(id);
      if (scope === undefined) {
        scope = makeItem(id, part, "scope", parent);
        this.items.set(id, scope);
        parent.children.push(scope);
      }
      parent = scope;
    }
    const last = parts[parts.length - 1];
    const leaf = makeItem(node.name, own ? `(${last})` : last, "op", parent, i, node.stale ? 1 : 0);
    parent.children.push(leaf);
    this.items.set(node.name, leaf);
    this.leaves.push(leaf);
  }

  private connect(): void {
    for (const node of this.nodes) {
      this.inputs.push([...new Set(node.inputs.map((name) => this.find(name)))].filter((i) => i >= 0));
      this.consumers.push([]);
    }
    this.inputs.forEach((from, to) => from.forEach((i) => this.consumers[i].push(to)));
  }

  private metaEdges(): Map<Item, Map<string, Edge>> {
    const result = new Map<Item, Map<string, Edge>>();
    this.nodes.forEach((node, to) => {
      for (const input of node.inputs) {
        const from = this.find(input);
        if (from < 0 || from === to) continue;
        const [a, b] = siblings(this.leaves[from], this.leaves[to]);
        const level = a.parent as Item;
        let edges = result.get(level);
        if (edges === undefined) result.set(level, (edges = new Map<string, Edge>()));
        const key = `${a.id}\n${b.id}`;
        let edge = edges.get(key);
        if (edge === undefined) edges.set(key, (edge = { from: a, to: b, tensors: 0, controls: 0, crosses: false }));
        if (input.startsWith("^")) edge.controls++;
        else {
          edge.tensors++;
          const device = this.nodes[from].device;
          if (device && node.device && device !== node.device) edge.crosses = true;
        }
      }
    });
    return result;
  }

  private collapseSeries(): boolean {
    const signatures = new Map<string, number>();
    const signature = new Map<Item, number>();
    sign(this.root, this.nodes, signatures, signature);
    let found = false;
    for (const parent of [...this.items.values()]) {
      if (parent.kind !== "scope") continue;
      const groups = new Map<string, Item[]>();
      for (const child of parent.children) {
        const base = /^(.*?)\d+$/.exec(child.label);
        if (child.kind !== "scope" || base === null || base[1] === "") continue;
        const key = `${base[1]}\n${signature.get(child)}`;
        groups.set(key, [...(groups.get(key) ?? []), child]);
      }
      for (const [key, members] of groups) {
        if (members.length < 2 || members.length === parent.children.length) continue;
        const feeding = members.some((a) => members.some((b) => this.edges.get(parent)?.has(`${a.id}\n${b.id}`)));
        if (feeding && members.length < CHAIN_SERIES) continue;
        this.makeSeries(parent, key.split("\n")[0], members);
        found = true;
      }
    }
    return found;
  }

  private makeSeries(parent: Item, base: string, members: Item[]): void {
    const prefix = parent === this.root ? "" : parent.id;
    let id = `${prefix}${base}*/`;
    // Two series of one base name differ in structure only; the first member tells them apart.
    if (this.items.has(id)) id = `${prefix}${base}*${members[0].label}/`;
    const series = makeItem(id, `${base}* ×${members.length}`, "series", parent);
    series.children = members;
    series.ops = members.reduce((sum, member) => sum + member.ops, 0);
    series.stale = members.reduce((sum, member) => sum + member.stale, 0);
    for (const member of members) member.parent = series;
    const inside = new Set(members);
    const at = parent.children.indexOf(members[0]);
    parent.children.splice(at, 0, series);
    parent.children = parent.children.filter((child) => !inside.has(child));
    this.items.set(id, series);
  }
}

function makeItem(id: string, label: string, kind: Kind, parent: Item | null, node = -1, stale = 0): Item {
  return { id, label, kind, parent, depth: parent === null ? 0 : parent.depth + 1, children: [], node, ops: node < 0 ? 0 : 1, stale };
}

function count(item: Item): void {
  for (const child of item.children) {
    count(child);
    item.ops += child.ops;
    item.stale += child.stale;
  }
}

function setDepth(item: Item, depth: number): void {
  item.depth = depth;
  for (const child of item.children) setDepth(child, depth + 1);
}

/** One number for each structure: the multiset of names and ops below an item, its own name left out. */
function sign(item: Item, nodes: GraphNode[], known: Map<string, number>, result: Map<Item, number>): number {
  const text =
    item.kind === "op"
      ? nodes[item.node].op
      : item.children.map((child) => `${child.label}=${sign(child, nodes, known, result)}`).sort().join("\n");
  const key = `${item.kind}\n${text}`;
  let id = known.get(key);
  if (id === undefined) known.set(key, (id = known.size));
  result.set(item, id);
  return id;
}

/** The two ancestors-or-selves of `a` and `b` that share a parent. */
export function siblings(a: Item, b: Item): [Item, Item] {
  while (a.depth > b.depth) a = a.parent as Item;
  while (b.depth > a.depth) b = b.parent as Item;
  while (a.parent !== b.parent) {
    a = a.parent as Item;
    b = b.parent as Item;
  }
  return [a, b];
}

function splitLevel(item: Item, edges: Edge[]): Level {
  const degree = new Map<Item, Set<Item>>(item.children.map((child) => [child, new Set<Item>()]));
  for (const edge of edges) {
    degree.get(edge.from)?.add(edge.to);
    degree.get(edge.to)?.add(edge.from);
  }
  const isAux = (child: Item): boolean =>
    (child.kind !== "op" && AUX_NAMES.has(child.label)) ||
    ((degree.get(child)?.size ?? 0) > AUX_DEGREE && child.ops * AUX_SHARE <= item.ops);
  let aux = item.children.filter(isAux);
  if (item.children.length - aux.length < 2) aux = [];
  const aside = new Set(aux);
  return {
    main: item.children.filter((child) => !aside.has(child)),
    aux,
    edges: edges.filter((edge) => !aside.has(edge.from) && !aside.has(edge.to)),
    hidden: edges.filter((edge) => aside.has(edge.from) || aside.has(edge.to)),
  };
}

/** `item` or its nearest ancestor that is drawn when the scopes in `expanded` are open. */
export function visible(item: Item, expanded: ReadonlySet<string>): Item {
  let shown = item;
  for (let at = item.parent; at !== null && at.parent !== null; at = at.parent) {
    if (!expanded.has(at.id)) shown = at;
  }
  return shown;
}

/** Opens every ancestor of `item`. */
export function reveal(item: Item, expanded: ReadonlySet<string>): Set<string> {
  const result = new Set(expanded);
  for (let at = item.parent; at !== null && at.parent !== null; at = at.parent) result.add(at.id);
  return result;
}
