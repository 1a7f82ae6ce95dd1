/** The cluster view: one row a worker. */
import { Cleanup, type Model, el } from "./core/model.ts";
import { amount } from "./core/details.ts";
import { compare } from "./core/colours.ts";
import { shortDevice } from "./core/schema.ts";

/** Absent or null values are unknown. */
interface WorkerRecord {
  worker: string;
  state: string;
  address?: string | null;
  pid?: number | null;
  devices?: string[] | null;
  incarnation?: string | number | null;
  versions?: Record<string, string> | null;
  rtt_ms?: number | null;
  memory_bytes?: number | null;
  cpu_percent?: number | null;
  detail?: string | null;
}
interface Traits {
  title: string;
  workers: WorkerRecord[];
}
type ClusterModel = Model<Traits, never, never>;

const SYMBOLS: Record<string, string> = { joining: "◌", ready: "●", busy: "▶", suspect: "?", lost: "✕", left: "○" };

interface Column {
  title: string;
  cell(record: WorkerRecord): string;
  number?: boolean;
}

const known = (value: number | null | undefined, text: (value: number) => string): string =>
  value === null || value === undefined ? "–" : text(value);

const COLUMNS: Column[] = [
  { title: "worker", cell: (r) => shortDevice(r.worker) },
  { title: "state", cell: (r) => `${SYMBOLS[r.state] ?? "·"} ${r.state}` },
  { title: "devices", cell: (r) => (r.devices ?? []).map((d) => shortDevice(d).split("/").slice(-1)[0]).join(", ") || "–" },
  { title: "address", cell: (r) => r.address || "–" },
  { title: "pid", cell: (r) => known(r.pid, String), number: true },
  { title: "RTT", cell: (r) => known(r.rtt_ms, (v) => `${v.toFixed(1)} ms`), number: true },
  { title: "CPU", cell: (r) => known(r.cpu_percent, (v) => `${Math.round(v)} %`), number: true },
  { title: "memory", cell: (r) => known(r.memory_bytes, (v) => `${amount(v)}B`), number: true },
  { title: "nbflow", cell: (r) => r.versions?.nbflow ?? "–" },
];

class ClusterWidget {
  private readonly cleanup = new Cleanup();
  private readonly title = el("span", { class: "nbflow-summary", "aria-live": "polite" });
  private readonly body = el("tbody");

  constructor(
    private readonly model: ClusterModel,
    private readonly root: HTMLElement,
  ) {
    root.className = "nbflow nbflow-cluster";
    const head = el("tr");
    for (const { title, number } of COLUMNS) head.append(el("th", { scope: "col", class: number ? "nbflow-number" : "", text: title }));
    const table = el("table", { "aria-label": "Workers" }, el("thead", {}, head), this.body);
    root.append(el("div", { class: "nbflow-bar" }, this.title), el("div", { class: "nbflow-scroll" }, table));
    const draw = (): void => this.draw();
    for (const name of ["workers", "title"] as const) {
      model.on(`change:${name}`, draw);
      this.cleanup.add(() => model.off(`change:${name}`, draw));
    }
    this.draw();
  }

  destroy(): void {
    this.cleanup.run();
  }

  private draw(): void {
    const records = [...this.model.get("workers")].sort((a, b) => compare(a.worker, b.worker));
    const states = new Map<string, number>();
    for (const { state } of records) states.set(state, (states.get(state) ?? 0) + 1);
    const counts = [...states].map(([state, count]) => `${count} ${state}`).join(", ");
    const workers = `${records.length} ${records.length === 1 ? "worker" : "workers"}`;
    const summary = [this.model.get("title"), records.length === 0 ? "no workers" : `${workers}: ${counts}`].filter(Boolean).join(" · ");
    // A live region speaks on every write.
    if (this.title.textContent !== summary) this.title.textContent = summary;
    this.body.replaceChildren(...records.flatMap((record) => this.rows(record)));
    this.root.dataset.workers = String(records.length);
    this.root.dataset.ready = "true";
  }

  private rows(record: WorkerRecord): HTMLElement[] {
    const row = el("tr", { "data-state": record.state, "data-worker": record.worker });
    COLUMNS.forEach(({ cell, number }, i) => {
      const attributes = { class: [number ? "nbflow-number" : "", i === 1 ? "nbflow-state" : ""].join(" ").trim(), text: cell(record) };
      row.append(i === 0 ? el("th", { scope: "row", ...attributes }) : el("td", attributes));
    });
    if (!record.detail) return [row];
    const detail = el("tr", { class: "nbflow-note", "data-state": record.state });
    detail.append(el("td"), el("td", { colspan: COLUMNS.length - 1, text: record.detail }));
    return [row, detail];
  }
}

function render({ model, el: root }: { model: ClusterModel; el: HTMLElement }): () => void {
  const widget = new ClusterWidget(model, root);
  return () => widget.destroy();
}

export default { render };
