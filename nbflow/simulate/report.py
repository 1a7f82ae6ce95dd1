"""Predictions beside each other: a scaling curve, and what backup workers do; as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nbflow.simulate.plans import Described
from nbflow.simulate.predict import Prediction

SCHEMA = "nbflow.simulation.v1"


@dataclass(frozen=True, slots=True)
class Curve:
    """Predictions for one step on one kind of machine. `title` says which step."""

    title: str
    cluster: Described
    predictions: tuple[Prediction, ...]
    seed: int

    def speed_up(self, prediction: Prediction) -> float:
        """Rows a second beside those of the first prediction, whose workers count as so many: n workers that are not
        slowed down give n. Every replica has rows of its own; the stages of a pipeline have the same."""
        first = self.predictions[0]
        faster = first.step_s / prediction.step_s
        return first.workers * prediction.batches / first.batches * faster

    def assumptions(self) -> list[str]:
        """What the figures hang on, for people."""
        machine, ps = self.cluster.machine, self.cluster.ps_machine or self.cluster.machine
        control, messages = self.cluster.control, self.cluster.messages
        mode = "a loop on the workers" if control.ahead > 1 else "one step at a time"
        has_ps = any(p.ps for p in self.predictions)
        lines = [
            f"strategy: {self.predictions[-1].strategy}",
            f"workers are {machine.name or 'free'}: {_rates(machine)}",
            *([f"ps tasks are {ps.name or 'free'}: {_rates(ps)}"] if has_ps else []),
            f"{mode}; of the driver {control.command_s * 1e6:g} + {control.reply_s * 1e6:g} µs a task; "
            f"a tensor costs its hosts {messages.send_s * 1e6:g} + {messages.take_s * 1e6:g} µs",
            f"stragglers: {self.cluster.stragglers.text or 'none'}; seed {self.seed}",
        ]
        if self.cluster.cores is not None:
            lines.append(f"all of it shares {self.cluster.cores:g} cores of one host")
        if self.cluster.rows is not None:
            lines.append(f"{self.cluster.rows} rows a worker and step, where the graph leaves that open")
        made = [p for p in self.predictions if p.workers + p.backups > p.real]
        if made:
            lines.append(f"beyond {made[0].real} replicas their programs are copies of a real one (docs/simulate.md)")
        return lines

    def __str__(self) -> str:
        ps = any(p.ps for p in self.predictions)
        links = "ps links" if ps else "links"
        head = ("workers", "ps", "backups", "step", "80 % of steps", "speed-up", "efficiency", "compute", links)
        rows: list[tuple[str, ...]] = [(*head, "busiest")]
        for p in self.predictions:
            speed_up = self.speed_up(p)
            rows.append(
                (
                    *(
                        str(p.workers),
                        str(p.ps),
                        str(p.backups),
                        _time(p.step_s),
                        f"{_time(p.low_s)} – {_time(p.high_s)}",
                    ),
                    *(f"{speed_up:.3g}", f"{speed_up / p.workers:.0%}", f"{p.compute:.0%}"),
                    *(f"{max((p.ps_out, p.ps_in) if ps else (p.worker_out, p.worker_in)):.0%}", p.bound_by),
                )
            )
        if not any(p.backups for p in self.predictions):
            rows = [row[:2] + row[3:] for row in rows]
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]) - 1)]
        lines = ["  ".join([*(c.rjust(w) for c, w in zip(r, widths, strict=False)), r[-1]]) for r in rows]
        return "\n".join([f"{self.title}, simulated", *(f"  {a}" for a in self.assumptions()), "", *lines])

    def to_json(self) -> dict[str, Any]:
        """Plain values. Times are seconds, shares of 1."""
        return {
            "schema": SCHEMA,
            "step": self.title,
            "workers": asdict(self.cluster.machine),
            "ps": asdict(self.cluster.ps_machine or self.cluster.machine),
            "stragglers": self.cluster.stragglers.text,
            "control": asdict(self.cluster.control),
            "messages": asdict(self.cluster.messages),
            "cores": self.cluster.cores,
            "seed": self.seed,
            "predictions": [
                {**asdict(p), "speed_up": self.speed_up(p), "bound_by": p.bound_by} for p in self.predictions
            ],
        }


@dataclass(frozen=True, slots=True)
class Backups:
    """Predictions for 0, 1, … backup workers. `normalised(p)`: how many times faster a step is than without, for each
    worker that is paid for: t(0) / t(b) · m / (m + b), as Abadi et al. have it ("TensorFlow", OSDI 2016, 6.3)."""

    curve: Curve

    def normalised(self, prediction: Prediction) -> float:
        first, workers = self.curve.predictions[0], prediction.workers
        return first.step_s / prediction.step_s * workers / (workers + prediction.backups)

    @property
    def shortest(self) -> Prediction:
        """With the shortest step."""
        return min(self.curve.predictions, key=lambda p: p.step_s)

    @property
    def best(self) -> Prediction:
        """With the best normalised speed-up."""
        return max(self.curve.predictions, key=self.normalised)

    def __str__(self) -> str:
        rows = [("backups", "step", "normalised speed-up")]
        rows += [(str(p.backups), _time(p.step_s), f"{self.normalised(p):.3f}") for p in self.curve.predictions]
        widths = [max(len(r[i]) for r in rows) for i in range(3)]
        lines = ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        end = f"shortest step with {self.shortest.backups}, best normalised speed-up with {self.best.backups} backups"
        head = f"{self.curve.title}, {self.curve.predictions[0].workers} workers waited for, simulated"
        return "\n".join([head, *(f"  {a}" for a in self.curve.assumptions()), "", *lines, end])

    def to_json(self) -> dict[str, Any]:
        found = self.curve.to_json()
        for row, prediction in zip(found["predictions"], self.curve.predictions, strict=True):
            row["normalised"] = self.normalised(prediction)
        return {**found, "shortest": self.shortest.backups, "best": self.best.backups}


def _rates(machine: Any) -> str:
    parts = [
        (machine.flops, f"{_rate(machine.flops)}FLOP/s"),
        (machine.bytes_per_s, f"memory {_rate(machine.bytes_per_s)}B/s"),
        (machine.op_s, f"{_time(machine.op_s)} an op"),
        (machine.link_bytes_per_s, f"link {_rate(machine.link_bytes_per_s)}B/s"),
        (machine.latency_s, f"latency {_time(machine.latency_s)}"),
    ]
    return ", ".join(text for value, text in parts if value) or "everything at once"


def _rate(value: float) -> str:
    """What stands before the unit of a rate: `4.4 T`, `12.5 G`, `300 `."""
    for letter in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.4g} {letter}"
        value /= 1000
    return f"{value:.4g} P"


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
