/**
 * Folds a flow that is much wider than high into rows, as text is wrapped. Pure; `layout.py` has the same in Python.
 *
 * Lines within a row stay as they are. A line to another row leaves its column, runs through the free lanes between
 * rows and beside them, and meets its box from the usual side.
 */
import type { Point, Size } from "./layered.ts";

export interface Flow {
  nodes: Point[];
  lines: Point[][];
  width: number;
  height: number;
}

/** Narrower flows fit a notebook as they are. */
const WIDE = 1500;
const FLAT = 4;
/** Width to height of a notebook's output. */
const ASPECT = 2.4;
const ROW_GAP = 46;
const LANE = 16;

export function fold(flow: Flow, sizes: readonly Size[], edges: readonly [number, number][]): Flow {
  if (flow.width < WIDE || flow.width < FLAT * flow.height) return flow;
  const cuts = cutColumns(flow, sizes);
  if (cuts.length < 2) return flow;
  const rowOf = (x: number): number => {
    let row = 0;
    while (row + 1 < cuts.length && x >= cuts[row + 1]) row++;
    return row;
  };
  const rows = flow.nodes.map((node) => rowOf(node.x));
  const inside = flow.lines.map((_, e) => rows[edges[e][0]] === rows[edges[e][1]]);
  const low = cuts.map(() => Infinity);
  const high = cuts.map(() => -Infinity);
  const extend = (row: number, top: number, bottom: number): void => {
    low[row] = Math.min(low[row], top);
    high[row] = Math.max(high[row], bottom);
  };
  flow.nodes.forEach((node, i) => extend(rows[i], node.y - sizes[i].h / 2, node.y + sizes[i].h / 2));
  flow.lines.forEach((line, e) => inside[e] && line.forEach((p) => extend(rows[edges[e][0]], p.y, p.y)));
  const tops: number[] = [];
  cuts.forEach((_, row) => tops.push(row === 0 ? 0 : tops[row - 1] + high[row - 1] - low[row - 1] + ROW_GAP));
  const margin = 2 * LANE;
  const move = (p: Point, row: number): Point => ({ x: p.x - cuts[row] + margin, y: p.y - low[row] + tops[row] });
  const lane = (below: number): number => tops[below] + high[below] - low[below] + ROW_GAP / 2;
  const lines = flow.lines.map((line, e) => {
    const [from, to] = [rows[edges[e][0]], rows[edges[e][1]]];
    if (inside[e]) return line.map((p) => move(p, from));
    // Neighbouring lines keep a little apart.
    const shift = ((e % 5) - 2) * 3;
    return around(move(line[0], from), move(line[line.length - 1], to), from, to, lane, shift);
  });
  const nodes = flow.nodes.map((node, i) => move(node, rows[i]));
  const width = Math.max(...nodes.map((node, i) => node.x + sizes[i].w / 2)) + margin;
  const last = cuts.length - 1;
  return { nodes, lines, width, height: tops[last] + high[last] - low[last] };
}

/** Where each row begins: the left end of its first column. Empty when rows would not help. */
function cutColumns(flow: Flow, sizes: readonly Size[]): number[] {
  const columns = flow.nodes.map((node, i) => [node.x - sizes[i].w / 2, node.x + sizes[i].w / 2]).sort((a, b) => a[0] - b[0]);
  const count = Math.max(2, Math.round(Math.sqrt(flow.width / (flow.height + ROW_GAP) / ASPECT)));
  const target = flow.width / count;
  // A box as wide as a good part of a row would stand alone on it.
  if (Math.max(...columns.map(([left, right]) => right - left)) > target / 2) return [];
  const cuts = [columns[0][0]];
  let reach = columns[0][1];
  for (const [left, right] of columns) {
    // Only a free lane before this box is a place to cut.
    if (left >= reach + LANE && right - cuts[cuts.length - 1] > target * 1.05) cuts.push(left - LANE / 2);
    reach = Math.max(reach, right);
  }
  return cuts;
}

function around(start: Point, end: Point, from: number, to: number, lane: (below: number) => number, shift: number): Point[] {
  const down = to > from;
  const side = down ? LANE : -LANE;
  const leave = lane(down ? from : from - 1) + shift;
  const arrive = lane(down ? to - 1 : to) + shift;
  const [a, b] = [start.x + side + shift, end.x - side + shift];
  const beside = leave === arrive ? [] : [{ x: LANE / 2 + shift, y: leave }, { x: LANE / 2 + shift, y: arrive }];
  return [start, { x: a, y: start.y }, { x: a, y: leave }, ...beside, { x: b, y: arrive }, { x: b, y: end.y }, end];
}
