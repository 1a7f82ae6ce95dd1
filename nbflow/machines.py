"""Machines described: how fast a device computes, and how fast its link is. For the null backend and for simulation.

The rates of known machines are their makers' figures for dense float32 (with tensor cores where they take float32),
times `REACHED`; every figure can be replaced: `h100`, `h100/flops=2e14`, `op=1ms/link=1e9/latency=100us`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace

from nbflow.cost import DeviceModel, LinkModel
from nbflow.errors import PlacementError

# The share of the stated peaks that we take a well fed device to reach. An assumption: measure your own and say so.
REACHED = 0.5


@dataclass(frozen=True, slots=True)
class Machine:
    """What ops and transfers are said to take. A rate of 0 costs nothing.

    - an op: `op_s` + the larger of its flops / `flops` and its bytes / `bytes_per_s`.
    - a tensor: it holds the sender's way out and the receiver's way in for its bytes / `link_bytes_per_s`, one tensor
      after the other in each direction, and arrives `latency_s` after it left.
    """

    name: str = ""
    op_s: float = 0.0
    flops: float = 0.0
    bytes_per_s: float = 0.0
    link_bytes_per_s: float = 0.0
    latency_s: float = 0.0

    @property
    def device(self) -> DeviceModel:
        """Its rates, for a cost model."""
        return DeviceModel(self.flops or math.inf, self.bytes_per_s or math.inf, self.op_s, kind=self.name)

    @property
    def link(self) -> LinkModel:
        """Its link, for a cost model."""
        return LinkModel(self.latency_s, self.link_bytes_per_s or math.inf)

    def move_s(self, nbytes: float) -> float:
        """Seconds for which a tensor holds a link; its latency comes on top."""
        return nbytes / self.link_bytes_per_s if self.link_bytes_per_s else 0.0


def _known(name: str, tflops: float, memory_gb_per_s: float, link_gb_per_s: float, latency_us: float) -> Machine:
    # A launch from a prepared plan; the link is the machine's share of a network card, in one direction.
    return Machine(
        name, 5e-6, tflops * 1e12 * REACHED, memory_gb_per_s * 1e9 * REACHED, link_gb_per_s * 1e9, latency_us * 1e-6
    )


MACHINES = {
    m.name: m
    for m in (
        # One core of a server as the placer's defaults have it (docs/decisions/0003), and a local link.
        Machine("cpu", 2e-6, 5e10, 1e10, 1e9, 3e-4),
        _known("k40", 4.29, 288, 1.25, 50),  # 10 Gb/s Ethernet, as in 2016
        _known("p100", 9.3, 732, 3.1, 30),
        _known("v100", 15.7, 900, 3.1, 30),
        _known("t4", 8.1, 320, 3.1, 30),
        _known("a100", 156, 2039, 25, 20),  # 200 Gb/s a GPU
        _known("h100", 494, 3350, 50, 20),  # 400 Gb/s a GPU
        _known("h200", 494, 4800, 50, 20),
    )
}

# What may stand in a description -> the field.
_FIELDS = {
    "op": "op_s",
    "flops": "flops",
    "bytes": "bytes_per_s",
    "link": "link_bytes_per_s",
    "latency": "latency_s",
}
assert set(_FIELDS.values()) == {f.name for f in fields(Machine)} - {"name"}
_NUMBER = re.compile(r"(?P<number>\d+(?:\.\d*)?(?:e[+-]?\d+)?)(?P<unit>s|ms|us)?\Z", re.IGNORECASE)
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}


def parse_machine(text: str) -> Machine:
    """`h100`, `op=1ms/link=1e9`, `h100/flops=2e14`; empty: everything is free. Rates are a second, times in s, ms, us.

    Raises PlacementError that lists what can be written.
    """
    made = Machine(text)
    for number, part in enumerate(p for p in text.split("/") if p):
        name, equals, value = part.partition("=")
        if not equals and number == 0 and name.lower() in MACHINES:
            made = replace(MACHINES[name.lower()], name=text)
            continue
        match = _NUMBER.match(value)
        unit = (match["unit"] or "").lower() if match else ""
        is_time = name in ("op", "latency")
        if match is None or name not in _FIELDS or (unit and not is_time):
            raise PlacementError(
                f"not a machine: {text!r} ({part!r} is not understood); write one of {', '.join(MACHINES)}, figures "
                f"such as op=20us, flops=1e12, bytes=1e11, link=1e9, latency=100us, or both, with / between"
            )
        made = replace(made, **{_FIELDS[name]: float(match["number"]) * _UNITS[unit]})  # type: ignore[arg-type]
    return made
