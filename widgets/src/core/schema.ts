/** The graph as JSON (`nbflow.graph.v1`, see docs/architecture.md) and how the Python side packs it. */

export interface OutputSpec {
  shape: (number | null)[] | null;
  dtype: string;
}

export interface GraphNode {
  name: string;
  op: string;
  /** Tensor names (`node` or `node:index`); control inputs start with `^`. */
  inputs: string[];
  outputs: OutputSpec[];
  attrs: Record<string, string>;
  asked: string;
  /** null before placement. */
  device: string | null;
  why: string;
  cell: { id: string; label: string } | null;
  line: number;
  /** Why the node is stale; empty when it is not. */
  stale: string;
  flops: number;
  nbytes: number;
  /** Seconds on `device`, as the placer takes it, and as the last traced step had it; null or absent when not known. */
  predicted_s?: number | null;
  measured_s?: number | null;
}

export interface GraphJson {
  schema: string;
  nodes: GraphNode[];
}

/** Undoes gzip; `bytes` comes from the `graph` trait. */
export async function unpackGraph(bytes: DataView | Uint8Array): Promise<GraphJson> {
  if (bytes.byteLength === 0) return { schema: "nbflow.graph.v1", nodes: [] };
  const view = new Uint8Array(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength);
  const stream = new Blob([view]).stream().pipeThrough(new DecompressionStream("gzip"));
  return (await new Response(stream).json()) as GraphJson;
}

/** `^a/b` and `a/b:1` are outputs of the node `a/b`. */
export function producer(input: string): string {
  const name = input.startsWith("^") ? input.slice(1) : input;
  const colon = name.lastIndexOf(":");
  return colon > 0 && /^\d+$/.test(name.slice(colon + 1)) ? name.slice(0, colon) : name;
}

/** `/job:worker/task:1/gpu:0` → `worker:1/gpu:0`. */
export function shortDevice(device: string): string {
  return device.replace(/^\//, "").replace(/job:([^/]+)\/task:/, "$1:").replace(/job:/, "");
}

/** `float32 [?, 128]`, as people read it. */
export function specText(spec: OutputSpec): string {
  const shape = spec.shape === null ? "[…]" : `[${spec.shape.map((d) => d ?? "?").join(", ")}]`;
  return `${spec.dtype} ${shape}`;
}
