/** The curves of a training run: live while it runs, restored from the saved notebook afterwards. */
import { Chart, type View } from "./core/chart.ts";
import { CurveStore, type Mark, type RunStatus, type SeriesHeader, clock, number } from "./core/curvestore.ts";
import { Cleanup, type Model, el } from "./core/model.ts";
import { readTheme, watchTheme } from "./core/theme.ts";

/** All points, at most 2000 a series: what a saved notebook restores the curves from. */
interface Snapshot {
  series?: SeriesHeader[];
  marks?: Mark[];
  steps?: DataView;
  values?: DataView;
}

interface Traits {
  uid: string;
  title: string;
  run_status: RunStatus;
  snapshot: Snapshot;
  smoothing: number;
  log_scale: boolean;
  can_pause: boolean;
  height: number;
}
/** Buffers: all steps as float64, then all values as float32, in the order of `series`. */
interface PointsMessage {
  type: "points";
  series: SeriesHeader[];
  marks: Mark[];
  status: RunStatus;
  /** Replaces what is there instead of adding to it. */
  whole: boolean;
}
interface Request {
  type: "stop" | "pause" | "backfill";
}
type CurvesModel = Model<Traits, Request, PointsMessage>;

const OVER = new Set(["done", "stopped", "failed"]);
const SYMBOLS: Record<string, string> = {
  starting: "◌",
  running: "▶",
  recovering: "↻",
  paused: "❚❚",
  done: "✓",
  stopped: "■",
  failed: "✕",
};
/** Screen readers hear the state at most this often. */
const SPEAK_MS = 10_000;

/**
 * A run's data outlives its views, which come and go with every re-render. It is kept by the model's own id: hosts
 * hand `initialize` and `render` different objects for one model.
 */
interface Run {
  store: CurveStore;
  status: RunStatus;
  listeners: Set<() => void>;
}
const runs = new Map<string, Run>();
let serial = 0;

/** The bytes of a buffer, moved to where its elements may begin. */
function aligned(view: DataView): ArrayBuffer {
  return (view.buffer as ArrayBuffer).slice(view.byteOffset, view.byteOffset + view.byteLength);
}

function initialize({ model }: { model: CurvesModel }): () => void {
  const uid = model.get("uid");
  const run: Run = { store: new CurveStore(), status: model.get("run_status"), listeners: new Set() };
  runs.set(uid, run);
  const changed = (): void => run.listeners.forEach((listener) => listener());
  const restore = (): void => {
    const { series, marks, steps, values } = model.get("snapshot");
    if (series === undefined || steps === undefined || values === undefined) return;
    run.store.add(series, new Float64Array(aligned(steps)), new Float32Array(aligned(values)), true);
    run.store.marks = marks ?? [];
    changed();
  };
  restore();
  model.on("change:snapshot", restore);
  model.on("change:run_status", () => {
    run.status = model.get("run_status");
    changed();
  });
  model.on("msg:custom", (message, buffers) => {
    if (message.type !== "points") return;
    run.status = message.status;
    run.store.marks = message.marks;
    const [steps, values] = [new Float64Array(aligned(buffers[0])), new Float32Array(aligned(buffers[1]))];
    if (!run.store.add(message.series, steps, values, message.whole)) model.send({ type: "backfill" });
    changed();
  });
  // Points sent before this module was loaded are lost to it: ask for all of them.
  if (!OVER.has(run.status.status)) model.send({ type: "backfill" });
  return () => runs.delete(uid);
}

class CurvesWidget {
  private readonly cleanup = new Cleanup();
  private readonly charts = new Map<string, Chart>();
  private readonly key = String(serial++);
  private readonly badge = el("span", { class: "nbflow-badge" });
  private readonly progress = el("div", { class: "nbflow-progress", role: "progressbar", "aria-valuemin": 0, "aria-label": "Steps" });
  private readonly fill = el("i");
  private readonly counts = el("span", { class: "nbflow-counts" });
  private readonly detail = el("div", { class: "nbflow-detail", hidden: true });
  private readonly stop = el("button", { class: "nbflow-stop", type: "button", text: "Stop" });
  private readonly pause = el("button", { class: "nbflow-pause", type: "button", text: "Pause" });
  private readonly slider = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, "aria-label": "Smoothing" });
  private readonly weight = el("output");
  private readonly log = el("input", { type: "checkbox" });
  private readonly grid = el("div", { class: "nbflow-grid" });
  private readonly empty = el("p", { class: "nbflow-empty", text: "waiting for the first values" });
  private readonly live = el("div", { class: "nbflow-spoken", "aria-live": "polite" });
  private theme;
  private frame = 0;
  private spoken = 0;
  private asked = "";

  constructor(
    private readonly model: CurvesModel,
    private readonly root: HTMLElement,
    private readonly run: Run,
  ) {
    root.className = "nbflow nbflow-curves";
    root.dataset.lmSuppressShortcuts = "true";
    this.build();
    this.theme = readTheme(root);
    this.wire();
    this.showControls();
    this.draw();
  }

  destroy(): void {
    cancelAnimationFrame(this.frame);
    this.cleanup.run();
    for (const chart of this.charts.values()) chart.destroy();
  }

  private build(): void {
    this.progress.append(this.fill);
    const title = el("span", { class: "nbflow-title", text: this.model.get("title") });
    const head = el("div", { class: "nbflow-bar" }, this.badge, title, this.progress, this.counts, this.pause, this.stop);
    const tools = el(
      "div",
      { class: "nbflow-tools" },
      el("label", { class: "nbflow-field" }, el("span", { text: "Smoothing" }), this.slider, this.weight),
      el("label", { class: "nbflow-field" }, this.log, el("span", { text: "Log scale" })),
    );
    this.root.append(head, this.detail, this.grid, this.empty, tools, this.live);
  }

  private wire(): void {
    const { cleanup, model, root } = this;
    const draw = (): void => this.draw();
    this.run.listeners.add(draw);
    cleanup.add(() => this.run.listeners.delete(draw));
    const controls = (): void => {
      this.showControls();
      this.draw();
    };
    for (const name of ["smoothing", "log_scale"] as const) {
      model.on(`change:${name}`, controls);
      cleanup.add(() => model.off(`change:${name}`, controls));
    }
    cleanup.listen(this.stop, "click", () => this.ask("stop"));
    cleanup.listen(this.pause, "click", () => this.ask("pause"));
    cleanup.listen(this.slider, "input", () => this.keep("smoothing", Number(this.slider.value)));
    cleanup.listen(this.log, "change", () => this.keep("log_scale", this.log.checked));
    // JupyterLab's command mode would act on these keys.
    cleanup.listen(root, "keydown", (event) => event.stopPropagation());
    cleanup.add(
      watchTheme(() => {
        this.theme = readTheme(root);
        this.draw();
      }),
    );
    let inPage = false;
    const size = new ResizeObserver(() => {
      this.charts.forEach((chart) => chart.resize());
      if (inPage || !root.isConnected) return;
      // Only a view in the page has a theme.
      inPage = true;
      this.theme = readTheme(root);
      this.draw();
    });
    size.observe(root);
    cleanup.add(() => size.disconnect());
  }

  private keep<K extends "smoothing" | "log_scale">(name: K, value: Traits[K]): void {
    this.model.set(name, value);
    this.model.save_changes();
  }

  private ask(type: "stop" | "pause"): void {
    this.asked = type;
    this.model.send({ type });
    this.draw();
  }

  private showControls(): void {
    const smoothing = this.model.get("smoothing");
    this.slider.value = String(smoothing);
    this.weight.textContent = smoothing === 0 ? "off" : smoothing.toFixed(2);
    this.log.checked = this.model.get("log_scale");
  }

  private draw(): void {
    if (this.frame !== 0) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.showStatus();
      this.showCharts();
    });
  }

  private showStatus(): void {
    const { status, step, steps, detail, rate, eta_s } = this.run.status;
    const over = OVER.has(status);
    if (over || (this.asked === "pause" && status === "paused")) this.asked = "";
    this.root.dataset.status = status;
    this.root.dataset.step = String(step);
    this.root.dataset.steps = String(steps);
    this.badge.textContent = `${SYMBOLS[status] ?? "·"} ${status}`;
    this.badge.dataset.status = status;
    const share = steps > 0 ? Math.min(1, step / steps) : 0;
    this.fill.style.width = `${share * 100}%`;
    this.progress.setAttribute("aria-valuenow", String(step));
    this.progress.setAttribute("aria-valuemax", String(steps));
    const parts = [steps > 0 ? `${step.toLocaleString("en")} / ${steps.toLocaleString("en")}` : `step ${step.toLocaleString("en")}`];
    if (rate > 0) parts.push(`${number(Number(rate.toPrecision(3)))} steps/s`);
    if (!over && eta_s >= 0) parts.push(`${clock(eta_s)} left`);
    this.counts.textContent = parts.join(" · ");
    this.detail.hidden = detail === "";
    this.detail.textContent = detail;
    this.detail.dataset.status = status;
    this.stop.disabled = over || this.asked === "stop";
    this.stop.textContent = this.asked === "stop" ? "Stopping…" : "Stop";
    this.pause.hidden = !this.model.get("can_pause");
    this.pause.disabled = over || this.asked !== "";
    this.pause.textContent = status === "paused" ? "Resume" : "Pause";
    this.speak(`${status}, ${parts.join(", ")}`, over);
  }

  private speak(text: string, now: boolean): void {
    const at = performance.now();
    if ((!now && at - this.spoken < SPEAK_MS) || this.live.textContent === text) return;
    this.spoken = at;
    this.live.textContent = text;
  }

  private showCharts(): void {
    const { store } = this.run;
    const metrics = store.metrics();
    for (const [metric, chart] of this.charts) {
      if (metrics.has(metric)) continue;
      chart.destroy();
      chart.element.remove();
      this.charts.delete(metric);
    }
    const view: View = {
      smoothing: this.model.get("smoothing"),
      log: this.model.get("log_scale"),
      marks: store.marks,
      theme: this.theme,
    };
    for (const metric of metrics.keys()) {
      if (this.charts.has(metric)) continue;
      const chart = new Chart(metric, this.model.get("height"));
      chart.syncKey = this.key;
      this.charts.set(metric, chart);
      this.grid.append(chart.element);
    }
    for (const [metric, series] of metrics) this.charts.get(metric)?.update(series, view);
    // A new chart narrows its neighbours.
    this.charts.forEach((chart) => chart.resize());
    this.empty.hidden = metrics.size > 0;
    this.empty.textContent = OVER.has(this.run.status.status) ? "no values were reported" : "waiting for the first values";
    this.root.dataset.points = String(store.points);
    this.root.dataset.ready = "true";
  }
}

function render({ model, el: root }: { model: CurvesModel; el: HTMLElement }): () => void {
  // Hosts without `initialize` get the same here.
  if (!runs.has(model.get("uid"))) initialize({ model });
  const widget = new CurvesWidget(model, root, runs.get(model.get("uid")) as Run);
  return () => widget.destroy();
}

export default { initialize, render };
