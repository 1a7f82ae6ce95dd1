import assert from "node:assert/strict";
import test from "node:test";
import { gzipSync } from "node:zlib";
import { fit, zoomAt } from "../src/core/camera.ts";
import { Colouring } from "../src/core/colours.ts";
import { mix, swatch } from "../src/core/palette.ts";
import { type GraphJson, producer, shortDevice, specText, unpackGraph } from "../src/core/schema.ts";
import { Tree } from "../src/core/scopes.ts";
import cases from "./scopes.json";

test("a packed graph unpacks, from the middle of a buffer too", async () => {
  const packed = gzipSync(JSON.stringify(cases[1].graph));
  const around = new Uint8Array(packed.length + 7);
  around.set(packed, 3);
  assert.deepEqual(await unpackGraph(new DataView(around.buffer, 3, packed.length)), cases[1].graph);
  assert.deepEqual((await unpackGraph(new Uint8Array())).nodes, []);
});

test("inputs name their producers", () => {
  assert.deepEqual(["a/b", "^a/b", "a/b:1", "a:b", "a:b:12"].map(producer), ["a/b", "a/b", "a/b", "a:b", "a:b"]);
});

test("devices and specs are short", () => {
  assert.equal(shortDevice("/job:worker/task:1/gpu:0"), "worker:1/gpu:0");
  assert.equal(shortDevice("/job:ps"), "ps");
  assert.equal(specText({ shape: [null, 128], dtype: "float32" }), "float32 [?, 128]");
  assert.equal(specText({ shape: null, dtype: "int64" }), "int64 […]");
});

test("colours count what is below a scope and name it", () => {
  const tree = new Tree(cases.find((c) => c.name === "replicas")?.graph as unknown as GraphJson);
  const colouring = new Colouring(tree, "device");
  assert.deepEqual(colouring.categories.map((c) => [c.name, c.ops]), [["worker:0/cpu:0", 5], ["worker:1/cpu:0", 3]]);
  const series = tree.items.get("replica_*/");
  assert.ok(series);
  assert.equal(colouring.words(series), "2 devices");
  assert.deepEqual(colouring.of(series).map((share) => share.ops), [3, 3]);
  assert.equal(new Colouring(tree, "asked").categories[0].name, "not asked");
  assert.deepEqual(new Colouring(tree, "op").categories.map((c) => c.name), ["mul", "next", "sum"]);
});

test("the eighth colour is striped, and colours mix", () => {
  assert.equal(swatch(0).fill, swatch(7).fill);
  assert.deepEqual([swatch(0).striped, swatch(7).striped], [false, true]);
  assert.equal(mix("#ffffff", "rgb(0, 0, 0)", 0.5), "rgb(128, 128, 128)");
});

test("the camera fits a scene and zooms around a point", () => {
  const camera = fit({ w: 1000, h: 100 }, { w: 540, h: 400 }, 20);
  assert.equal(camera.scale, 0.5);
  assert.equal(camera.y + 50 * camera.scale, 200);
  const closer = zoomAt(camera, 100, 100, 2);
  assert.equal((100 - camera.x) / camera.scale, (100 - closer.x) / closer.scale);
});
