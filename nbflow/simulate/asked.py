"""What people ask of a simulation in words, on the command line or in a notebook, as one value; and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nbflow import simulate
from nbflow.errors import GraphError
from nbflow.graph import Node
from nbflow.machines import parse_machine
from nbflow.simulate.engine import Control
from nbflow.simulate.model import Messages
from nbflow.simulate.plans import Described
from nbflow.simulate.report import Backups, Curve
from nbflow.simulate.stragglers import Stragglers
from nbflow.simulate.strategies import parse_strategy

# What this runtime's own driver and messages cost: about what `benchmarks/simulate.py` measures on two cores that the
# workers share with the driver, so rather more than where they do not.
COMMAND_S, REPLY_S, MESSAGE_US = 3e-4, 3e-4, 100.0
# Steps that a loop on the workers sends ahead (`nbflow.loop.AHEAD`).
AHEAD = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """See the options of `nbflow simulate`. `workers`: as text, `100` or `1,2,4`."""

    workers: str = "64"
    device: str = "h100"
    ps: int | None = None
    ps_device: str | None = None
    strategy: str = ""
    stragglers: str = ""
    backups: int = 0
    rows: int | None = None
    steps: int | None = None
    seed: int = 0
    message_us: float = MESSAGE_US
    one_at_a_time: bool = False

    def counts(self) -> Sequence[int]:
        """The numbers of workers; of a single one, the powers of two up to it. Raises GraphError."""
        try:
            found = [int(n) for n in self.workers.split(",")]
        except ValueError:
            found = []
        if not found or min(found) < 1:
            raise GraphError(f"not numbers of workers: {self.workers!r}; write 100, or 1,2,4,8")
        return simulate.up_to(found[0]) if len(found) == 1 else found

    def described(self) -> Described:
        """Raises PlacementError for what is no machine, GraphError for what is no distribution."""
        ps = None if self.ps_device is None else parse_machine(self.ps_device)
        control = Control(COMMAND_S, REPLY_S, ahead=1 if self.one_at_a_time else AHEAD)
        stragglers = Stragglers.parse(self.stragglers)
        messages = Messages(self.message_us * 1e-6, self.message_us * 1e-6)
        return Described(parse_machine(self.device), ps, stragglers, control, messages, rows=self.rows)

    def answer(self, step: Node, title: str) -> Curve | Backups:
        """A scaling curve; with `backups`, what 0 to that many of them do at the largest number of workers."""
        counts, cluster = self.counts(), self.described()
        strategy = parse_strategy(self.strategy) if self.strategy else None
        if self.backups:
            return simulate.backups(
                step,
                max(counts),
                self.backups,
                cluster,
                ps=self.ps,
                steps=self.steps,
                seed=self.seed,
                title=title,
                strategy=strategy,
            )
        return simulate.scaling(
            step, counts, cluster, ps=self.ps, steps=self.steps, seed=self.seed, title=title, strategy=strategy
        )
