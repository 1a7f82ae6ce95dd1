"""Whether all that is in use at once on a device fits into its memory, in the order in which ops run.

A placement is searched for with what each group holds all the time (`placement_problem`); what its values take beside
that depends on the order, and on who else is there, so it is counted afterwards: variables, constants, the plan's
buffers and what is alive beside them (`optimize.schedule`). Where that is too much, it is placed again with a part of
what all ops of a group make counted as held, which spreads them (docs/decisions/0014).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nbflow.device import DeviceSpec
from nbflow.errors import PlacementError
from nbflow.graph import Graph, Tensor
from nbflow.op import nbytes_of
from nbflow.optimize.schedule import Peak, Peaks, peak_of
from nbflow.placement import Placed
from nbflow.placement_problem import size_text
from nbflow.transport import DeviceInfo

# The parts of what its ops make that a group is taken to hold, one after the other until all fits.
SPREADS = (0.0, 0.125, 0.25, 0.5, 1.0)
# How many values an error names.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class TooFull:
    """A device on which more is in use at once than it has memory for."""

    info: DeviceInfo
    held: float
    peak: Peak

    def error(self) -> PlacementError:
        values = ", ".join(f"{t.name} ({size_text(nbytes_of([t.spec]))})" for t in self.peak.values[:_NAMED])
        more = f" and {len(self.peak.values) - _NAMED} more" if len(self.peak.values) > _NAMED else ""
        node = self.peak.node
        held, alive = size_text(self.held), size_text(self.peak.nbytes)
        return PlacementError(
            f"{self.info.spec} has {size_text(self.info.memory_bytes)}, and the step needs "
            f"{size_text(self.held + self.peak.nbytes)} there at once: {held} of variables and constants, and {alive} "
            f"while {node.name!r} ({node.where}) runs, for {values}{more}. Smaller batches, nf.checkpoint (which "
            "computes values again), another nf.device, or more workers help",
            where=node.where,
        )


def too_full(
    graph: Graph,
    placed: Mapping[str, Placed],
    infos: Sequence[DeviceInfo],
    peaks: Peaks,
    fetched: Sequence[Tensor],
    *,
    tight: bool = False,
) -> TooFull | None:
    """The first device of which it is certain that not all fits; None where all does, or may. `peaks`: what is in use
    beside what is held, where sizes that are not known are guessed."""
    limited = [info for info in infos if info.memory_bytes]
    if not limited:
        return None
    held = _held(graph, placed)
    devices = {name: where.device for name, where in placed.items()}
    for info in limited:
        known = held.get(info.spec, 0.0)
        if known + peaks.get(str(info.spec), (0.0, 0.0))[1] <= info.memory_bytes:
            continue
        peak = peak_of(graph, devices, fetched, info.spec, tight=tight)
        if peak is not None and known + peak.nbytes > info.memory_bytes:
            return TooFull(info, known, peak)
    return None


def _held(graph: Graph, placed: Mapping[str, Placed]) -> dict[DeviceSpec, float]:
    """Device -> bytes of the variables and constants there."""
    found: dict[DeviceSpec, float] = {}
    for node in graph.nodes.values():
        if node.op in ("variable", "constant"):
            device = placed[node.name].device
            found[device] = found.get(device, 0.0) + nbytes_of([t.spec for t in node.outputs if t.spec.is_static])
    return found
