"""What one traced step did, op by op and transfer by transfer: as text, and for Perfetto (the Chrome trace format)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from nbflow.events import Event, NodeFinished, TensorMoved

# The rows of the two tables of `text`.
LISTED_TRANSFERS = 20
LISTED_OPS = 10
# In characters, of a name in them.
WIDEST_NAME = 30
# Caption, columns, rows.
Rows = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


@dataclass(frozen=True, slots=True)
class Trace:
    """The events of one step. Times are seconds on each worker's own monotonic clock: one for all workers of a host."""

    events: tuple[Event, ...]

    @property
    def ops(self) -> tuple[NodeFinished, ...]:
        """One record an op: node, device, start_s, duration_s, nbytes (of its first output)."""
        return tuple(e for e in self.events if isinstance(e, NodeFinished))

    @property
    def transfers(self) -> tuple[TensorMoved, ...]:
        """One record a tensor that crossed devices: bytes on the way, from when until when, and how long the receiver
        had nothing to do but wait for it (see `events.TensorMoved`)."""
        return tuple(e for e in self.events if isinstance(e, TensorMoved))

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the trace as JSON that Perfetto and chrome://tracing open: one process a device, with a row for its
        ops and one for what came to it, and an arrow along each transfer."""
        Path(path).write_text(json.dumps({"traceEvents": self._trace_events(), "displayTimeUnit": "ms"}))

    def text(self, width: int = 72) -> str:
        """The step for people: a lane of `width` characters a device, then the transfers and the ops that took longest.

        In a lane █ is computing, ░ waiting for a tensor, · neither.
        """
        if not self.events:
            return "nothing was traced"
        offsets = self._offsets()
        total = max((e.start_s + e.duration_s - offsets[d] for d, e in self._by_device()), default=0.0)
        lines = [f"{_seconds(total)} from the first event to the last"]
        lines += self._lanes(offsets, total or 1.0, width)
        if self.transfers:
            lines += ["", *_table(*self.transfer_rows())]
        if self.ops:
            lines += ["", *_table(*self.op_rows())]
        return "\n".join(lines)

    def transfer_rows(self) -> Rows:
        """(caption, columns, rows) of the transfers that took longest."""
        moves = sorted(self.transfers, key=lambda t: -t.duration_s)
        nbytes = sum(t.nbytes for t in moves)
        caption = f"{len(moves)} transfers, {size(nbytes)}"
        caption += f"; the {LISTED_TRANSFERS} that took longest:" if len(moves) > LISTED_TRANSFERS else ":"
        rows: list[tuple[str, ...]] = [
            (
                _shortened(_tensor(t.key)),
                _device(t.source),
                _device(t.destination),
                size(t.nbytes),
                _seconds(t.duration_s),
                f"{t.nbytes / t.duration_s / 1e9:.2g} GB/s" if t.duration_s > 0 and t.nbytes >= 1e5 else "",
                _seconds(t.waited_s),
                t.via + (f", {t.compress}" if t.compress else "") + (f" (error {t.error:.1e})" if t.error else ""),
            )
            for t in moves[:LISTED_TRANSFERS]
        ]
        return caption, ("tensor", "from", "to", "bytes", "time", "rate", "waited", "via"), rows

    def op_rows(self) -> Rows:
        """(caption, columns, rows) of the ops that took longest."""
        ops = sorted(self.ops, key=lambda o: -o.duration_s)
        caption = f"{len(ops)} ops, {_seconds(sum(o.duration_s for o in ops))} on all devices"
        caption += f"; the {LISTED_OPS} that took longest:" if len(ops) > LISTED_OPS else ":"
        rows: list[tuple[str, ...]] = [
            (_shortened(o.node), _device(o.device), _seconds(o.duration_s), size(o.nbytes) if o.nbytes else "")
            for o in ops[:LISTED_OPS]
        ]
        return caption, ("op", "device", "time", "result"), rows

    # --- inside ---------------------------------------------------------------------------------------------------

    def _by_device(self) -> list[tuple[str, NodeFinished | TensorMoved]]:
        return [(o.device, o) for o in self.ops] + [(t.destination, t) for t in self.transfers]

    def _offsets(self) -> Mapping[str, float]:
        """When each device began. Devices whose times do not meet the others' have another clock, and start at 0."""
        spans: dict[str, tuple[float, float]] = {}
        for device, event in self._by_device():
            start, end = spans.get(device, (event.start_s, event.start_s))
            spans[device] = (min(start, event.start_s), max(end, event.start_s + event.duration_s))
        found: dict[str, float] = {}
        if not spans:
            return found
        first = min(start for start, _ in spans.values())
        length = sum(end - start for start, end in spans.values())
        for device, (start, _) in spans.items():
            found[device] = first if start - first <= 2 * length + 1.0 else start
        return found

    def _lanes(self, offsets: Mapping[str, float], total: float, width: int) -> list[str]:
        names = {device: _device(device) for device in sorted(offsets)}
        widest = max(map(len, names.values()))
        lines = []
        for device, name in names.items():
            lane = ["·"] * width
            busy = 0.0
            for move in self.transfers:
                if move.destination == device:
                    end = move.start_s + move.duration_s - offsets[device]
                    _paint(lane, end - move.waited_s, end, total, "░")
            for op in self.ops:
                if op.device == device:
                    start = op.start_s - offsets[device]
                    busy += op.duration_s
                    _paint(lane, start, start + op.duration_s, total, "█")
            lines.append(f"{name:<{widest}}  {''.join(lane)}  {100 * busy / total:3.0f} %")
        return lines

    def _trace_events(self) -> list[dict[str, object]]:
        devices = sorted({d for d, _ in self._by_device()} | {t.source for t in self.transfers})
        numbers = {d: i + 1 for i, d in enumerate(devices)}
        out: list[dict[str, object]] = []
        for device, number in numbers.items():
            out.append(_named("process_name", number, 0, device))
            out += [_named("thread_name", number, row, name) for row, name in ((1, "ops"), (2, "transfers"))]
        for op in self.ops:
            out.append(_slice(op.node, numbers[op.device], 1, op, {"bytes": op.nbytes}))
        for number, move in enumerate(self.transfers):
            args = {
                "bytes": move.nbytes,
                "from": move.source,
                "via": move.via,
                "waited_ms": move.waited_s * 1e3,
                "compress": move.compress,
                "error": move.error,
            }
            out.append(_slice(f"recv {move.key}", numbers[move.destination], 2, move, args))
            ends = (("s", move.source, 1, 0.0), ("f", move.destination, 2, move.duration_s))
            for kind, device, row, after in ends:
                out.append(
                    {
                        "ph": kind,
                        "bp": "e",
                        "cat": "transfer",
                        "id": number,
                        "name": "transfer",
                        "pid": numbers[device],
                        "tid": row,
                        "ts": (move.start_s + after) * 1e6,
                    }
                )
        return out


def size(nbytes: float) -> str:
    """`12.3 MB`, for people."""
    unit, name = next(((u, n) for u, n in _UNITS if nbytes >= u), (1, "B"))
    return f"{nbytes / unit:.3g} {name}"


def _seconds(value: float) -> str:
    unit, name = next(((u, n) for u, n in ((1.0, "s"), (1e-3, "ms")) if value >= u), (1e-6, "µs"))
    return f"{value / unit:.3g} {name}"


def _tensor(key: str) -> str:
    """The tensor's name in a key (`device;name:index;device`), with the iterations of loops around it."""
    parts = key.split(";")
    if len(parts) < 3:
        return key
    frame = parts[2].partition("@")[2]
    return ";".join(parts[1:-1]) + (f"@{frame}" if frame else "")


def _paint(lane: list[str], start: float, end: float, total: float, mark: str) -> None:
    first = max(0, int(start / total * len(lane)))
    last = min(len(lane), max(first + 1, round(end / total * len(lane))))
    if end > start:
        lane[first:last] = mark * (last - first)


def _device(name: str) -> str:
    """`/job:worker/task:1/gpu:0` → `worker:1/gpu:0`; the usual device of a task is not named: `worker:1`."""
    return name.removeprefix("/job:").replace("/task:", ":").removesuffix("/cpu:0")


def _shortened(name: str) -> str:
    """A long name without its middle: a table that wraps in a notebook cannot be read."""
    if len(name) <= WIDEST_NAME:
        return name
    ahead = WIDEST_NAME // 3
    return f"{name[:ahead]}…{name[ahead + 1 - WIDEST_NAME :]}"


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    whole = [columns, *rows]
    widths = [max(len(row[i]) for row in whole) for i in range(len(columns))]
    return [caption, *("  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in whole)]


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, object]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _slice(
    name: str, pid: int, tid: int, event: NodeFinished | TensorMoved, args: Mapping[str, object]
) -> dict[str, object]:
    return {
        "ph": "X",
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": event.start_s * 1e6,
        "dur": event.duration_s * 1e6,
        "args": dict(args),
    }
