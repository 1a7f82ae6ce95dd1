/**
 * A layered layout in O((N + E + dummies) · sweeps), left to right. Pure; `layout.py` is the same in Python.
 *
 * Sugiyama's steps: ranks by longest path, dummies on long edges (while they are affordable), order by barycentres,
 * then coordinates by isotonic regression: the least-squares positions that keep the order and the gaps.
 */

export interface Size {
  w: number;
  h: number;
}

export interface Point {
  x: number;
  y: number;
}

export interface Layout {
  /** Centres, one a node. */
  nodes: Point[];
  /** Bends between the two ends, one list an edge; empty for straight edges. */
  bends: Point[][];
  width: number;
  height: number;
}

export interface Options {
  /** Between ranks, and between neighbours of one rank. */
  rankGap: number;
  nodeGap: number;
}

const SWEEPS = 8;
/** Dummies are worth their time up to this many a node. */
const DUMMIES_PER_NODE = 4;
const DUMMY_HEIGHT = 6;

/** Longest-path ranks; edges that close a cycle are ignored. Sources stand directly before their first consumer. */
export function ranks(n: number, edges: readonly [number, number][]): { rank: number[]; backward: boolean[] } {
  const out: number[][] = Array.from({ length: n }, () => []);
  edges.forEach(([from], e) => out[from].push(e));
  const state = new Int8Array(n);
  const backward = edges.map(([a, b]) => a === b);
  const order: number[] = [];
  for (let start = 0; start < n; start++) {
    if (state[start] !== 0) continue;
    // Depth first without recursion: graphs may be deeper than the stack.
    const stack: [number, number][] = [[start, 0]];
    state[start] = 1;
    while (stack.length > 0) {
      const top = stack[stack.length - 1];
      const e = out[top[0]][top[1]++];
      if (e === undefined) {
        state[top[0]] = 2;
        order.push(top[0]);
        stack.pop();
        continue;
      }
      const to = edges[e][1];
      if (state[to] === 1) backward[e] = true;
      else if (state[to] === 0) {
        state[to] = 1;
        stack.push([to, 0]);
      }
    }
  }
  order.reverse();
  const rank = new Array<number>(n).fill(0);
  const sources = new Array<boolean>(n).fill(true);
  for (const u of order) {
    for (const e of out[u]) {
      if (backward[e]) continue;
      rank[edges[e][1]] = Math.max(rank[edges[e][1]], rank[u] + 1);
      sources[edges[e][1]] = false;
    }
  }
  for (const u of order) {
    const forward = out[u].filter((e) => !backward[e]);
    if (sources[u] && forward.length > 0) rank[u] = Math.min(...forward.map((e) => rank[edges[e][1]])) - 1;
  }
  return { rank, backward };
}

/** Dummies that the edges of a ranked graph need. */
export function dummyCount(rank: readonly number[], edges: readonly [number, number][]): number {
  return edges.reduce((sum, [a, b]) => sum + Math.max(0, Math.abs(rank[a] - rank[b]) - 1), 0);
}

/** Places `sizes.length` boxes; `edges` are pairs of indices. */
export function layered(sizes: readonly Size[], edges: readonly [number, number][], options: Options): Layout {
  const n = sizes.length;
  const { rank } = ranks(n, edges);
  const affordable = dummyCount(rank, edges) <= DUMMIES_PER_NODE * n + 200;
  const all: Size[] = [...sizes];
  const rankOf = [...rank];
  const links: [number, number][] = [];
  const chains: number[][] = edges.map(([a, b]) => {
    const [low, high] = rank[a] <= rank[b] ? [a, b] : [b, a];
    const chain: number[] = [];
    let last = low;
    for (let r = rank[low] + 1; affordable && r < rank[high]; r++) {
      all.push({ w: 0, h: DUMMY_HEIGHT });
      rankOf.push(r);
      chain.push(all.length - 1);
      links.push([last, all.length - 1]);
      last = all.length - 1;
    }
    if (low !== high && rank[low] !== rank[high]) links.push([last, high]);
    return low === a ? chain : chain.reverse();
  });
  const before: number[][] = all.map(() => []);
  const after: number[][] = all.map(() => []);
  for (const [a, b] of links) {
    after[a].push(b);
    before[b].push(a);
  }
  const layers = order(rankOf, before, after);
  const y = settle(layers, all, before, after, n, options.nodeGap);
  const { x, half } = columns(layers, all, options.rankGap);
  const low = all.reduce((least, size, i) => Math.min(least, y[i] - size.h / 2), Infinity);
  const high = all.reduce((most, size, i) => Math.max(most, y[i] + size.h / 2), -Infinity);
  const point = (i: number): Point => ({ x: x[rankOf[i]], y: y[i] - low });
  const last = layers.length - 1;
  // A line passes a column level, or it would cut the corners of wide boxes.
  const level = (chain: number[], backward: boolean): Point[] =>
    chain.flatMap((i) => {
      const sides = backward ? [1, -1] : [-1, 1];
      return sides.map((side) => ({ x: x[rankOf[i]] + side * half[rankOf[i]], y: y[i] - low }));
    });
  return {
    nodes: sizes.map((_, i) => point(i)),
    bends: chains.map((chain, e) => level(chain, rank[edges[e][0]] > rank[edges[e][1]])),
    width: n === 0 ? 0 : x[last] + half[last],
    height: n === 0 ? 0 : high - low,
  };
}

/** Layers of node indices, ordered to cross few edges. */
function order(rank: number[], before: number[][], after: number[][]): number[][] {
  const layers: number[][] = [];
  rank.forEach((r, i) => (layers[r] ??= []).push(i));
  for (let r = 0; r < layers.length; r++) layers[r] ??= [];
  const at = new Float64Array(rank.length);
  const number = (layer: number[]): void => layer.forEach((i, k) => (at[i] = (k + 0.5) / layer.length));
  layers.forEach(number);
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const down = sweep % 2 === 0;
    const near = down ? before : after;
    for (let k = 0; k < layers.length; k++) {
      const layer = layers[down ? k : layers.length - 1 - k];
      const key = new Map(layer.map((i) => [i, near[i].length ? mean(near[i].map((j) => at[j])) : at[i]]));
      layer.sort((a, b) => (key.get(a) as number) - (key.get(b) as number));
      number(layer);
    }
  }
  return layers;
}

/** y of each node: repeatedly the mean of its neighbours, corrected to keep order and gaps. */
function settle(layers: number[][], sizes: Size[], before: number[][], after: number[][], real: number, gap: number): number[] {
  const y = new Array<number>(sizes.length).fill(0);
  const offsets = layers.map((layer) => {
    const offset = [0];
    for (let k = 1; k < layer.length; k++) {
      offset.push(offset[k - 1] + sizes[layer[k - 1]].h / 2 + sizes[layer[k]].h / 2 + gap);
    }
    layer.forEach((i, k) => (y[i] = offset[k] - offset[offset.length - 1] / 2));
    return offset;
  });
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const down = sweep % 2 === 0;
    for (let k = 0; k < layers.length; k++) {
      const r = down ? k : layers.length - 1 - k;
      // The last two sweeps look both ways, so that no side wins.
      const near = (i: number): number[] =>
        sweep >= SWEEPS - 2 ? [...before[i], ...after[i]] : (down ? before : after)[i];
      const wanted = layers[r].map((i) => (near(i).length ? mean(near(i).map((j) => y[j])) : y[i]));
      // Dummies pull harder: a long edge should be straight.
      const weights = layers[r].map((i) => (near(i).length === 0 ? 0.2 : i >= real ? 4 : 1));
      const placed = isotonic(wanted.map((value, j) => value - offsets[r][j]), weights);
      layers[r].forEach((i, j) => (y[i] = placed[j] + offsets[r][j]));
    }
  }
  return y;
}

/** The non-decreasing sequence nearest to `values` in weighted least squares (pool adjacent violators). */
export function isotonic(values: readonly number[], weights: readonly number[]): number[] {
  const blocks: { sum: number; weight: number; size: number }[] = [];
  values.forEach((value, i) => {
    let block = { sum: value * weights[i], weight: weights[i], size: 1 };
    for (let last = blocks.at(-1); last && last.sum / last.weight > block.sum / block.weight; last = blocks.at(-1)) {
      block = { sum: last.sum + block.sum, weight: last.weight + block.weight, size: last.size + block.size };
      blocks.pop();
    }
    blocks.push(block);
  });
  return blocks.flatMap((block) => new Array<number>(block.size).fill(block.sum / block.weight));
}

/** x of each layer's centre, and half its width. */
function columns(layers: number[][], sizes: Size[], gap: number): { x: number[]; half: number[] } {
  const widths = layers.map((layer) => Math.max(0, ...layer.map((i) => sizes[i].w)));
  let left = 0;
  const x = widths.map((width) => {
    const centre = left + width / 2;
    left += width + gap;
    return centre;
  });
  return { x, half: widths.map((width) => width / 2) };
}

function mean(values: number[]): number {
  let sum = 0;
  for (const value of values) sum += value;
  return sum / values.length;
}
