/** Pan and zoom. The camera is a value; the listeners that move it are undone by the clean-up. */
import type { Cleanup } from "./model.ts";
import type { Size } from "./layered.ts";

export interface Camera {
  /** Screen = graph · scale + (x, y). */
  x: number;
  y: number;
  scale: number;
}

const MIN = 0.02;
const MAX = 3;
/** Whole graphs are not blown up beyond this. */
const FIT_MAX = 1.35;

/** Pixels around a scene that is shown whole. */
const MARGIN = 22;

/** How high a view of width `width` must be for `fit` to lose nothing to its height. */
export function heightOf(scene: Size, width: number): number {
  if (scene.w <= 0) return 0;
  return Math.ceil(scene.h * Math.min((width - 2 * MARGIN) / scene.w, FIT_MAX) + 2 * MARGIN);
}

/** The camera that shows all of `scene` in `view`. */
export function fit(scene: Size, view: Size, margin = MARGIN): Camera {
  if (scene.w <= 0 || scene.h <= 0) return { x: margin, y: margin, scale: 1 };
  const scale = Math.max(MIN, Math.min((view.w - 2 * margin) / scene.w, (view.h - 2 * margin) / scene.h, FIT_MAX));
  return { x: (view.w - scene.w * scale) / 2, y: (view.h - scene.h * scale) / 2, scale };
}

/** Zooms by `factor` and keeps the point under (px, py) where it is. */
export function zoomAt(camera: Camera, px: number, py: number, factor: number): Camera {
  const scale = Math.min(MAX, Math.max(MIN, camera.scale * factor));
  const ratio = scale / camera.scale;
  return { x: px - (px - camera.x) * ratio, y: py - (py - camera.y) * ratio, scale };
}

/** Puts the graph point (x, y) into the middle of the view. */
export function centre(camera: Camera, x: number, y: number, view: Size, scale = camera.scale): Camera {
  return { x: view.w / 2 - x * scale, y: view.h / 2 - y * scale, scale };
}

export interface Gestures {
  camera(): Camera;
  move(camera: Camera): void;
  /** Position in graph units; `twice` for a double click. */
  click(x: number, y: number, twice: boolean): void;
  hover(x: number, y: number): void;
  /** Whether a bare wheel may zoom: only when the widget has the focus, so notebooks scroll. */
  focused(): boolean;
}

/** Mouse, pen and touch on `canvas`. */
export function attachGestures(canvas: HTMLCanvasElement, gestures: Gestures, cleanup: Cleanup): void {
  const pointers = new Map<number, { x: number; y: number }>();
  let travelled = 0;
  const local = (event: MouseEvent): { x: number; y: number } => {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  const graph = (p: { x: number; y: number }): [number, number] => {
    const camera = gestures.camera();
    return [(p.x - camera.x) / camera.scale, (p.y - camera.y) / camera.scale];
  };
  cleanup.listen(canvas, "pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, local(event));
    if (pointers.size === 1) travelled = 0;
  });
  cleanup.listen(canvas, "pointermove", (event) => {
    const now = local(event);
    const last = pointers.get(event.pointerId);
    if (last === undefined) {
      gestures.hover(...graph(now));
      return;
    }
    const camera = gestures.camera();
    travelled += Math.hypot(now.x - last.x, now.y - last.y);
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    pointers.set(event.pointerId, now);
    if (other !== undefined) {
      const factor = Math.hypot(now.x - other.x, now.y - other.y) / Math.max(1, Math.hypot(last.x - other.x, last.y - other.y));
      gestures.move(zoomAt(camera, (now.x + other.x) / 2, (now.y + other.y) / 2, factor));
    } else if (travelled > 3) {
      gestures.move({ ...camera, x: camera.x + now.x - last.x, y: camera.y + now.y - last.y });
    }
  });
  const release = (event: PointerEvent): void => {
    if (pointers.delete(event.pointerId) && travelled <= 3 && event.type === "pointerup") {
      gestures.click(...graph(local(event)), false);
    }
  };
  cleanup.listen(canvas, "pointerup", release);
  cleanup.listen(canvas, "pointercancel", release);
  cleanup.listen(canvas, "dblclick", (event) => gestures.click(...graph(local(event)), true));
  const wheel = (event: WheelEvent): void => {
    if (!event.ctrlKey && !event.metaKey && !gestures.focused()) return;
    event.preventDefault();
    const { x, y } = local(event);
    gestures.move(zoomAt(gestures.camera(), x, y, Math.exp(-event.deltaY * (event.ctrlKey ? 0.008 : 0.002))));
  };
  cleanup.listen(canvas, "wheel", wheel, { passive: false });
}
