"""`nbflow simulate`: what a training step would take on a cluster that is described, not there.

The real plans of the step (rewritten by its strategy, placed, cut, compiled) are run by a discrete-event simulation,
with the times that a cost model gives their ops and tensors. docs/simulate.md says what that leaves out, and how far
it was from what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbflow.graph import Node
from nbflow.machines import Machine, parse_machine
from nbflow.parallel import Strategy, read_strategy, strategy_of
from nbflow.simulate.engine import Control
from nbflow.simulate.model import Messages
from nbflow.simulate.plans import Described
from nbflow.simulate.predict import Prediction, default_ps, predict
from nbflow.simulate.report import Backups, Curve
from nbflow.simulate.stragglers import Stragglers
from nbflow.simulate.strategies import parse_strategy

__all__ = [
    "Backups",
    "Control",
    "Curve",
    "Described",
    "Machine",
    "Messages",
    "Prediction",
    "Stragglers",
    "backups",
    "default_ps",
    "parse_machine",
    "parse_strategy",
    "predict",
    "scaling",
    "up_to",
]


def up_to(workers: int) -> list[int]:
    """1, 2, 4, … and `workers`."""
    return sorted({workers, *(2**k for k in range(workers.bit_length()) if 2**k <= workers)})


def scaling(
    step: Node,
    workers: Sequence[int],
    cluster: Described,
    *,
    ps: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    title: str = "",
    strategy: Strategy | None = None,
) -> Curve:
    """The scaling curve of `step`: one worker first, then each of `workers`. `ps`: how many ps tasks; None: by the
    number of workers (`default_ps`). `steps`: simulated for each point; None: fewer for more workers. `strategy`: None
    for that of `step`."""
    counts = sorted({1, *workers})
    used = strategy or read_strategy(strategy_of(step))
    found = [
        predict(step, n, cluster, ps=ps, steps=steps or _steps(n, cluster, 20, used), seed=seed, strategy=used)
        for n in counts
    ]
    return Curve(title or step.name, cluster, tuple(found), seed)


def backups(
    step: Node,
    workers: int,
    most: int,
    cluster: Described,
    *,
    ps: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    title: str = "",
    strategy: Strategy | None = None,
) -> Backups:
    """What 0 … `most` backup workers do to a step that waits for `workers` gradients. All see the same stragglers."""
    number = steps or _steps(workers, cluster, 200, None)
    found = [
        predict(step, workers, cluster, ps=ps, backups=b, steps=number, seed=seed, strategy=strategy)
        for b in range(most + 1)
    ]
    return Backups(Curve(title or step.name, cluster, tuple(found), seed))


def _steps(workers: int, cluster: Described, most: int, strategy: Strategy | None) -> int:
    """How many steps are simulated: without stragglers most are alike; with many workers a step holds many draws.
    Replicas with steps of their own need some until they have found their turns."""
    if strategy is not None and strategy.separate:
        return max(5, min(most, 1_000 // workers))
    return 2 if not cluster.stragglers.parts else max(3, min(most, 10_000 // workers))
