"""Asynchronous training: one graph a replica, which reads, computes and updates without waiting for others.

With a bound, a replica begins a step only when no other is more than so many steps behind it: the stale synchronous
parallel model of Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server" (2013).
What it computes its gradient from then lacks at most `bound` steps of any other replica.
"""

from __future__ import annotations

from nbflow.parallel.base import Role
from nbflow.parallel.coordinating import Coordination, first_in
from nbflow.parallel.joining import join_all
from nbflow.parallel.replicate import Replication


def build(replication: Replication, role: Role, bound: int | None, compress: str | None) -> Replication:
    """The graph of `role`; that of the first replica when all are asked for, as for `nf.run`."""
    if bound is None or role.kind == "all":
        return _free(replication, role.index, compress)
    meeting = Coordination(replication)
    if role.kind != "replica":
        replication.early()
        return meeting.say(role)
    name, attrs = replication.step.name, {"worker": role.index}
    pace = meeting.add("coordinator_pace", (meeting.handle,), {**attrs, "staleness": bound}, name=f"{name}/pace")
    replication.early(first_in(pace))
    replication.replica(role.index)
    # Data that has ended is noticed before the others are waited for, who may have ended too.
    reads = [n for n in replication.made.nodes.values() if n.op == "iterator_next"]
    pace.control_inputs = (*pace.control_inputs, *reads)
    join_all(replication, compress)
    replication.rest()
    done = [replication.nodes[replication.step.name]]
    tick = meeting.add("coordinator_tick", (meeting.handle,), attrs, name=f"{name}/tick", after=done)
    fetched = [replication.stands_for(f) for f in replication.fetches]
    return meeting.instead(tick, fetched)


def _free(replication: Replication, index: int, compress: str | None) -> Replication:
    replication.early()
    replication.replica(index)
    join_all(replication, compress)
    replication.rest()
    return replication
