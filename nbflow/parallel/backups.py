"""Synchronous training that does not wait for everybody: the first m of m + b gradients make a step.

Each replica drives its own steps: it waits until the step has another number than the one that it gave to last, reads
the variables, computes, puts its gradients into accumulators beside the variables, and reports. A further loop, the
*chief*, waits for m reports, takes the gradients of these replicas from every accumulator, updates, and lets the next
step begin. What a late replica gives for a step that is over is dropped. Metrics go the same way: means over the
replicas that made the step. Chen et al., "Revisiting Distributed Synchronous SGD" (2016), algorithms 3 and 4.

The chief runs where the first variable lives, on the ps tasks only: no worker can hold it up.
"""

from __future__ import annotations

import numpy as np

from nbflow.graph import Node, Tensor
from nbflow.ops.replicas import accumulator_attrs
from nbflow.parallel.base import Role
from nbflow.parallel.compress import packed, unpacked
from nbflow.parallel.coordinating import Coordination, first_in
from nbflow.parallel.replicate import Replication
from nbflow.parallel.whole import make_whole
from nbflow.spec import TensorSpec


def build(replication: Replication, role: Role, count: int, compress: str | None) -> Replication:
    """The graph of `role`, where `count` replicas make a step."""
    meeting = Coordination(replication)
    if role.kind == "replica":
        return _replica(meeting, role.index, compress)
    if role.kind == "chief":
        return _chief(meeting, count, role.elastic)
    replication.early()
    return meeting.say(role)


def _accumulator(meeting: Coordination, tensor: Tensor) -> tuple[str, str, Tensor]:
    """Where what the replicas compute for `tensor` comes together: the variable that it is beside, how, the handle."""
    home, how = meeting.replication.joining(tensor)
    how = "rows" if how == "same" else how
    name = f"{meeting.replication.step.name}/accumulated/{tensor.node.name}.{tensor.index}"
    return home, how, meeting.add("accumulator", (), name=name, home=home).outputs[0]


def _replica(meeting: Coordination, index: int, compress: str | None) -> Replication:
    replication, name = meeting.replication, meeting.replication.step.name
    made = replication.made
    waiting = meeting.add("coordinator_wait", (meeting.handle,), {"worker": index}, name=f"{name}/wait")
    replication.early(first_in(waiting))
    replication.replica(index)
    shares = replication.weights()
    with made.as_default():
        weight = shares[0] if shares else made.add("constant", (), {"value": np.array(1.0)}).outputs[0]
    step = waiting.outputs[0]
    given: list[Node] = []
    fetched: list[Node] = []
    for tensor in replication.crossing():
        (value,) = replication.parts(tensor)
        replication.tensors[(tensor.node.name, tensor.index)] = value
        home, _, handle = _accumulator(meeting, tensor)
        if home and compress:
            value = unpacked(packed(value, compress), value.dtype, replication.nodes[home])
        attrs = {**accumulator_attrs(tensor.spec), "worker": index}
        place = f"{handle.node.name}/apply"
        given.append(meeting.add("accumulator_apply", (handle, value, step, weight), attrs, name=place, home=home))
        fetched.append(value.node)
    for fetch in replication.fetches:
        if isinstance(fetch, Tensor):  # what the chief alone computes is no business of a replica's
            replication.tensors.setdefault((fetch.node.name, fetch.index), step)
    report = meeting.add(
        "coordinator_report", (meeting.handle, step), {"worker": index}, name=f"{name}/report", after=given
    )
    return meeting.instead(report, fetched)


def _chief(meeting: Coordination, count: int, elastic: bool) -> Replication:
    replication, name = meeting.replication, meeting.replication.step.name
    begin = meeting.add("coordinator_begin", (meeting.handle,), {"count": count}, name=f"{name}/begin")
    step, workers = begin.outputs

    def beside(old: Node, new: Node) -> None:
        # Nothing of the chief's on a worker, unless the user put it there.
        if not str(new.device) and not new.colocate and not any(t.spec.resource for t in (*new.inputs, *new.outputs)):
            new.colocate = (meeting.home,)

    replication.early(beside)
    taken: list[Node] = []
    for tensor in replication.crossing():
        home, how, handle = _accumulator(meeting, tensor)
        spec = tensor.spec if how == "mean" else TensorSpec((None, *(tensor.shape or ())[1:]), tensor.dtype)
        attrs = {**accumulator_attrs(spec), "how": how}
        take = meeting.add(
            "accumulator_take", (handle, step, workers), attrs, name=f"{handle.node.name}/take", home=home
        )
        taken.append(take)
        replication.tensors[(tensor.node.name, tensor.index)] = take.outputs[0]
    replication.rest(beside)
    if elastic:
        make_whole(replication, [take.outputs[0] for take in taken])
    after = [replication.nodes[replication.step.name], *taken]
    advance = meeting.add("coordinator_advance", (meeting.handle, step), name=f"{name}/advance", after=after)
    fetched = [replication.stands_for(f) for f in replication.fetches]
    replication.replicas = ()
    return meeting.instead(advance, fetched)
