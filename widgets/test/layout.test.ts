import assert from "node:assert/strict";
import test from "node:test";
import { fold } from "../src/core/fold.ts";
import { type Point, isotonic, layered, ranks } from "../src/core/layered.ts";
import { type Box, Layouts, byDagre } from "../src/core/layout.ts";
import type { GraphJson } from "../src/core/schema.ts";
import { Tree } from "../src/core/scopes.ts";
import cases from "./scopes.json";

type Pair = [number, number];

/** Numbers that look random and are the same in every run. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1_664_525 + 1_013_904_223) % 4_294_967_296;
    return state / 4_294_967_296;
  };
}

function randomGraph(n: number, seed: number): { sizes: { w: number; h: number }[]; edges: Pair[] } {
  const next = generator(seed);
  const sizes = Array.from({ length: n }, () => ({ w: 60 + next() * 100, h: 30 + next() * 40 }));
  const edges: Pair[] = [];
  for (let i = 1; i < n; i++) {
    edges.push([Math.floor(next() * i), i]);
    if (next() < 0.5) edges.push([Math.max(0, i - 1 - Math.floor(next() * 6)), i]);
  }
  return { sizes, edges };
}

test("ranks put every node after its inputs and sources beside their first consumer", () => {
  const edges: Pair[] = [[0, 1], [1, 2], [0, 2], [3, 2]];
  assert.deepEqual(ranks(4, edges).rank, [0, 1, 2, 1]);
});

test("a cycle does not stop the ranks, and is told", () => {
  const { rank, backward } = ranks(3, [[0, 1], [1, 2], [2, 0], [1, 1]]);
  assert.deepEqual(backward, [false, false, true, true]);
  assert.deepEqual(rank, [0, 1, 2]);
});

test("isotonic regression pools what is out of order", () => {
  assert.deepEqual(isotonic([1, 3, 2, 4], [1, 1, 1, 1]), [1, 2.5, 2.5, 4]);
  assert.deepEqual(isotonic([3, 0], [1, 2]), [1, 1]);
});

for (const n of [2, 20, 120]) {
  for (const [name, layout] of [["layered", layered], ["dagre", byDagre]] as const) {
    test(`${name}: ${n} boxes do not overlap, edges go right, all lies inside`, () => {
      const { sizes, edges } = randomGraph(n, n);
      const result = layout(sizes, edges, { rankGap: 40, nodeGap: 10 });
      for (let i = 0; i < n; i++) {
        const [p, a] = [result.nodes[i], sizes[i]];
        assert.ok(p.x - a.w / 2 > -1 && p.x + a.w / 2 < result.width + 1, `box ${i} leaves the width`);
        assert.ok(p.y - a.h / 2 > -1 && p.y + a.h / 2 < result.height + 1, `box ${i} leaves the height`);
        for (let j = 0; j < i; j++) {
          const [q, b] = [result.nodes[j], sizes[j]];
          const apart = Math.abs(p.x - q.x) >= (a.w + b.w) / 2 - 1e-6 || Math.abs(p.y - q.y) >= (a.h + b.h) / 2 - 1e-6;
          assert.ok(apart, `boxes ${j} and ${i} overlap`);
        }
      }
      for (const [a, b] of edges) assert.ok(result.nodes[a].x < result.nodes[b].x, `edge ${a} → ${b} goes left`);
    });
  }
}

test("layered: a long edge is bent around the boxes it passes", () => {
  const sizes = Array.from({ length: 4 }, () => ({ w: 100, h: 40 }));
  const result = layered(sizes, [[0, 1], [1, 2], [2, 3], [0, 3]], { rankGap: 40, nodeGap: 10 });
  const bends = result.bends[3];
  assert.equal(bends.length, 4);
  for (const [k, box] of [[0, 1], [2, 2]] as Pair[]) {
    assert.equal(bends[k].y, bends[k + 1].y, "the line passes a column level");
    assert.ok(Math.abs(bends[k].y - result.nodes[box].y) > 20, "the line runs through a box");
  }
});

test("layered: five thousand nodes within seconds", () => {
  const { sizes, edges } = randomGraph(5000, 7);
  const start = performance.now();
  layered(sizes, edges, { rankGap: 40, nodeGap: 10 });
  assert.ok(performance.now() - start < 4000, "5,000 nodes took over 4 s");
});

function scene(name: string, expanded: string[]): { boxes: Box[]; width: number; height: number } {
  const tree = new Tree(cases.find((c) => c.name === name)?.graph as unknown as GraphJson);
  const layouts = new Layouts(tree, (item) => ({ w: 30 + 6 * item.label.length, h: 40 }));
  return layouts.scene(new Set(expanded));
}

test("closed scopes are single boxes; open ones hold their children", () => {
  const closed = scene("replicas", []);
  assert.deepEqual(closed.boxes.map((box) => box.item.id).sort(), ["replica_*/", "sum", "x"]);
  const open = scene("replicas", ["replica_*/", "replica_0/", "replica_0/a/"]);
  const at = new Map(open.boxes.map((box) => [box.item.id, box]));
  assert.equal(at.size, 9);
  for (const box of open.boxes) {
    const parent = at.get(box.item.parent?.id ?? "");
    if (parent === undefined) continue;
    assert.ok(box.x >= parent.x && box.x + box.w <= parent.x + parent.w, `${box.item.id} leaves its scope sideways`);
    assert.ok(box.y >= parent.y && box.y + box.h <= parent.y + parent.h, `${box.item.id} leaves its scope`);
    assert.ok(open.boxes.indexOf(parent) < open.boxes.indexOf(box), "outer boxes are drawn first");
  }
});

test("what stands aside is right of the flow", () => {
  const { boxes } = scene("hubs and gradients go aside", []);
  const right = Math.max(...boxes.filter((box) => !box.aux).map((box) => box.x + box.w));
  const aux = boxes.filter((box) => box.aux);
  assert.deepEqual(aux.map((box) => box.item.id), ["step", "gradients/"]);
  for (const box of aux) assert.ok(box.x > right);
});

/** A chain of `n` boxes with one line that skips from the third box to the last. */
function chain(n: number): { sizes: { w: number; h: number }[]; edges: Pair[]; nodes: Point[]; lines: Point[][]; width: number; height: number } {
  const sizes = Array.from({ length: n }, () => ({ w: 100, h: 40 }));
  const edges: Pair[] = Array.from({ length: n - 1 }, (_, i) => [i, i + 1]);
  edges.push([2, n - 1]);
  const nodes = sizes.map((_, i) => ({ x: 50 + 140 * i, y: 20 }));
  const lines = edges.map(([a, b]) => [{ x: nodes[a].x + 50, y: 20 }, { x: nodes[b].x - 50, y: 20 }]);
  return { sizes, edges, nodes, lines, width: 140 * n - 40, height: 40 };
}

test("a long chain is folded into rows and its lines stay outside of boxes", () => {
  const flow = chain(40);
  const folded = fold(flow, flow.sizes, flow.edges);
  assert.ok(folded.width < flow.width / 3 && folded.width / folded.height < 6, "not folded");
  const overlaps = (p: Point, q: Point, box: Point): boolean =>
    Math.max(p.x, q.x) > box.x - 49 && Math.min(p.x, q.x) < box.x + 49 && Math.max(p.y, q.y) > box.y - 19 && Math.min(p.y, q.y) < box.y + 19;
  folded.lines.forEach((line, e) => {
    const [from, to] = [folded.nodes[flow.edges[e][0]], folded.nodes[flow.edges[e][1]]];
    assert.deepEqual(line[0], { x: from.x + 50, y: from.y });
    assert.deepEqual(line.at(-1), { x: to.x - 50, y: to.y });
    for (let k = 1; k < line.length; k++) {
      assert.ok(line[k].x >= 0 && line[k].x <= folded.width, "a line leaves the picture");
      for (const box of folded.nodes) assert.ok(!overlaps(line[k - 1], line[k], box), `line ${e} runs through a box`);
    }
  });
});

test("what fits, and what has one great box, is not folded", () => {
  const short = chain(8);
  assert.equal(fold(short, short.sizes, short.edges), short);
  const flow = chain(40);
  const sizes = flow.sizes.map((size, i) => (i === 20 ? { w: 3000, h: 40 } : size));
  assert.equal(fold(flow, sizes, flow.edges), flow);
});
