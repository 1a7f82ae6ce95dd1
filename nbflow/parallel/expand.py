"""From the step that is run to the graph that its strategy makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nbflow.device import DeviceSpec
from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor
from nbflow.op import AttrValue
from nbflow.parallel.base import ALL, Expanded, Role, Strategy, strategy_of
from nbflow.parallel.data_parallel import KIND as DATA_PARALLEL
from nbflow.parallel.data_parallel import DataParallel
from nbflow.parallel.everywhere import spread_restores
from nbflow.parallel.local_sgd import KIND as LOCAL_SGD
from nbflow.parallel.local_sgd import LocalSGD
from nbflow.parallel.pipeline import KIND as PIPELINE
from nbflow.parallel.pipeline import Pipeline

# What a strategy's attribute begins with -> how it is read.
_KINDS: dict[str, Callable[[Sequence[AttrValue]], Strategy]] = {
    DATA_PARALLEL: DataParallel.from_attrs,
    LOCAL_SGD: LocalSGD.from_attrs,
    PIPELINE: Pipeline.from_attrs,
}


def read_strategy(attrs: Sequence[AttrValue]) -> Strategy | None:
    """The strategy that wrote `attrs`, None for nothing. Raises GraphError for one that is not known here."""
    if not attrs:
        return None
    read = _KINDS.get(str(attrs[0]))
    if read is None:
        raise GraphError(f"no strategy is called {attrs[0]!r}; there are {', '.join(sorted(_KINDS))}")
    return read(attrs)


def strategy_in(nodes: Sequence[Node | Tensor]) -> tuple[Node, Strategy] | None:
    """The training step among the fetches that has a strategy, if any. Raises GraphError for two."""
    steps = [n for n in nodes if isinstance(n, Node) and strategy_of(n)]
    if not steps:
        return None
    if len(steps) > 1:
        names = " and ".join(repr(s.name) for s in steps)
        raise GraphError(f"run one training step at a time: {names} have a strategy each")
    found = read_strategy(strategy_of(steps[0]))
    assert found is not None  # it has attributes
    return steps[0], found


def wanted_splits(
    graph: Graph, fetches: Sequence[Node | Tensor], available: Sequence[DeviceSpec]
) -> dict[str, tuple[int, ...]]:
    """The variables that the strategy of the step among `fetches` wants in pieces, with the rows of each piece."""
    found = strategy_in(fetches)
    return found[1].splits(graph, available) if found is not None and isinstance(found[1], DataParallel) else {}


def expand(
    graph: Graph, fetches: Sequence[Node | Tensor], available: Sequence[DeviceSpec], role: Role = ALL
) -> Expanded:
    """Rewrites a pruned graph by the strategy of the step among `fetches` (nodes and tensors of `graph`).

    `role`: which part of it, where replicas drive their own steps. Without a strategy, or with a single worker, nothing
    changes but the variables' preferred devices. A fetched tensor that every replica computes becomes the mean over the
    replicas (rank 0) or their concatenation (rank ≥ 1). What is fed goes whole to every replica; what is computed from
    that and from no dataset or queue is not concatenated: it is as long as with one replica.
    """
    spread_restores(graph, available)
    found = strategy_in(fetches)
    if found is None:
        return Expanded.unchanged(graph)
    step, strategy = found
    return strategy.expand(graph, step, fetches, available, role)
