"""What every strategy with replicas does: the ops that gradients are computed from, once a replica.

The graph falls into three parts. *Early*: what does not depend on a replica's data, such as variables and their reads.
*Copied*: what each replica has of its own. *The rest*: updates, and whatever comes after them. What crosses from the
second to the third is joined: how, is the strategy's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nbflow.device import DeviceSpec
from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor, ancestors, topological
from nbflow.op import nbytes_of
from nbflow.ops.rows import SCATTER_UPDATES
from nbflow.ops.state import GRADIENT_INPUT
from nbflow.parallel.base import Expanded
from nbflow.parallel.checks import check_data
from nbflow.rewrite import TensorMap, copy_nodes, new_like
from nbflow.spec import kind_of

# Ops (handle, value) that change a variable, other than the updates of optimizers.
_STATE_WRITERS = ("assign", "assign_add", "assign_sub")
# Ops (handle, row numbers, values) that change rows of one.
_ROW_WRITERS = tuple(f"variable_scatter_{how}" for how in SCATTER_UPDATES)
# Ops that give each replica data of its own.
_READERS = ("iterator_next", "queue_dequeue", "queue_dequeue_many", "queue_dequeue_up_to")

Key = tuple[str, int]  # a tensor: the name of its node, and which output
Change = Callable[[Node, Node], None]


def joints(updates: Sequence[Node]) -> list[Node]:
    """Where gradients are joined: at joins, and at the updates with none before them."""
    joins = {n.name for n in updates if n.op in ("gradient_join", "sparse_join")}
    if not joins:
        return list(updates)
    behind = reached(ancestors(updates), joins)
    return [n for n in updates if n.name in joins or n.inputs[GRADIENT_INPUT[n.op]].node.name not in behind]


def reached(order: Sequence[Node], names: set[str]) -> set[str]:
    """`names` and those of the nodes that depend on them, among `order` (inputs first)."""
    found: set[str] = set()
    for node in order:
        before = (*(t.node for t in node.inputs), *node.control_inputs)
        if node.name in names or any(b.name in found for b in before):
            found.add(node.name)
    return found


def looks_up_rows(node: Node) -> bool:
    """Whether `node` takes rows from a variable that is larger than what it takes."""
    return (
        node.op in ("take", "gather_nd")
        and node.inputs[0].node.op == "read_variable"
        and not str(node.device)
        and nbytes_of([node.outputs[0].spec]) < nbytes_of([node.inputs[0].spec])
    )


class Replication:
    """Builds the replicated graph in `made`: `early`, then `replica` for each, then `rest`.

    `replicas`: the device of each, in order. `dealt`: each takes batches of its own, not its part of every batch.
    `what`: what they are called, for people. Raises GraphError when there is too little data for so many.
    """

    def __init__(
        self,
        graph: Graph,
        step: Node,
        fetches: Sequence[Node | Tensor],
        replicas: Sequence[DeviceSpec],
        *,
        dealt: bool = False,
        what: str = "replicas",
    ) -> None:
        self.graph = graph
        self.step = step
        self.fetches = fetches
        self.replicas = replicas
        self.dealt = dealt
        # Where a copied node of a replica goes; None: where the placer finds best.
        self.device_of: Callable[[Node, int], DeviceSpec | None] = lambda node, index: replicas[index]
        self.made = new_like(graph)
        self.made.owner = step.owner  # what joins the replicas belongs to the cell of the step
        self.tensors: TensorMap = {}  # what stands for the original, outside the replicas
        self.nodes: dict[str, Node] = {}
        self.of_replica: dict[int, TensorMap] = {}
        self.applies = joints([n for n in ancestors([step]) if n.op in GRADIENT_INPUT])
        if not self.applies:
            raise GraphError(f"{step.name!r} updates no variable", where=step.where)
        self.order = topological(self.graph.nodes.values())
        self.writers = self._state_writers()
        self.homes = self._homes()
        self.copied = self._replicated()
        readers = [n for n in self.order if n.op == "iterator_next" and n.name in self.copied]
        # What says of each replica how much of the rows it has; None when there is no dataset.
        self.share = readers[0].outputs[-1] if readers else None
        check_data(readers, len(replicas), dealt=dealt, what=what)

    def _state_writers(self) -> list[Node]:
        """Updates of state on the way (the moving averages of batch_norm): made once, with the mean over the replicas,
        as with gradients. One whose new value is computed with stays with the replica that does so."""
        read = {t.node.name for n in self.graph.nodes.values() for t in n.inputs}
        return [
            n
            for n in self.graph.nodes.values()
            if n.op in (*_STATE_WRITERS, *_ROW_WRITERS) and n.name not in read and not any(n is f for f in self.fetches)
        ]

    def _replicated(self) -> set[str]:
        """Names of the nodes that each replica has of its own: what gradients are computed from, and what else is
        computed from that without passing through an update."""
        roots = [n.inputs[GRADIENT_INPUT[n.op]].node for n in self.applies]
        alone = {
            n.name for n in self.graph.nodes.values() if n.op in ("variable", "read_variable", "queue", "placeholder")
        }
        alone.update(n.name for n in self.writers)
        found = {n.name for n in ancestors(roots)} - alone
        applied: set[str] = set()
        for node in self.order:
            before = [t.node for t in node.inputs] + list(node.control_inputs)
            if node.op in GRADIENT_INPUT or any(b.name in applied for b in before):
                applied.add(node.name)
            elif node.name not in alone and any(t.node.name in found for t in node.inputs):
                found.add(node.name)
        for node in self.writers:
            # Each replica scatters as many row numbers as values.
            if node.op in _ROW_WRITERS and any(t.node.name in found for t in node.inputs[1:]):
                found.update({n.name for n in ancestors([t.node for t in node.inputs[1:]])} - alone - applied)
        # Constants and the like that only the copied nodes read cost nothing to copy, and save a transfer a step.
        users: dict[str, list[str]] = {}
        for node in self.graph.nodes.values():
            for tensor in node.inputs:
                if tensor.node.op == "constant":
                    users.setdefault(tensor.node.name, []).append(node.name)
        found.update(name for name, readers in users.items() if all(reader in found for reader in readers))
        return found

    def _homes(self) -> dict[Key, tuple[str, str]]:
        """Tensor -> the variable for whose sake it is joined, and how: 'mean' of gradients and new values, 'share' for
        the values of a sparse gradient, which are concatenated as parts of that mean, 'rows' for row numbers and what
        is scattered, concatenated as they are."""
        found: dict[Key, tuple[str, str]] = {}
        for node in self.applies:
            how = {"values": "share", "indices": "rows"}.get(node.attrs.get("part", ""), "mean")
            tensor = node.inputs[GRADIENT_INPUT[node.op]]
            home = next(t.node.name for t in node.inputs if t.spec.resource)
            found.setdefault((tensor.node.name, tensor.index), (home, how))
        for node in self.writers:
            how = "rows" if node.op in _ROW_WRITERS else "mean"
            for tensor in node.inputs[1:]:
                found.setdefault((tensor.node.name, tensor.index), (node.inputs[0].node.name, how))
        return found

    # --- building --------------------------------------------------------------------------------------------------

    def early(self, change: Change | None = None) -> None:
        """What depends on no replica."""
        behind = reached(self.order, self.copied)
        early = [n for n in self.order if n.name not in behind]
        copy_nodes(early, self.made, self.tensors, self.nodes, change=change)

    def replica(self, index: int) -> None:
        """What replica `index` has of its own, as `replica_<index>/…`."""
        tensors = dict(self.tensors)
        mine = [n for n in self.order if n.name in self.copied]
        copy_nodes(
            mine,
            self.made,
            tensors,
            dict(self.nodes),
            rename=lambda name: f"replica_{index}/{name}",
            change=lambda old, new: self.adapt(old, new, index),
        )
        self.of_replica[index] = tensors

    def rest(self, change: Change | None = None) -> None:
        """Updates and what comes after them, once all that crosses is in `tensors`."""
        rest = [n for n in self.order if n.name not in self.copied and n.name not in self.nodes]
        copy_nodes(rest, self.made, self.tensors, self.nodes, change=change)
        # What ran after a copied node runs after all of its copies.
        for node in rest:
            copies = [
                self.made.nodes[f"replica_{i}/{c.name}"]
                for c in node.control_inputs
                if c.name in self.copied
                for i in self.of_replica
            ]
            new = self.nodes[node.name]
            new.control_inputs = tuple(dict.fromkeys([*new.control_inputs, *copies]))

    def end_on(self, device: DeviceSpec) -> None:
        """The step ends on `device`, unless the user named a job: which of equal workers is best would be chance."""
        end = self.nodes[self.step.name]
        if end.op == "group" and end.device.job is None:
            end.device = device.merge(DeviceSpec(type=end.device.type, index=end.device.index))

    def adapt(self, old: Node, new: Node, index: int) -> None:
        """A replica's node: on the replica's device unless the user named a job, with its part of the data."""
        new.colocate = ()
        if looks_up_rows(new):
            # On the variable's device: a few rows travel to the replica, not the whole table.
            new.colocate = (new.inputs[0].node.inputs[0].node.name,)
        elif new.device.job is None:
            place = self.device_of(old, index)
            if place is not None:
                new.device = place.merge(DeviceSpec(type=new.device.type, index=new.device.index))
        if new.op == "iterator":
            new.attrs["shared"] = old.name  # one place for all replicas, which saving and restoring know
        elif new.op == "iterator_next":
            new.attrs["deal" if self.dealt else "shard"] = (index, len(self.replicas))

    @property
    def home(self) -> str:
        """The name of the first variable that is trained: what all replicas share is beside it."""
        return next(t.node.name for t in self.applies[0].inputs if t.spec.resource)

    @property
    def given(self) -> list[Key]:
        """What the replicas compute for the sake of updates."""
        return [key for key in self.homes if key[0] in self.copied]

    def crossing(self) -> list[Tensor]:
        """Tensors of the replicas that somebody outside reads: updates first, then fetches and others."""
        found: dict[Key, Tensor] = {}
        for node in self.order:
            if node.name not in self.copied:
                for tensor in node.inputs:
                    if tensor.node.name in self.copied:
                        found[(tensor.node.name, tensor.index)] = tensor
        for fetch in self.fetches:
            if isinstance(fetch, Tensor) and fetch.node.name in self.copied:
                found[(fetch.node.name, fetch.index)] = fetch
        wanted = {(t.node.name, t.index) for n in self.applies for t in [n.inputs[GRADIENT_INPUT[n.op]]]}
        wanted |= {(t.node.name, t.index) for n in self.writers for t in n.inputs[1:]}
        return [t for k, t in found.items() if k in wanted] + [t for k, t in found.items() if k not in wanted]

    def parts(self, tensor: Tensor) -> list[Tensor]:
        """What stands for `tensor` in each replica, in their order."""
        return [tensors[(tensor.node.name, tensor.index)] for tensors in self.of_replica.values()]

    def weights(self) -> list[Tensor] | None:
        """Each replica's share of the rows, from its own iterator; None when there is no dataset."""
        return None if self.share is None else self.parts(self.share)

    def has_data(self, tensor: Tensor) -> bool:
        """Whether the replicas compute `tensor` from data of their own."""
        return any(n.op in _READERS and n.name in self.copied for n in ancestors([tensor.node]))

    def joining(self, tensor: Tensor) -> tuple[str, str]:
        """The variable for whose sake `tensor` is joined, or nothing, and how. Raises GraphError when it cannot be."""
        found = self.homes.get((tensor.node.name, tensor.index))
        if found is None:
            if tensor.spec.rank != 0:
                return "", "rows" if self.has_data(tensor) else "same"
            found = "", "mean"
        if found[1] == "mean" and kind_of(tensor.dtype) not in "fc":
            raise GraphError(
                f"{tensor.name} is a {tensor.dtype.name} scalar on each replica, of which there is no mean; "
                "cast it with nf.astype, or fetch it without the training step",
                where=tensor.node.where,
            )
        return found

    def stands_for(self, fetch: Node | Tensor) -> Node:
        """The node that makes `fetch`, or what stands for it."""
        if isinstance(fetch, Node):
            return self.nodes[fetch.name]
        return self.tensors[(fetch.node.name, fetch.index)].node

    def expanded(self, prefer: dict[str, str]) -> Expanded:
        names = tuple(str(d) for d in self.replicas)
        return Expanded(self.made, self.tensors, self.nodes, prefer, names)
