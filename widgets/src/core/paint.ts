/** Draws a scene on a canvas. Knows nothing of the model: everything comes in, nothing is kept. */
import type { Camera } from "./camera.ts";
import type { Category, Colouring } from "./colours.ts";
import type { Point, Size } from "./layered.ts";
import { type Box, HEADER, type Line, type Scene } from "./layout.ts";
import { mix } from "./palette.ts";
import type { Item, Tree } from "./scopes.ts";
import type { Theme } from "./theme.ts";

export interface Picture {
  tree: Tree;
  scene: Scene;
  camera: Camera;
  colouring: Colouring;
  theme: Theme;
  selected: Item | null;
  hovered: Item | null;
  /** Items that a search found; empty when there is none. */
  found: ReadonlySet<Item>;
  /** Lines between the selection and what it is connected to, wherever that is drawn. */
  links: Point[][];
}

const NAME = "600 12px";
const NOTE = "11px";
const SCOPE_HEIGHT = 46;
const OP_HEIGHT = 40;
const MAX_WIDTH = 210;
/** Below this scale, text is noise. */
const TEXT_SCALE = 0.32;
/** Below this one, boxes are dots: thousands of them are in view. */
const DOT_SCALE = 0.12;

/** How large a closed box must be for its two lines. */
export function measureItem(context: CanvasRenderingContext2D, font: string, item: Item, note: string): Size {
  context.font = `${NAME} ${font}`;
  const name = context.measureText(item.label).width;
  context.font = `${NOTE} ${font}`;
  const width = Math.max(name + (item.kind === "op" ? 0 : 20), context.measureText(note).width);
  return { w: Math.min(MAX_WIDTH, Math.max(64, Math.ceil(width) + 26)), h: item.kind === "op" ? OP_HEIGHT : SCOPE_HEIGHT };
}

/** The second line of a box. */
export function noteOf(item: Item, tree: Tree, colouring: Colouring): string {
  const stale = item.stale === 0 ? "" : item.kind === "op" ? "stale · " : `${item.stale} stale · `;
  const words = colouring.words(item);
  if (item.kind !== "op") return `${stale}${item.ops} ${item.ops === 1 ? "op" : "ops"} · ${words}`;
  const { op } = tree.nodes[item.node];
  return colouring.mode === "op" ? `${stale}${op}` : `${stale}${op} · ${words}`;
}

export function paint(context: CanvasRenderingContext2D, view: Size, ratio: number, picture: Picture): void {
  const { camera, scene, theme } = picture;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = theme.background;
  context.fillRect(0, 0, view.w, view.h);
  context.setTransform(ratio * camera.scale, 0, 0, ratio * camera.scale, ratio * camera.x, ratio * camera.y);
  const seen = {
    left: -camera.x / camera.scale,
    top: -camera.y / camera.scale,
    right: (view.w - camera.x) / camera.scale,
    bottom: (view.h - camera.y) / camera.scale,
  };
  const inView = (box: Box): boolean => box.x < seen.right && box.x + box.w > seen.left && box.y < seen.bottom && box.y + box.h > seen.top;
  for (const box of scene.boxes) if (box.open && inView(box)) paintOpen(context, box, picture);
  for (const line of scene.lines) {
    if (lineInView(line.points, seen)) paintLine(context, line, picture);
  }
  // Below the boxes: they run straight across, and would strike names out.
  for (const link of picture.links) paintLink(context, link, picture);
  for (const box of scene.boxes) if (!box.open && inView(box)) paintClosed(context, box, picture);
}

function lineInView(points: Point[], seen: { left: number; top: number; right: number; bottom: number }): boolean {
  const xs = points.map((p) => p.x);
  const ys = points.map((p) => p.y);
  return Math.min(...xs) < seen.right && Math.max(...xs) > seen.left && Math.min(...ys) < seen.bottom && Math.max(...ys) > seen.top;
}

function paintOpen(context: CanvasRenderingContext2D, box: Box, picture: Picture): void {
  const { theme, colouring } = picture;
  const tint = colouring.main(box.item).swatch.fill;
  context.beginPath();
  context.roundRect(box.x, box.y, box.w, box.h, 9);
  context.fillStyle = mix(tint, theme.background, 0.06);
  context.fill();
  outline(context, box, picture, mix(tint, theme.border, 0.45));
  shareBar(context, box, picture, 9);
  if (picture.camera.scale < TEXT_SCALE) return;
  context.font = `${NAME} ${theme.font}`;
  context.fillStyle = theme.text;
  context.textBaseline = "middle";
  context.fillText(cut(context, box.item.label, box.w - 40), box.x + 12, box.y + HEADER / 2 + 1);
  sign(context, box, theme, "−");
}

function paintClosed(context: CanvasRenderingContext2D, box: Box, picture: Picture): void {
  const { theme, colouring, tree, camera } = picture;
  const { item } = box;
  const category = colouring.main(item);
  const fill = mix(category.swatch.fill, theme.raised, theme.dark ? 0.2 : 0.16);
  const edge = mix(category.swatch.fill, theme.dark ? theme.text : "#303030", theme.dark ? 0.7 : 0.75);
  const op = item.kind === "op" ? tree.nodes[item.node].op : "";
  const transfer = op === "send" || op === "recv";
  const radius = transfer ? box.h / 2 : item.kind === "op" ? 5 : 8;
  const dim = picture.found.size > 0 && !picture.found.has(item);
  context.globalAlpha = dim ? 0.35 : 1;
  if (camera.scale < DOT_SCALE) {
    context.fillStyle = item === picture.selected ? theme.accent : mix(category.swatch.fill, theme.background, 0.7);
    context.fillRect(box.x, box.y, box.w, box.h);
    context.globalAlpha = 1;
    return;
  }
  for (const shift of item.kind === "series" ? [8, 4] : []) {
    context.beginPath();
    context.roundRect(box.x + shift, box.y - shift, box.w, box.h, radius);
    context.fillStyle = fill;
    context.fill();
    context.strokeStyle = edge;
    context.lineWidth = 1;
    context.stroke();
  }
  context.beginPath();
  context.roundRect(box.x, box.y, box.w, box.h, radius);
  context.fillStyle = fill;
  context.fill();
  outline(context, box, picture, edge, radius);
  if (item.stale > 0) hatch(context, box, theme, radius);
  if (item.kind === "op") stripe(context, box, category, transfer, radius);
  else shareBar(context, box, picture, radius);
  if (camera.scale >= TEXT_SCALE) label(context, box, picture);
  context.globalAlpha = 1;
}

function label(context: CanvasRenderingContext2D, box: Box, picture: Picture): void {
  const { theme, colouring, tree } = picture;
  const { item } = box;
  const pad = item.kind === "op" ? 14 : 12;
  const lift = item.kind === "op" ? 0 : -2;
  context.textBaseline = "middle";
  context.font = `${NAME} ${theme.font}`;
  context.fillStyle = theme.text;
  context.fillText(cut(context, item.label, box.w - pad - (item.kind === "op" ? 8 : 26)), box.x + pad, box.y + box.h / 2 - 8 + lift);
  context.font = `${NOTE} ${theme.font}`;
  context.fillStyle = mix(theme.text, theme.background, 0.74);
  context.fillText(cut(context, noteOf(item, tree, colouring), box.w - pad - 8), box.x + pad, box.y + box.h / 2 + 8 + lift);
  if (item.kind !== "op") sign(context, box, theme, "+");
}

/** The sign that opens or closes a scope; `signAt` finds it again for clicks. */
function sign(context: CanvasRenderingContext2D, box: Box, theme: Theme, text: string): void {
  const { x, y } = signAt(box);
  context.beginPath();
  context.arc(x, y, 6.5, 0, 2 * Math.PI);
  context.strokeStyle = theme.muted;
  context.lineWidth = 1;
  context.stroke();
  context.beginPath();
  context.moveTo(x - 3, y);
  context.lineTo(x + 3, y);
  if (text === "+") {
    context.moveTo(x, y - 3);
    context.lineTo(x, y + 3);
  }
  context.strokeStyle = theme.text;
  context.lineWidth = 1.2;
  context.stroke();
}

export function signAt(box: Box): Point {
  return { x: box.x + box.w - 14, y: box.y + 13 };
}

function outline(context: CanvasRenderingContext2D, box: Box, picture: Picture, color: string, radius = 9): void {
  const { theme, selected, hovered } = picture;
  context.lineWidth = 1;
  context.strokeStyle = color;
  if (box.item.stale > 0) context.setLineDash([5, 3]);
  if (box.item === hovered) {
    context.lineWidth = 2;
    context.strokeStyle = theme.text;
  }
  context.stroke();
  context.setLineDash([]);
  if (box.item === selected) {
    context.beginPath();
    context.roundRect(box.x - 3, box.y - 3, box.w + 6, box.h + 6, radius + 3);
    context.lineWidth = 2.5;
    context.strokeStyle = theme.accent;
    context.stroke();
  }
}

/** The colour of an op: a stripe along its left side. */
function stripe(context: CanvasRenderingContext2D, box: Box, category: Category, transfer: boolean, radius: number): void {
  context.save();
  context.beginPath();
  context.roundRect(box.x + 0.5, box.y + 0.5, box.w - 1, box.h - 1, radius);
  context.clip();
  fillSwatch(context, category, box.x, box.y, transfer ? 10 : 6, box.h);
  context.restore();
}

/** The shares of a scope's categories: a bar along its lower side. */
function shareBar(context: CanvasRenderingContext2D, box: Box, picture: Picture, radius: number): void {
  context.save();
  context.beginPath();
  context.roundRect(box.x + 0.5, box.y + 0.5, box.w - 1, box.h - 1, radius);
  context.clip();
  let x = box.x;
  for (const { category, ops } of picture.colouring.of(box.item)) {
    const width = (box.w * ops) / box.item.ops;
    fillSwatch(context, category, x, box.y + box.h - 6, width, 6);
    x += width;
  }
  context.restore();
}

function fillSwatch(context: CanvasRenderingContext2D, category: Category, x: number, y: number, w: number, h: number): void {
  context.fillStyle = category.swatch.fill;
  context.fillRect(x, y, w, h);
  if (!category.swatch.striped) return;
  context.fillStyle = "rgba(0, 0, 0, 0.55)";
  const wide = w > h;
  for (let at = 2; at < (wide ? w : h); at += 6) {
    if (wide) context.fillRect(x + at, y, 2, h);
    else context.fillRect(x, y + at, w, 2);
  }
}

function hatch(context: CanvasRenderingContext2D, box: Box, theme: Theme, radius: number): void {
  context.save();
  context.beginPath();
  context.roundRect(box.x, box.y, box.w, box.h, radius);
  context.clip();
  context.beginPath();
  for (let at = -box.h; at < box.w; at += 9) {
    context.moveTo(box.x + at, box.y + box.h);
    context.lineTo(box.x + at + box.h, box.y);
  }
  context.globalAlpha *= 0.3;
  context.strokeStyle = theme.muted;
  context.lineWidth = 1.5;
  context.stroke();
  context.restore();
}

function paintLine(context: CanvasRenderingContext2D, line: Line, picture: Picture): void {
  const { theme, selected, hovered } = picture;
  const { edge } = line;
  const touches = (item: Item | null): boolean => item !== null && (edge.from === item || edge.to === item);
  const strong = touches(selected) || touches(hovered);
  const color = strong ? theme.accent : edge.crosses ? mix(theme.accent, theme.edge, 0.5) : theme.edge;
  context.strokeStyle = color;
  context.lineWidth = Math.min(5, 1.1 + 0.6 * Math.log2(Math.max(1, edge.tensors)));
  context.setLineDash(edge.tensors === 0 ? [2, 4] : edge.crosses ? [8, 4] : []);
  trace(context, line.points);
  context.stroke();
  context.setLineDash([]);
  arrow(context, line.points, color, 4 + context.lineWidth);
}

function paintLink(context: CanvasRenderingContext2D, points: Point[], picture: Picture): void {
  context.strokeStyle = picture.theme.accent;
  context.lineWidth = 1.6;
  context.setLineDash([4, 3]);
  trace(context, points);
  context.stroke();
  context.setLineDash([]);
  arrow(context, points, picture.theme.accent, 6);
}

/** A smooth way through the points that leaves and arrives level. */
function trace(context: CanvasRenderingContext2D, points: Point[]): void {
  context.beginPath();
  context.moveTo(points[0].x, points[0].y);
  for (let i = 1; i < points.length; i++) {
    const [a, b] = [points[i - 1], points[i]];
    const next = points[i + 1];
    // Level and upright pieces meet in round corners: lines between rows.
    if (a.x === b.x || a.y === b.y) {
      const turns = next !== undefined && (a.x === b.x ? b.y === next.y : b.x === next.x);
      if (!turns) context.lineTo(b.x, b.y);
      else context.arcTo(b.x, b.y, next.x, next.y, Math.min(7, reach(a, b) / 2, reach(b, next) / 2));
      continue;
    }
    const bend = (b.x - a.x) / 2;
    context.bezierCurveTo(a.x + bend, a.y, b.x - bend, b.y, b.x, b.y);
  }
}

/** The length of a level or upright piece. */
function reach(a: Point, b: Point): number {
  return Math.abs(b.x - a.x) + Math.abs(b.y - a.y);
}

function arrow(context: CanvasRenderingContext2D, points: Point[], color: string, size: number): void {
  const end = points[points.length - 1];
  const back = points[points.length - 2].x <= end.x ? -size : size;
  context.beginPath();
  context.moveTo(end.x, end.y);
  context.lineTo(end.x + back, end.y - size * 0.5);
  context.lineTo(end.x + back, end.y + size * 0.5);
  context.closePath();
  context.fillStyle = color;
  context.fill();
}

/** `text` cut to `width` with an ellipsis. */
export function cut(context: CanvasRenderingContext2D, text: string, width: number): string {
  if (context.measureText(text).width <= width) return text;
  let [low, high] = [0, text.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (context.measureText(`${text.slice(0, middle)}…`).width <= width) low = middle;
    else high = middle - 1;
  }
  return `${text.slice(0, low)}…`;
}
