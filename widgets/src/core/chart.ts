/** One metric's chart: uPlot, its legend, its colours. */
import uPlot from "uplot";
import { type Mark, type Series, align, number, smooth } from "./curvestore.ts";
import { el } from "./model.ts";
import { curveStyle, mix } from "./palette.ts";
import type { Theme } from "./theme.ts";

export interface View {
  smoothing: number;
  log: boolean;
  marks: Mark[];
  theme: Theme;
}

/** Points drawn a series: about two a pixel of a wide chart. */
const DRAWN = 4000;

export class Chart {
  readonly element = el("section", { class: "nbflow-chart" });
  private readonly title = el("h4");
  private readonly host = el("div", { class: "nbflow-plot" });
  private readonly legend = el("div", { class: "nbflow-keys" });
  private readonly hidden = new Set<string>();
  private readonly values: HTMLElement[] = [];
  private plot: uPlot | null = null;
  /** What the plot was built for; a change rebuilds it. */
  private shape = "";
  private series: Series[] = [];
  private view: View | null = null;

  constructor(
    readonly metric: string,
    private readonly height: number,
  ) {
    this.title.textContent = metric;
    this.element.setAttribute("aria-label", `Chart of ${metric}`);
    this.element.append(this.title, this.host, this.legend);
  }

  update(series: Series[], view: View): void {
    this.series = series;
    this.view = view;
    const shape = JSON.stringify([series.map((s) => s.replica), view.log, view.smoothing > 0, view.theme]);
    if (this.plot === null || shape !== this.shape) {
      this.shape = shape;
      this.build();
    }
    this.plot?.setData(this.data());
    this.showValues(null);
  }

  resize(): void {
    const width = this.host.clientWidth;
    if (this.plot !== null && width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: this.height });
  }

  destroy(): void {
    this.plot?.destroy();
    this.plot = null;
  }

  /** With smoothing each series is two: the raw one, faint, and the smooth one. */
  private data(): uPlot.AlignedData {
    const { smoothing, log } = this.view as View;
    const [x, ...columns] = align(this.series, DRAWN);
    const shown = log ? columns.map((column) => column.map((v) => (v !== null && v > 0 ? v : null))) : columns;
    if (smoothing === 0) return [x, ...shown] as uPlot.AlignedData;
    return [x, ...shown.flatMap((column) => [column, smooth(column, smoothing)])] as uPlot.AlignedData;
  }

  private build(): void {
    this.plot?.destroy();
    const { log, smoothing, theme } = this.view as View;
    const lines: uPlot.Series[] = [{}];
    this.series.forEach((series, i) => {
      const { color, dash } = this.style(i);
      const show = !this.hidden.has(series.replica);
      const line = { stroke: color, dash, width: i === this.series.length - 1 ? 2 : 1.2, spanGaps: true, show, points: { show: this.few } };
      if (smoothing > 0) lines.push({ ...line, stroke: mix(color, theme.background, 0.35), width: 1, points: { show: false } });
      lines.push(line);
    });
    const axis = {
      stroke: theme.muted,
      font: `11px ${theme.font}`,
      grid: { stroke: mix(theme.border, theme.background, 0.6), width: 1 },
      ticks: { show: false },
    };
    const options: uPlot.Options = {
      width: Math.max(120, this.host.clientWidth),
      height: this.height,
      legend: { show: false },
      // Half of a label like 100,000 stands right of the last tick.
      padding: [10, 24, 0, 0],
      scales: { x: { time: false }, y: log ? { distr: 3, range: logRange } : { range: linearRange } },
      axes: [
        { ...axis, size: 30, gap: 5, values: (_, ticks) => ticks.map((v) => (Number.isInteger(v) ? v.toLocaleString("en") : "")) },
        { ...axis, size: 54, gap: 5, values: (_, ticks) => ticks.map((v) => (v === null ? "" : number(v))) },
      ],
      series: lines,
      cursor: { points: { size: 7 }, drag: { x: true, y: false }, sync: { key: `nbflow-${this.syncKey}` } },
      hooks: { setCursor: [(plot) => this.showValues(plot.cursor.idx ?? null)], draw: [(plot) => this.drawMarks(plot)] },
    };
    this.buildLegend();
    this.plot = new uPlot(options, this.data(), this.host);
  }

  /** Charts of one widget share their cursor. */
  syncKey = "";

  /** Single points without a line between them would be invisible. */
  private readonly few = (plot: uPlot): boolean => plot.data[0].length <= 40;

  private buildLegend(): void {
    this.values.length = 0;
    const keys = this.series.map((series, i) => {
        const { color, dash } = this.style(i);
        const name = series.replica || (this.series.length > 1 ? "mean" : this.metric);
        const value = el("b");
        this.values.push(value);
        const key = el("button", { type: "button", class: "nbflow-key", "aria-pressed": String(!this.hidden.has(series.replica)) });
        key.append(sample(color, dash), name, value);
        key.addEventListener("click", () => this.toggle(series.replica, key));
        return key;
    });
    this.legend.replaceChildren(...keys.reverse());
  }

  /** The mean is drawn last and has the first style. */
  private style(i: number): { color: string; dash: number[] } {
    return curveStyle(this.series.length - 1 - i, (this.view as View).theme.dark);
  }

  private toggle(replica: string, key: HTMLElement): void {
    if (!this.hidden.delete(replica)) this.hidden.add(replica);
    const show = !this.hidden.has(replica);
    key.setAttribute("aria-pressed", String(show));
    const width = (this.view as View).smoothing > 0 ? 2 : 1;
    const at = this.series.findIndex((series) => series.replica === replica);
    for (let i = 0; i < width; i++) this.plot?.setSeries(1 + at * width + i, { show });
  }

  /** Values at the cursor; the last ones without it. */
  private showValues(at: number | null): void {
    const data = this.plot?.data;
    this.series.forEach((series, i) => {
      const width = (this.view as View).smoothing > 0 ? 2 : 1;
      const column = data?.[1 + i * width];
      const value = at === null || column === undefined ? series.values.at(-1) : column[at];
      if (this.values[i] !== undefined) this.values[i].textContent = number(value as number | null | undefined);
    });
    const step = at === null ? this.series[0]?.steps.at(-1) : data?.[0][at];
    this.title.replaceChildren(this.metric, el("small", { text: step === undefined ? "" : `step ${step.toLocaleString("en")}` }));
  }

  private drawMarks(plot: uPlot): void {
    const { marks, theme } = this.view as View;
    const { ctx } = plot;
    const ratio = uPlot.pxRatio;
    ctx.save();
    ctx.font = `${10 * ratio}px ${theme.font}`;
    for (const { step, text } of marks) {
      const x = plot.valToPos(step, "x", true);
      if (x < plot.bbox.left || x > plot.bbox.left + plot.bbox.width) continue;
      ctx.strokeStyle = theme.muted;
      ctx.lineWidth = ratio;
      ctx.setLineDash([3 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(x, plot.bbox.top);
      ctx.lineTo(x, plot.bbox.top + plot.bbox.height);
      ctx.stroke();
      const { width } = ctx.measureText(text);
      const right = x + width + 8 * ratio > plot.bbox.left + plot.bbox.width;
      ctx.fillStyle = theme.background;
      ctx.globalAlpha = 0.75;
      ctx.fillRect(right ? x - width - 5 * ratio : x + 2 * ratio, plot.bbox.top + ratio, width + 4 * ratio, 13 * ratio);
      ctx.globalAlpha = 1;
      ctx.fillStyle = theme.text;
      ctx.textAlign = right ? "right" : "left";
      ctx.fillText(text, x + (right ? -4 : 4) * ratio, plot.bbox.top + 11 * ratio);
    }
    ctx.restore();
  }
}

/** uPlot's own range ends at powers of ten, which leaves most of a chart empty. */
function logRange(_: uPlot, low: number | null, high: number | null): [number, number] {
  if (low === null || high === null || !(low > 0)) return [0.1, 1];
  const rim = Math.max((high / low) ** 0.06, 1.05);
  return [low / rim, high * rim];
}

/** uPlot's own range of a flat curve is 0 to twice its value, which tells nothing. */
function linearRange(_: uPlot, low: number | null, high: number | null): [number, number] {
  if (low === null || high === null) return [0, 1];
  if (low === high) return [low - Math.max(Math.abs(low) * 0.05, 1e-6), high + Math.max(Math.abs(high) * 0.05, 1e-6)];
  return uPlot.rangeNum(low, high, 0.1, true) as [number, number];
}

/** A short line in the style of a curve. */
function sample(color: string, dash: number[]): SVGSVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", "22");
  svg.setAttribute("height", "8");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const set: Record<string, string> = { x1: "0", x2: "22", y1: "4", y2: "4", stroke: color, "stroke-width": "2.5" };
  if (dash.length > 0) set["stroke-dasharray"] = dash.join(" ");
  for (const [name, value] of Object.entries(set)) line.setAttribute(name, value);
  svg.append(line);
  return svg;
}
