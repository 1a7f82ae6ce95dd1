"""What one traced step did, op by op, and its form for Perfetto (the Chrome trace event format)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from nbflow.events import Event, NodeFinished, TensorMoved


@dataclass(frozen=True, slots=True)
class Trace:
    """The events of one step. Times are seconds on each worker's own monotonic clock."""

    events: tuple[Event, ...]

    @property
    def ops(self) -> tuple[NodeFinished, ...]:
        """One record an op: node, device, start_s, duration_s, nbytes (of its first output)."""
        return tuple(e for e in self.events if isinstance(e, NodeFinished))

    @property
    def transfers(self) -> tuple[TensorMoved, ...]:
        """One record a tensor that crossed devices; its duration is how long the receiver waited."""
        return tuple(e for e in self.events if isinstance(e, TensorMoved))

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the trace as JSON that Perfetto and chrome://tracing open: one process a device."""
        Path(path).write_text(json.dumps({"traceEvents": self._trace_events(), "displayTimeUnit": "ms"}))

    def _trace_events(self) -> list[dict[str, object]]:
        devices = _devices(self.ops, self.transfers)
        numbers = {d: i + 1 for i, d in enumerate(devices)}
        out: list[dict[str, object]] = [
            {"ph": "M", "name": "process_name", "pid": n, "tid": 0, "args": {"name": d}} for d, n in numbers.items()
        ]
        for op in self.ops:
            out.append(_slice(op.node, numbers[op.device], 1, op.start_s, op.duration_s, op.nbytes))
        for move in self.transfers:
            pid = numbers[move.destination]
            out.append(_slice(f"recv {move.key}", pid, 2, move.start_s, move.duration_s, move.nbytes))
        return out


def _devices(ops: Sequence[NodeFinished], transfers: Sequence[TensorMoved]) -> list[str]:
    return sorted({o.device for o in ops} | {t.destination for t in transfers})


def _slice(name: str, pid: int, tid: int, start_s: float, duration_s: float, nbytes: int) -> dict[str, object]:
    return {
        "ph": "X",
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": start_s * 1e6,
        "dur": duration_s * 1e6,
        "args": {"bytes": nbytes},
    }
