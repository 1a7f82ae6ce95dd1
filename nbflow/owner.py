"""Who made what, and what happens when a cell runs again.

Re-running a cell is a transaction. The cell's new ops are built aside, under the names they will have. When the cell
succeeds they replace the ops the cell had made before; when it raises, the old ones stay. Ops of other cells that
consumed a replaced tensor are *rebound* to the new one when that is safe, and *stale* otherwise:

    the old tensor ...                                        the consumer is rebound to ...
    has a name the user gave                                  the new tensor of that name
    was bound to a Python variable (`loss = ...`)             what that variable is bound to now
    has neither, and the cell made the same ops as before     the new tensor of the same automatic name
    otherwise, or when shape or dtype changed                 nothing: it is stale, and running it is an error

Variables (the graph's, not Python's) whose name, shape and dtype are unchanged keep their value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Owner, Tensor

__all__ = ["Change", "Owner", "Transaction", "begin", "delete", "stale_owners"]


@dataclass(frozen=True, slots=True)
class Change:
    """What a cell's run did to the graph. Names of nodes, sorted; `stale` and `rebound` are in other cells."""

    owner: Owner
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    rebound: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    kept_variables: tuple[str, ...] = ()
    reset_variables: tuple[str, ...] = ()
    stale_cells: tuple[Owner, ...] = field(default=())

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.removed or self.changed or self.stale or self.rebound)


class Transaction:
    """One run of one cell: `begin`, build, then `commit` or `rollback`, once."""

    def __init__(self, graph: Graph, owner: Owner, *, reinit: bool = False) -> None:
        if graph.pending is not None:
            raise GraphError(f"{graph.owner.label} is still running; cells run one at a time")
        self.graph = graph
        self.owner = owner
        self.reinit = reinit
        self._before = graph.owner
        graph.owner = owner
        graph.pending = {}
        graph.restart_numbers()

    def rollback(self) -> None:
        """Drops what the cell built; the graph is as before."""
        self.graph.pending = None
        self.graph.owner = self._before
        self.graph.restart_numbers()

    def commit(
        self,
        before: Mapping[str, Tensor] | None = None,
        after: Mapping[str, Tensor] | None = None,
    ) -> Change:
        """Replaces what the cell had made before by what it made now.

        `before` and `after` say which Python names (`loss`, `batch['x']`) meant which tensors when the cell started
        and when it ended. A cell that makes no ops (and made none before) changes nothing.
        """
        graph, owner = self.graph, self.owner
        new = graph.pending or {}
        old = {n.name: n for n in graph.nodes.values() if n.owner.id == owner.id}
        self.rollback()
        if not new and not old:
            return Change(owner)
        replacement = _replacements(old, new, before or {}, after or {})
        kept, reset = _variables(graph, old, new, reinit=self.reinit)
        for name in old:
            del graph.nodes[name]
        graph.nodes.update(new)
        graph.version += 1
        rebound, stale = _rebind(graph, owner, old, new, replacement)
        same = {n for n in new if n in old and _signature(new[n]) == _signature(old[n])}
        return Change(
            owner,
            added=tuple(sorted(set(new) - set(old))),
            removed=tuple(sorted(set(old) - set(new))),
            changed=tuple(sorted((set(new) & set(old)) - same)),
            unchanged=tuple(sorted(same)),
            rebound=tuple(sorted(n.name for n in rebound)),
            stale=tuple(sorted(n.name for n in stale)),
            kept_variables=kept,
            reset_variables=reset,
            stale_cells=tuple(dict.fromkeys(n.owner for n in stale)),
        )


def begin(graph: Graph, owner: Owner, *, reinit: bool = False) -> Transaction:
    """Starts the run of a cell. `reinit`: variables start anew even when nothing about them changed."""
    return Transaction(graph, owner, reinit=reinit)


def delete(graph: Graph, owner_id: str) -> Change:
    """Deletes the ops of a cell; what consumed them in other cells becomes stale."""
    old = {n.name: n for n in graph.nodes.values() if n.owner.id == owner_id}
    if not old:
        return Change(Owner(owner_id, owner_id))
    owner = next(iter(old.values())).owner
    return begin(graph, owner).commit()


def stale_owners(nodes: Iterable[Node]) -> tuple[Owner, ...]:
    """The cells to run again before `nodes` can run, in graph order."""
    return tuple(dict.fromkeys(n.owner for n in nodes if n.stale))


def _signature(node: Node) -> tuple[object, ...]:
    attrs = tuple(sorted((k, repr(v)) for k, v in node.attrs.items()))
    specs = tuple(t.spec for t in node.outputs)
    return (node.op, tuple(t.name for t in node.inputs), attrs, specs, str(node.device))


def _replacements(
    old: Mapping[str, Node],
    new: Mapping[str, Node],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
) -> dict[tuple[str, int], Tensor]:
    """Old (node, output) -> the tensor that now stands for it, by the rules in the module docstring."""
    same_ops = [(n.name, n.op) for n in old.values()] == [(n.name, n.op) for n in new.values()]
    python_names: dict[tuple[str, int], list[str]] = {}
    for name, tensor in before.items():
        if old.get(tensor.node.name) is tensor.node:
            python_names.setdefault((tensor.node.name, tensor.index), []).append(name)
    found: dict[tuple[str, int], Tensor] = {}
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


def _variables(
    graph: Graph, old: Mapping[str, Node], new: Mapping[str, Node], *, reinit: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    kept, reset = [], []
    for name, node in old.items():
        if node.op != "variable":
            continue
        twin = new.get(name)
        if twin is not None and twin.op == "variable" and twin.outputs[0].spec == node.outputs[0].spec and not reinit:
            kept.append(name)
            continue
        graph.generations[name] = graph.generations.get(name, 0) + 1
        if twin is not None:
            reset.append(name)
    return tuple(sorted(kept)), tuple(sorted(reset))


def _rebind(
    graph: Graph,
    owner: Owner,
    old: Mapping[str, Node],
    new: Mapping[str, Node],
    replacement: Mapping[tuple[str, int], Tensor],
) -> tuple[list[Node], list[Node]]:
    rebound, stale = [], []
    for node in graph.nodes.values():
        if node.owner.id == owner.id:
            continue
        lost = [t for t in node.inputs if old.get(t.node.name) is t.node]
        lost_controls = [c for c in node.control_inputs if old.get(c.name) is c]
        if not lost and not lost_controls:
            continue
        missing = [t.name for t in lost if (t.node.name, t.index) not in replacement]
        missing += [c.name for c in lost_controls if c.name not in new]
        if missing:
            node.stale = f"{owner.label} ran again and {missing[0]!r} is not what it was"
            stale.append(node)
            continue
        node.inputs = tuple(
            replacement[(t.node.name, t.index)] if old.get(t.node.name) is t.node else t for t in node.inputs
        )
        node.control_inputs = tuple(new[c.name] if old.get(c.name) is c else c for c in node.control_inputs)
        rebound.append(node)
    return rebound, stale
