"""What a run does on schedule beside its steps: evaluation and checkpoints, driven by the leader of its first loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from nbflow.errors import CheckpointError, GraphError, Rejected
from nbflow.graph import Graph, Node, Tensor, ancestors
from nbflow.ops._build import as_tensor, convert
from nbflow.rewrite import copy_nodes, new_like
from nbflow.saving import newest
from nbflow.session import Session
from nbflow.train.keeping import Keeper
from nbflow.train.planning import Member, metric_tensors
from nbflow.transport import Evaluation, MetricSource

log = logging.getLogger("nbflow.train")

# Who writes the checkpoints of a run: the worker that leads it where that can be, or always, or never.
Writer = Literal["auto", "worker", "client"]
# What a single tensor that is evaluated is called.
ONLY = "evaluation"


def evaluation_tensors(evaluate: Any, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is evaluated, by name; `metrics`: those of the training. Raises GraphError for what is not a scalar tensor,
    and for a name that a metric has."""
    if evaluate is None:
        return {}
    found = metric_tensors(evaluate if isinstance(evaluate, Mapping) else {ONLY: evaluate})
    twice = sorted(found.keys() & metrics.keys())
    if twice:
        raise GraphError(f"{', '.join(twice)} is both a metric and evaluated; give one of them another name")
    return found


def with_evaluation(
    session: Session,
    members: Sequence[Member],
    step: Node,
    wanted: Mapping[str, Tensor],
    feeds: Mapping[Tensor, Any],
    every: int,
    batches: int,
) -> list[Member]:
    """`members` of the run of `step`, of which the first evaluates `wanted` every `every` steps of the run.

    `feeds`: what stands for some of the graph's tensors then. Raises GraphError when it would take batches away from
    the training.
    """
    first, *others = members
    beside, tensors = _evaluated_graph(session.graph, list(wanted.values()), feeds)
    _check_data(step, tensors)
    prepared = session.beside(beside, tensors)
    sources = [s for s in prepared.sources if s is not None]
    found = tuple(MetricSource(n, s.task, s.name) for n, s in zip(wanted, sources, strict=True))
    plan = Evaluation(prepared.bundle_ids, found, max(1, every // first.weight), batches, first.last)
    return [replace(first, loop=replace(first.loop, evaluation=plan), plans=(*first.plans, prepared)), *others]


def _evaluated_graph(graph: Graph, wanted: Sequence[Tensor], feeds: Mapping[Tensor, Any]) -> tuple[Graph, list[Tensor]]:
    """A graph of its own that computes `wanted` with `feeds` in their places, and `wanted` there."""
    beside = new_like(graph)
    tensors: dict[tuple[str, int], Tensor] = {}
    controls: dict[str, Node] = {}
    given = {fed: as_tensor(value) for fed, value in feeds.items()}
    sources = ancestors([t.node for t in given.values() if t is not None])
    for fed in given:
        if fed.node in sources:
            raise GraphError(f"eval_feeds: what stands for {fed.name!r} is computed from it", where=fed.node.where)
    copy_nodes(sources, beside, tensors, controls)
    places = {}
    for fed, tensor in given.items():
        if tensor is None:
            with beside.as_default():
                places[fed] = convert(feeds[fed], fed.dtype)
        else:
            places[fed] = tensors[(tensor.node.name, tensor.index)]
    tensors.update({(fed.node.name, fed.index): place for fed, place in places.items()})
    rest = [n for n in ancestors([t.node for t in wanted]) if n.name not in controls]
    copy_nodes(rest, beside, tensors, controls, infer=True)
    return beside, [tensors[(t.node.name, t.index)] for t in wanted]


def _check_data(step: Node, tensors: Sequence[Tensor]) -> None:
    training = {n.name for n in ancestors([step]) if n.op == "iterator"}
    taken = sorted({n.name for n in ancestors([t.node for t in tensors]) if n.op == "iterator"} & training)
    if taken:
        raise GraphError(
            f"the evaluation would take batches from {', '.join(taken)}, which the training reads; give it data of its "
            "own, such as eval_feeds={batch['x']: test['x'], batch['y']: test['y']}"
        )


# --- checkpoints -----------------------------------------------------------------------------------------------------


def with_saving(session: Session, members: Sequence[Member], keeper: Keeper, writer: Writer) -> list[Member] | None:
    """`members`, of which the first saves what `keeper` keeps; None where the client is to.

    Raises GraphError for another `writer` than there is, and when it is "worker" and no worker can: one that may not
    write there, or cannot, several loops that make steps, or a folder that is another one here and holds checkpoints.
    """
    if writer not in ("auto", "worker", "client"):
        raise GraphError(f'checkpoint_by is "auto", "worker" or "client", not {writer!r}')
    if writer == "client":
        return None
    first, *others = members
    problem = _why_not(session, members, keeper, writer)
    if problem:
        if writer == "worker":
            raise GraphError(f"no worker can write the checkpoints of this run (checkpoint_by): {problem}")
        log.info("checkpoints are written by the client: %s", problem)
        return None
    saving, plans = keeper.handed_over(first.last)
    return [replace(first, loop=replace(first.loop, saving=saving), plans=(*first.plans, *plans)), *others]


def _why_not(session: Session, members: Sequence[Member], keeper: Keeper, writer: Writer) -> str:
    if sum(m.counts for m in members) != 1:
        return "its replicas make steps of their own, and only the client brings them all to a halt between two"
    leader = members[0].leader
    try:
        found = keeper.look(session.transports[leader])
    except (Rejected, CheckpointError) as error:
        return error.message
    here = newest(keeper.folder)
    if found.is_shared or (writer == "worker" and found.newest == ("" if here is None else here.name)):
        return ""
    held = f", where {found.newest} is the last checkpoint" if found.newest else ""
    return (
        f"{keeper.folder} is another folder for {leader} than for this process{held}: give one on a disk that both see"
        + (", copy the checkpoint here to go on from it, or give an empty one" if found.newest else "")
    )
