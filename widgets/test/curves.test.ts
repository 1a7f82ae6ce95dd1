import assert from "node:assert/strict";
import test from "node:test";
import { CurveStore, align, clock, minMax, number, smooth } from "../src/core/curvestore.ts";

function message(store: CurveStore, from: number, values: number[], whole = false, replica = ""): boolean {
  const header = { metric: "loss", replica, n: values.length, from };
  return store.add([header], Float64Array.from(values, (_, i) => (from + i) * 10), Float32Array.from(values), whole);
}

test("points append, a repeated message adds nothing, a gap asks for a backfill", () => {
  const store = new CurveStore();
  assert.equal(message(store, 0, [3, 2]), true);
  assert.equal(message(store, 0, [3, 2, 1]), true);
  assert.deepEqual([...store.series.values()][0].values, [3, 2, 1]);
  assert.equal(message(store, 5, [9]), false);
  assert.equal(store.points, 3);
  assert.equal(message(store, 0, [3, 2, 1, 0, 0, 9], true), true);
  assert.deepEqual([...store.series.values()][0].steps, [0, 10, 20, 30, 40, 50]);
});

test("one message carries several series one after the other", () => {
  const store = new CurveStore();
  const headers = [
    { metric: "loss", replica: "", n: 2, from: 0 },
    { metric: "accuracy", replica: "", n: 1, from: 0 },
  ];
  store.add(headers, Float64Array.of(1, 2, 1), Float32Array.of(5, 4, 0.5), false);
  assert.deepEqual([...store.metrics().keys()], ["loss", "accuracy"]);
  assert.deepEqual(store.metrics().get("accuracy")?.[0].values, [0.5]);
});

test("the mean is drawn last, whenever it came", () => {
  const store = new CurveStore();
  message(store, 0, [1], false, "worker:0");
  message(store, 0, [1]);
  message(store, 0, [1], false, "worker:1");
  assert.deepEqual(store.metrics().get("loss")?.map((s) => s.replica), ["worker:1", "worker:0", ""]);
});

test("a long series is thinned and keeps counting what it received", () => {
  const store = new CurveStore();
  for (let k = 0; k < 5; k++) message(store, k * 10_000, Array.from({ length: 10_000 }, (_, i) => (k === 2 && i === 77 ? 99 : 1)));
  const series = [...store.series.values()][0];
  assert.ok(series.values.length <= 40_000);
  assert.equal(series.received, 50_000);
  assert.ok(series.values.includes(99), "the extreme value is gone");
  assert.equal(series.steps.at(-1), 499_990);
});

test("min/max keeps ends, extremes, order and not-a-numbers", () => {
  const values = Array.from({ length: 1000 }, (_, i) => Math.sin(i));
  values[333] = 50;
  values[666] = Number.NaN;
  const kept = minMax(values, values, 60);
  assert.ok(kept.length <= 60);
  assert.ok([0, 333, 666, 999].every((i) => kept.includes(i)));
  assert.deepEqual(kept, [...new Set(kept)].sort((a, b) => a - b));
});

test("smoothing has no bias towards its start and keeps gaps", () => {
  const result = smooth([4, 4, null, 4], 0.9);
  assert.equal(result[2], null);
  for (const i of [0, 1, 3]) assert.ok(Math.abs((result[i] as number) - 4) < 1e-12);
  assert.deepEqual(smooth([1, 2, 3], 0), [1, 2, 3]);
});

test("series of different steps share one axis", () => {
  const store = new CurveStore();
  store.add([{ metric: "m", replica: "a", n: 2, from: 0 }], Float64Array.of(0, 20), Float32Array.of(1, 2), false);
  store.add([{ metric: "m", replica: "b", n: 2, from: 0 }], Float64Array.of(10, 20), Float32Array.of(5, Number.NaN), false);
  const [b, a] = store.metrics().get("m") ?? [];
  assert.deepEqual(align([a, b], 100), [[0, 10, 20], [1, null, 2], [null, 5, null]]);
});

test("numbers and times read well", () => {
  assert.deepEqual([0, 0.123456, 12345, 1234567, 0.0000123, null].map(number), ["0", "0.1235", "12350", "1.23e+6", "1.23e-5", "–"]);
  assert.equal(number(Number.NaN), "NaN");
  assert.deepEqual([0, 83, 3700].map(clock), ["0:00", "1:23", "1:01:40"]);
});
