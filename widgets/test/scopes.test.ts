import assert from "node:assert/strict";
import test from "node:test";
import type { GraphJson } from "../src/core/schema.ts";
import { Tree, reveal, visible } from "../src/core/scopes.ts";
import { search } from "../src/core/search.ts";
import cases from "./scopes.json";

type Row = [string, string, number, number, boolean];
interface Expected {
  levels: Record<string, unknown>;
  initial: string[];
}

for (const { name, graph, expected } of cases as unknown as { name: string; graph: GraphJson; expected: Expected }[]) {
  test(`scope tree, ${name}: the same as in Python`, () => {
    const tree = new Tree(graph);
    const levels: Record<string, unknown> = {};
    for (const item of tree.items.values()) {
      if (item.kind === "op") continue;
      const level = tree.level(item);
      const rows = (edges: typeof level.edges): Row[] =>
        edges
          .map((edge): Row => [edge.from.id, edge.to.id, edge.tensors, edge.controls, edge.crosses])
          .sort((a, b) => (`${a[0]}\n${a[1]}` < `${b[0]}\n${b[1]}` ? -1 : 1));
      const { label, kind, ops, stale, depth } = item;
      const ids = (items: typeof level.main): string[] => items.map((child) => child.id);
      levels[item.id] = { label, kind, ops, stale, depth, main: ids(level.main), aux: ids(level.aux), edges: rows(level.edges), hidden: rows(level.hidden) };
    }
    assert.deepEqual(levels, expected.levels);
    assert.deepEqual(tree.initialExpansion(), expected.initial);
  });
}

const replicas = new Tree(cases.find((c) => c.name === "replicas")?.graph as unknown as GraphJson);

test("an op is drawn as its outermost closed scope", () => {
  const op = replicas.leaves.find((leaf) => leaf.id === "replica_0/a/m");
  assert.ok(op);
  assert.equal(visible(op, new Set()).id, "replica_*/");
  assert.equal(visible(op, new Set(["replica_*/"])).id, "replica_0/");
  assert.equal(visible(op, new Set(["replica_0/"])).id, "replica_*/");
  assert.equal(visible(op, reveal(op, new Set())), op);
});

test("search wants every word, in names or kinds of ops, short names first", () => {
  assert.deepEqual(search(replicas, "SUM").map((item) => item.id), ["sum"]);
  assert.deepEqual(search(replicas, "replica_1 mul").map((item) => item.id), ["replica_1/b", "replica_1/a/m", "replica_1/a/n"]);
  assert.deepEqual(search(replicas, "  "), []);
  assert.deepEqual(search(replicas, "nowhere"), []);
});

test("ten thousand nodes become a tree well within a second", () => {
  const nodes = Array.from({ length: 10_000 }, (_, i) => {
    const block = Math.floor(i / 20);
    const inputs = i === 0 ? [] : [`net/block_${Math.floor((i - 1) / 20)}/op${(i - 1) % 20}`];
    return { ...cases[1].graph.nodes[0], name: `net/block_${block}/op${i % 20}`, op: "add", inputs };
  });
  const start = performance.now();
  const tree = new Tree({ schema: "nbflow.graph.v1", nodes } as unknown as GraphJson);
  tree.level(tree.root);
  assert.equal(tree.root.ops, 10_000);
  assert.ok(performance.now() - start < 3000, "a tree of 10,000 nodes took over 3 s");
});
