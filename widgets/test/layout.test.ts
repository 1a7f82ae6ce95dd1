import assert from "node:assert/strict";
import test from "node:test";
import { isotonic, layered, ranks } from "../src/core/layered.ts";
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
