/** The points of a run's metrics, and what a chart makes of them. Pure. */

export interface SeriesHeader {
  metric: string;
  /** Empty for the mean over replicas. */
  replica: string;
  /** Points here; `from` is the index of the first among all points of this series. */
  n: number;
  from: number;
}

export interface Mark {
  step: number;
  text: string;
}

export interface RunStatus {
  status: string;
  step: number;
  steps: number;
  detail: string;
  /** Steps a second; 0 when unknown. */
  rate: number;
  /** Seconds left; negative when unknown. */
  eta_s: number;
}

/** Points kept a series in the browser; beyond it, every second pair is thinned to its extremes. */
const KEEP = 40_000;

export class Series {
  steps: number[] = [];
  values: number[] = [];
  /** Points received, thinned ones included: where the next message should go on. */
  received = 0;

  constructor(
    readonly metric: string,
    readonly replica: string,
  ) {}
}

export class CurveStore {
  readonly series = new Map<string, Series>();
  marks: Mark[] = [];
  /** Rises with every change. */
  version = 0;

  /** Adds a message's points. Returns false when earlier points are missing and a backfill is needed. */
  add(headers: SeriesHeader[], steps: Float64Array, values: Float32Array, whole: boolean): boolean {
    let at = 0;
    let complete = true;
    for (const { metric, replica, n, from } of headers) {
      const key = `${metric}\n${replica}`;
      let series = this.series.get(key);
      if (series === undefined) this.series.set(key, (series = new Series(metric, replica)));
      if (whole) {
        series.steps = [...steps.subarray(at, at + n)];
        series.values = [...values.subarray(at, at + n)];
        series.received = from + n;
      } else if (from > series.received) {
        complete = false;
      } else {
        // A backfill may already hold the first of these.
        const skip = Math.min(n, series.received - from);
        for (let i = at + skip; i < at + n; i++) {
          series.steps.push(steps[i]);
          series.values.push(values[i]);
        }
        series.received = from + n > series.received ? from + n : series.received;
        if (series.steps.length > KEEP) thinHalf(series);
      }
      at += n;
    }
    this.version++;
    return complete;
  }

  get points(): number {
    let sum = 0;
    for (const series of this.series.values()) sum += series.steps.length;
    return sum;
  }

  /** Metric names in the order they came; each with its series in drawing order, the mean last and on top. */
  metrics(): Map<string, Series[]> {
    const result = new Map<string, Series[]>();
    for (const series of this.series.values()) {
      const list = result.get(series.metric) ?? [];
      if (series.replica === "") list.push(series);
      else list.unshift(series);
      result.set(series.metric, list);
    }
    // A mean that came first has replicas behind it now.
    for (const list of result.values()) list.sort((a, b) => Number(a.replica === "") - Number(b.replica === ""));
    return result;
  }
}

function thinHalf(series: Series): void {
  const kept = minMax(series.steps, series.values, KEEP / 2);
  series.steps = kept.map((i) => series.steps[i]);
  series.values = kept.map((i) => series.values[i]);
}

/** Indices of at most `limit` points that keep the least and the greatest value of each stretch, in order. */
export function minMax(steps: ArrayLike<number>, values: ArrayLike<number>, limit: number): number[] {
  const n = steps.length;
  if (n <= limit) return Array.from({ length: n }, (_, i) => i);
  const buckets = Math.max(1, Math.floor((limit - 2) / 2));
  const kept = [0];
  for (let bucket = 0; bucket < buckets; bucket++) {
    const from = 1 + Math.floor((bucket * (n - 2)) / buckets);
    const to = 1 + Math.floor(((bucket + 1) * (n - 2)) / buckets);
    if (to <= from) continue;
    let [low, high] = [from, from];
    for (let i = from; i < to; i++) {
      // Not a number is news: it must not vanish.
      if (values[i] < values[low] || (Number.isNaN(values[i]) && !Number.isNaN(values[low]))) low = i;
      if (values[i] > values[high]) high = i;
    }
    kept.push(...(low === high ? [low] : [Math.min(low, high), Math.max(low, high)]));
  }
  kept.push(n - 1);
  return kept;
}

/** Exponential moving average without the bias towards its start; gaps stay gaps. `weight` in [0, 1). */
export function smooth(values: readonly (number | null)[], weight: number): (number | null)[] {
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    if (value === null || !Number.isFinite(value)) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/** One x axis for several series: the union of their steps, null where a series has no point. */
export function align(series: readonly Series[], limit: number): [number[], ...(number | null)[][]] {
  const kept = series.map(({ steps, values }) => minMax(steps, values, limit));
  const x = [...new Set(series.flatMap(({ steps }, s) => kept[s].map((i) => steps[i])))].sort((a, b) => a - b);
  const at = new Map(x.map((step, i) => [step, i]));
  const columns = series.map(({ steps, values }, s) => {
    const column = new Array<number | null>(x.length).fill(null);
    for (const i of kept[s]) column[at.get(steps[i]) as number] = Number.isFinite(values[i]) ? values[i] : null;
    return column;
  });
  return [x, ...columns];
}

/** 0.0012345 → `0.00123`; 123456 → `1.23e+5`. */
export function number(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-4)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/** 83 → `1:23`; 3700 → `1:01:40`. */
export function clock(seconds: number): string {
  const total = Math.max(0, Math.round(seconds));
  const pad = (value: number): string => String(value).padStart(2, "0");
  const [h, m, s] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  return h > 0 ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}
