"""Who made what, and what happens when a cell runs again.

Re-running a cell is a transaction. The cell's new ops are built aside, under the names they will have. When the cell
succeeds they replace the ops the cell had made before; when it raises, the old ones stay. Ops of other cells that
consumed a replaced tensor are *rebound* to the new one when that is safe, and *stale* otherwise:

    the old tensor ...                                        the consumer is rebound to ...
    has a name the user gave                                  the new tensor of that name
    was bound to a Python variable (`loss = ...`)             what that variable is bound to now
    has neither, and the cell made the same ops as before     the new tensor of the same automatic name
    otherwise, when shape or dtype changed,                   nothing: it is stale, and running it is an error
    or when rebinding would close a circle

Ops that were made by reading other ops (gradients, replicas) are worth only as much as what was read: when one of
those changed, all ops of the cell that read them are stale (`Graph.reads`).

State (the values of variables, the position of iterators) lives on workers under a node's name and its *generation*.
A variable whose name, shape and dtype are unchanged keeps its generation, and with it its value; one without a given
name is known by its number in the cell. All other state of a re-run cell starts anew. Generations are dealt while the
cell runs, since the cell may run what it builds, and are never used twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow.digest import Digested, digest_of
from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Owner, Tensor

__all__ = ["Change", "Owner", "Transaction", "begin", "delete", "reset", "stale_owners"]

Key = tuple[str, int]  # a tensor: its node's name, its index


@dataclass(frozen=True, slots=True)
class Change:
    """What a cell's run did to the graph. Names of nodes, sorted; `stale` and `rebound` are in other cells.

    `dropped_state`: keys (`name:generation`) of state that no op can reach any more, for workers to free.
    """

    owner: Owner
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    rebound: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    kept_variables: tuple[str, ...] = ()
    reset_variables: tuple[str, ...] = ()
    stale_cells: tuple[Owner, ...] = ()
    replaced_cells: tuple[Owner, ...] = ()  # other cells that lost their ops to this one
    dropped_state: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.removed or self.changed or self.stale or self.rebound)


class Transaction:
    """One run of one cell: `begin`, build, then `commit` or `rollback`, once."""

    def __init__(self, graph: Graph, owner: Owner, *, reinit: bool = False, replace: bool = False) -> None:
        if graph.pending is not None:
            raise GraphError(f"{graph.owner.label} is still running; cells run one at a time")
        self.graph = graph
        self.owner = owner
        self.old = {n.name: n for n in graph.nodes.values() if n.owner.id == owner.id}
        self._reinit = reinit
        self._outer = graph.owner
        self._renewed: dict[str, int] = {}  # of state that started anew in this run: what they were before
        self._replacing = {owner.id}
        graph.owner = owner
        graph.pending = {}
        graph.pending_reads = {}
        graph.on_add = self._added
        graph.replacing = {owner.id}
        graph.takes_over = replace
        graph.restart_numbers()

    @property
    def made(self) -> Mapping[str, Node]:
        """What the cell has built so far."""
        return self.graph.pending or {}

    def _added(self, node: Node) -> None:
        """Deals the generation of new state, before the cell can run it."""
        self._take_over()
        if len(self.made) == 1 and self.old:
            self.graph.version += 1  # from here on, names may mean other nodes than before
        old = self.old.get(node.name)
        if old is None or not (_holds_state(old) or _holds_state(node)):
            return
        if self._reinit or not _keeps_value(old, node):
            self._renewed[node.name] = self.graph.generations.get(node.name, 0)
            self.graph.renew(node.name)

    def _take_over(self) -> None:
        """Counts the ops of cells that lost a name to this one among those it replaces."""
        for owner_id in self.graph.replacing - self._replacing:
            self._replacing.add(owner_id)
            self.old.update((n.name, n) for n in self.graph.nodes.values() if n.owner.id == owner_id)
            self.graph.version += 1

    def _close(self) -> tuple[dict[str, Node], dict[str, Node]]:
        graph = self.graph
        if graph.pending is None or graph.on_add != self._added:
            raise GraphError(f"the run of {self.owner.label} is over already")
        new, reads = graph.pending, graph.pending_reads
        graph.pending = None
        graph.pending_reads = {}
        graph.on_add = None
        graph.replacing = set()
        graph.takes_over = False
        graph.owner = self._outer
        graph.restart_numbers()
        return new, reads

    def rollback(self) -> tuple[str, ...]:
        """Drops what the cell built; the graph is as before. Returns the keys of the state that this leaves behind."""
        new, _ = self._close()
        graph = self.graph
        if new:
            graph.version += 1
        dropped = []
        for name, generation in self._renewed.items():
            dropped.append(_key(graph, name))
            graph.generations[name] = generation
        for name, node in new.items():
            if _holds_state(node) and name not in self.old:
                dropped.append(_key(graph, name))
                graph.renew(name)
        return tuple(dropped)

    def commit(
        self,
        before: Mapping[str, Tensor] | None = None,
        after: Mapping[str, Tensor] | None = None,
    ) -> Change:
        """Replaces what the cell had made before by what it made now.

        `before` and `after` say which Python names (`loss`, `batch['x']`) meant which tensors when the cell started
        and when it ended. A cell that makes no ops (and made none before) changes nothing.
        """
        new, reads = self._close()
        if not new and not self.old:
            return Change(self.owner)
        replacement = _replacements(self.old, new, before or {}, after or {})
        return _replace(
            self.graph, self.owner, self.old, new, reads=reads, replacement=replacement, renewed=self._renewed
        )


def begin(graph: Graph, owner: Owner, *, reinit: bool = False, replace: bool = False) -> Transaction:
    """Starts the run of a cell.

    `reinit`: variables start anew even when nothing about them changed. `replace`: a name that another cell defines is
    taken over, and with it go all ops of that cell; without it, using such a name is an error.
    """
    return Transaction(graph, owner, reinit=reinit, replace=replace)


def delete(graph: Graph, owner_id: str) -> Change:
    """Deletes the ops of a cell; what consumed them in other cells, or in the running one, becomes stale."""
    old = {n.name: n for n in graph.nodes.values() if n.owner.id == owner_id}
    if not old:
        return Change(Owner(owner_id, owner_id))
    return _replace(graph, next(iter(old.values())).owner, old, {}, reads={}, replacement={}, renewed={})


def reset(graph: Graph) -> tuple[str, ...]:
    """Deletes all ops, those of the running cell too. Returns the keys of the state that nothing can reach now."""
    nodes = [*graph.nodes.values(), *(graph.pending or {}).values()]
    names = dict.fromkeys(n.name for n in nodes if _holds_state(n))
    dropped = tuple(_key(graph, name) for name in names)
    for name in names:
        graph.renew(name)
    graph.nodes.clear()
    graph.reads.clear()
    graph.pending_reads = {}
    if graph.pending is not None:
        graph.pending = {}
    graph.version += 1
    return dropped


def stale_owners(nodes: Iterable[Node]) -> tuple[Owner, ...]:
    """The cells to run again before `nodes` can run, in graph order."""
    return tuple(dict.fromkeys(n.owner for n in nodes if n.stale))


# --- state -----------------------------------------------------------------------------------------------------------


def _holds_state(node: Node) -> bool:
    # Ops that use another node's state get its handle as an input. Random ops come along: they have no state to lose.
    return node.definition.stateful and not any(t.spec.resource for t in node.inputs)


def _keeps_value(old: Node, new: Node) -> bool:
    return old.op == new.op == "variable" and old.outputs[0].spec == new.outputs[0].spec


def _key(graph: Graph, name: str) -> str:
    return f"{name}:{graph.generations.get(name, 0)}"


# --- comparing -------------------------------------------------------------------------------------------------------


def _same(a: Node, b: Node) -> bool:
    """Whether two nodes of one name compute the same from inputs of the same names."""
    return (
        a.op == b.op
        and a.auto_named == b.auto_named
        and a.device == b.device
        and a.colocate == b.colocate
        and [t.name for t in a.inputs] == [t.name for t in b.inputs]
        and [n.name for n in a.control_inputs] == [n.name for n in b.control_inputs]
        and [t.spec for t in a.outputs] == [t.spec for t in b.outputs]
        and a.attrs.keys() == b.attrs.keys()
        and all(_same_value(v, b.attrs[k]) for k, v in a.attrs.items())
    )


def _reads_the_same(a: Node, b: Node) -> bool:
    """Whether what was derived from `a` holds for `b`. What a batch holds, or what is drawn, is never looked at."""
    source = a.op == b.op != "variable" and a.definition.stateful and a.definition.gradient is None
    return [t.spec for t in a.outputs] == [t.spec for t in b.outputs] if source else _same(a, b)


def _same_value(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        # Bytes, so that a NaN equals itself and 0.0 differs from -0.0.
        return a.dtype == b.dtype and a.shape == b.shape and bool(a.tobytes() == b.tobytes())
    if isinstance(a, Digested):
        return digest_of(a) == digest_of(b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_same_value(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return bool(a == b)


# --- replacing -------------------------------------------------------------------------------------------------------


def _replacements(
    old: Mapping[str, Node],
    new: Mapping[str, Node],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
) -> dict[Key, Tensor]:
    """Old tensors -> those that now stand for them, by the rules in the module docstring."""
    same_ops = [(n.name, n.op) for n in old.values()] == [(n.name, n.op) for n in new.values()]
    python_names: dict[Key, list[str]] = {}
    for name, tensor in before.items():
        if old.get(tensor.node.name) is tensor.node:
            python_names.setdefault((tensor.node.name, tensor.index), []).append(name)
    found: dict[Key, Tensor] = {}
    for node in old.values():
        for tensor in node.outputs:
            key = (node.name, tensor.index)
            twin = new.get(node.name)
            candidate: Tensor | None = None
            bound = [after[name] for name in python_names.get(key, ()) if name in after]
            if not node.auto_named:
                candidate = _output(twin, tensor.index)
            elif bound and all(b is bound[0] for b in bound) and new.get(bound[0].node.name) is bound[0].node:
                candidate = bound[0]
            elif same_ops:
                candidate = _output(twin, tensor.index)
            if candidate is not None and candidate.spec == tensor.spec:
                found[key] = candidate
    return found


def _output(node: Node | None, index: int) -> Tensor | None:
    return node.outputs[index] if node is not None and index < len(node.outputs) else None


def _replace(
    graph: Graph,
    owner: Owner,
    old: Mapping[str, Node],
    new: Mapping[str, Node],
    *,
    reads: Mapping[str, Node],
    replacement: Mapping[Key, Tensor],
    renewed: Mapping[str, int],
) -> Change:
    """Puts `new` where `old` was, and mends what hangs on it.

    `renewed`: the names whose state started anew in this run, and the generation each had before.
    """
    for name in old:
        del graph.nodes[name]
    graph.nodes.update(new)
    replaced = dict.fromkeys(n.owner for n in old.values() if n.owner.id != owner.id)
    for gone in (owner, *replaced):
        graph.reads.pop(gone.id, None)
    if reads:
        graph.reads[owner.id] = dict(reads)
    if old:
        graph.version += 1  # where names only came in, what was compiled still holds
    dropped = [f"{name}:{generation}" for name, generation in renewed.items()]
    for name, node in old.items():
        if name not in new and _holds_state(node):
            dropped.append(_key(graph, name))
            graph.renew(name)
    rebound, stale = _rebind(graph, owner, old, new, replacement)
    stale += _misread(graph, owner, old, new)
    same = {n for n in new if n in old and _same(new[n], old[n])}
    variables = sorted(n for n, node in new.items() if node.op == "variable")
    return Change(
        owner,
        added=tuple(sorted(set(new) - set(old))),
        removed=tuple(sorted(set(old) - set(new))),
        changed=tuple(sorted((set(new) & set(old)) - same)),
        unchanged=tuple(sorted(same)),
        rebound=tuple(sorted(n.name for n in rebound if not n.stale)),
        stale=tuple(sorted({n.name for n in stale})),
        variables=tuple(variables),
        kept_variables=tuple(n for n in variables if n in old and n not in renewed),
        reset_variables=tuple(n for n in variables if n in old and n in renewed),
        stale_cells=tuple(dict.fromkeys(n.owner for n in stale)),
        replaced_cells=tuple(replaced),
        dropped_state=tuple(dropped),
    )


def _rebind(
    graph: Graph,
    owner: Owner,
    old: Mapping[str, Node],
    new: Mapping[str, Node],
    replacement: Mapping[Key, Tensor],
) -> tuple[list[Node], list[Node]]:
    """Points other cells' nodes at the new tensors; returns those that it could, and those that it could not."""
    rebound, stale = [], []
    behind = _behind(new.values())  # only from here can rebinding close a circle
    for node in [*graph.nodes.values(), *(graph.pending or {}).values()]:
        lost = [t for t in node.inputs if old.get(t.node.name) is t.node]
        lost_controls = [c for c in node.control_inputs if old.get(c.name) is c]
        # Nodes made under `colocate_with` know their partner by name alone.
        missing = [n for n in node.colocate if n in old and n not in new]
        if not lost and not lost_controls and not missing:
            continue
        missing += [t.name for t in lost if (t.node.name, t.index) not in replacement]
        missing += [c.name for c in lost_controls if c.name not in new]
        inputs = tuple(
            replacement.get((t.node.name, t.index), t) if old.get(t.node.name) is t.node else t for t in node.inputs
        )
        controls = tuple(new.get(c.name, c) if old.get(c.name) is c else c for c in node.control_inputs)
        if missing:
            node.stale = f"{owner.label} ran again and {missing[0]!r} is not what it was"
            stale.append(node)
        elif id(node) in behind and id(node) in _behind([*(t.node for t in inputs), *controls]):
            node.stale = f"{owner.label} ran again and now depends on {node.name!r} itself"
            stale.append(node)
        else:
            node.inputs, node.control_inputs = inputs, controls
            rebound.append(node)
    return rebound, stale


def _behind(nodes: Iterable[Node]) -> set[int]:
    """The ids of `nodes` and all they depend on. By identity: replaced nodes may share a name with their successors."""
    found: set[int] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if id(node) not in found:
            found.add(id(node))
            todo.extend(t.node for t in node.inputs)
            todo.extend(node.control_inputs)
    return found


def _misread(graph: Graph, owner: Owner, old: Mapping[str, Node], new: Mapping[str, Node]) -> list[Node]:
    """Marks the cells whose ops were made by reading ops that have changed."""
    stale: list[Node] = []
    for reader, sources in [*graph.reads.items(), (graph.owner.id, graph.pending_reads)]:
        touched = [n for n, node in sources.items() if old.get(n) is node]
        changed = next((n for n in touched if n not in new or not _reads_the_same(old[n], new[n])), None)
        if changed is None:
            sources.update((n, new[n]) for n in touched)
            continue
        for node in [*graph.nodes.values(), *(graph.pending or {}).values()]:
            if node.owner.id == reader and node is not new.get(node.name):
                node.stale = f"it was made by reading {changed!r}, and {owner.label} ran again and changed that"
                stale.append(node)
    return stale
