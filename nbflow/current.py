"""The current cluster, and the session that `nf.run` uses: one per graph, made when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from nbflow.explain import PlacementTable, graph_json
from nbflow.graph import Graph, get_graph
from nbflow.optimize import Report
from nbflow.session import Session
from nbflow.structure import flatten
from nbflow.transport import Cluster

_lock = threading.RLock()
_cluster: Cluster | None = None
_sessions: WeakKeyDictionary[Graph, Session] = WeakKeyDictionary()


def set_cluster(cluster: Cluster | None) -> tuple[str, ...]:
    """Makes `cluster` the one that `nf.run` uses; None: this process.

    Variables live in a session on a cluster: setting another cluster closes the current sessions, and their variables
    start anew on the next run. Returns the names of those that had a value. Setting the same cluster again changes
    nothing.
    """
    global _cluster
    with _lock:
        if cluster is _cluster:
            return ()
        _cluster = cluster
        closing = list(_sessions.values())
        _sessions.clear()
    left = sorted({name for session in closing for name in session.initialised})
    for session in closing:
        session.close()
    return tuple(left)


def get_cluster() -> Cluster | None:
    """The cluster that `nf.run` uses; None: this process."""
    return _cluster


def current_session() -> Session:
    """The session of the current graph on the current cluster."""
    graph = get_graph()
    with _lock:
        found = _sessions.get(graph)
        if found is None:
            found = _sessions[graph] = Session(_cluster, graph)
        return found


def drop_state(keys: Sequence[str]) -> None:
    """Frees state that no op of the current graph can reach any more; does nothing when nothing has run."""
    with _lock:
        session = _sessions.get(get_graph())
    if session is not None and keys:
        session.drop_state(keys)


def run(
    fetches: Any,
    feeds: Mapping[Any, Any] | None = None,
    *,
    trace: bool = False,
    check_numerics: bool = False,
    deadline_s: float | None = None,
) -> Any:
    """Computes `fetches` on the current cluster; see `Session.run`."""
    session = current_session()
    return session.run(fetches, feeds, trace=trace, check_numerics=check_numerics, deadline_s=deadline_s)


def placement(fetches: Any) -> PlacementTable:
    """Where each op of a run of `fetches` goes, and why; with what each is predicted to take, and what it took when it
    was last traced. Nothing runs. docs/placement.md."""
    leaves, _ = flatten(fetches)
    if not leaves:
        return PlacementTable([])
    return current_session().placement(leaves)


def optimization(fetches: Any) -> Report:
    """What the optimizer's passes do to a run of `fetches`: ops before and after, and what became of which. Nothing
    runs. docs/optimizer.md lists the passes."""
    leaves, _ = flatten(fetches)
    return current_session().optimization(leaves) if leaves else Report()


def describe(target: Any) -> dict[str, Any]:
    """A graph, or what running `target` would run with each op's device, as JSON for the graph view."""
    if isinstance(target, Graph):
        session = current_session() if target is get_graph() else None
        if session is None or session.last is None:
            return graph_json(target)
        return graph_json(target, session.last.placement, *session.figures())
    leaves, _ = flatten(target)
    if not leaves:
        return graph_json(Graph())
    session = current_session()
    return graph_json(*session.preview(leaves), *session.figures())
