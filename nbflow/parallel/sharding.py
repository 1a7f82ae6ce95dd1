"""Variables in pieces: a graph rewritten with some of its variables split by rows, each piece a state of its own.

A piece has contiguous rows, and all pieces nearly as many. Whoever reads the whole variable gets the pieces joined, one
message a piece. Rows that are looked up, updates, and elementwise ops between a gradient and its update are done piece
by piece, where the piece lies. All of it is ordinary ops, and numbers are those of the variable in one piece, bit for
bit. It comes before the strategy, which then sees variables like any other (docs/decisions/0011).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor, topological
from nbflow.op import AttrValue
from nbflow.ops.joining import concat
from nbflow.parallel.pieces import Splits, companions, partners, piece_name, rows_at, starts_of
from nbflow.parallel.sharded_rows import Rows, divide, look_up
from nbflow.rewrite import TensorMap, new_like

Key = tuple[str, int]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Divided:
    """A tensor of which there are pieces only. `by`: what divides it: tensors divided by the same go together.
    `starts`: of row numbers, what is to be added to those of each piece."""

    tensors: list[Tensor]
    by: object
    starts: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sharded:
    """The rewritten graph. `tensors` and `nodes` map the names before to what stands for them."""

    graph: Graph
    tensors: TensorMap
    nodes: dict[str, Node]


def shard(graph: Graph, splits: Splits, fetches: Sequence[Node | Tensor]) -> Sharded:
    """`graph`, a pruned copy, with the variables of `splits` in pieces."""
    found = {n: s for n, s in companions(graph, splits).items() if n in graph.nodes.keys()}
    if not found:
        same = {(n.name, t.index): t for n in graph.nodes.values() for t in n.outputs}
        return Sharded(graph, same, dict(graph.nodes.items()))
    made = _Sharding(graph, found)
    for node in topological(graph.nodes.values()):
        made.take(node)
    tensors: TensorMap = {}
    nodes: dict[str, Node] = {}
    for fetch in fetches:
        if isinstance(fetch, Node):
            nodes[fetch.name] = made.one(fetch)
        else:
            tensors[(fetch.node.name, fetch.index)] = made.whole(fetch)
    ordered = topological(made.made.nodes.values())
    made.made.nodes.clear()
    made.made.nodes.update({n.name: n for n in ordered})
    return Sharded(made.made, tensors, nodes)


class _Sharding:
    def __init__(self, graph: Graph, splits: Splits) -> None:
        self.graph = graph
        self.splits = splits
        self.made = new_like(graph)
        self.tensors: TensorMap = {}
        self.parts: dict[Key, Divided] = {}
        self.nodes: dict[str, list[Node]] = {}
        self.divided: dict[tuple[str, int, tuple[int, ...]], Rows] = {}
        self.partner = partners(graph)

    def take(self, node: Node) -> None:
        """Makes what stands for `node`."""
        if node.op == "variable" and node.name in self.splits:
            self.variable(node)
            return
        sizes = next((self.splits[t.node.name] for t in node.inputs if t.node.name in self.splits), None)
        if sizes is not None:
            self.stateful(node, sizes)
        elif self.looks_up(node):
            self.look_up(node)
        elif node.definition.elementwise and self.together(node) is not None:
            self.elementwise(node)
        else:
            self.put(node, node.name, [self.whole(t) for t in node.inputs])

    # --- variables -----------------------------------------------------------------------------------------------

    def variable(self, node: Node) -> None:
        sizes = self.splits[node.name]
        for number, rows in enumerate(sizes):
            name = piece_name(node.name, number)
            if name in self.graph.nodes.keys():
                raise GraphError(f"{name!r} is the name of a piece of variable {node.name!r}; choose another name")
            self.put(node, name, [], {**node.attrs, "shape": (rows, *node.attrs["shape"][1:])}, piece=number)
            if node.name in self.graph.generations:
                self.made.generations[name] = self.graph.generations[node.name]
        self.parts[(node.name, 0)] = Divided([n.outputs[0] for n in self.nodes[node.name]], sizes)

    def stateful(self, node: Node, sizes: tuple[int, ...]) -> None:
        """What works on a variable, piece by piece."""
        by: object = sizes
        starts: tuple[int, ...] | None = None
        if node.op == "sparse_join":
            values, indices = self.partner[node.name]
            rows = self.rows(self.whole(indices), sizes, indices)
            by = (id(rows), sizes)
            mine = rows.of(self.whole(values)) if node.attrs["part"] == "values" else rows.local
            starts = None if node.attrs["part"] == "values" else starts_of(sizes)
            columns: list[Sequence[Tensor]] = [mine, self.parts[(node.inputs[1].node.name, 0)].tensors]
        else:
            columns = [self.column(node, place, sizes) for place in range(len(node.inputs))]
        for number, count in enumerate(sizes):
            attrs = dict(node.attrs)
            attrs["variable"] = piece_name(str(attrs["variable"]), number)
            if "shape" in attrs:
                attrs["shape"] = (count, *attrs["shape"][1:])
            self.put(node, f"{node.name}/rows_{number}", [c[number] for c in columns], attrs, piece=number)
        for index in range(len(node.outputs)):
            outputs = [n.outputs[index] for n in self.nodes[node.name]]
            self.parts[(node.name, index)] = Divided(outputs, by, starts)

    def column(self, node: Node, place: int, sizes: tuple[int, ...]) -> Sequence[Tensor]:
        """Input number `place` of `node`, for each piece."""
        tensor, at = node.inputs[place], rows_at(node)
        if tensor.spec.resource:
            return self.parts[(tensor.node.name, tensor.index)].tensors
        if at and place in at:
            return self.given(node, place, at, sizes)
        if tensor.spec.rank == 0:
            return [self.whole(tensor)] * len(sizes)
        return self.cut(tensor, sizes)

    def given(self, node: Node, place: int, at: tuple[int, int], sizes: tuple[int, ...]) -> Sequence[Tensor]:
        """Values or row numbers of a sparse update, divided."""
        values, indices = node.inputs[at[0]], node.inputs[at[1]]
        known = [self.parts.get((t.node.name, t.index)) for t in (values, indices)]
        if known[0] is not None and known[1] is not None and known[0].by == known[1].by:
            mine = known[0] if place == at[0] else known[1]
            return mine.tensors
        rows = self.rows(self.whole(indices), sizes, indices)
        return rows.local if place == at[1] else rows.of(self.whole(values))

    def rows(self, indices: Tensor, sizes: tuple[int, ...], old: Tensor) -> Rows:
        key = (old.node.name, old.index, sizes)
        if key not in self.divided:
            self.divided[key] = self.build(old.node, lambda: divide(indices, sizes))
        return self.divided[key]

    def cut(self, tensor: Tensor, sizes: tuple[int, ...]) -> Sequence[Tensor]:
        """The rows of `tensor` that belong to each piece."""
        known = self.parts.get((tensor.node.name, tensor.index))
        if known is not None and known.by == sizes:
            return known.tensors
        whole = self.whole(tensor)
        made = self.build(tensor.node, lambda: self.made.add("split", (whole,), {"sizes": sizes, "axis": 0}))
        return made.outputs

    # --- between ---------------------------------------------------------------------------------------------------

    def looks_up(self, node: Node) -> bool:
        return (
            node.op in ("take", "gather_nd")
            and len(node.inputs) == 2
            and node.attrs["axis"] == 0
            and node.inputs[0].node.op == "read_variable"
            and (node.inputs[0].node.name, 0) in self.parts
        )

    def look_up(self, node: Node) -> None:
        read, ids = node.inputs
        known = self.parts[(read.node.name, 0)]
        sizes = tuple(t.spec.shape[0] or 0 for t in known.tensors if t.spec.shape)
        rows = self.rows(self.whole(ids), sizes, ids)
        found = self.build(node, lambda: look_up(known.tensors, rows, self.whole(ids)))
        self.tensors[(node.name, 0)] = found
        self.nodes[node.name] = [found.node]

    def together(self, node: Node) -> Divided | None:
        """What divides the inputs of `node`, if all that are no scalars are divided by the same."""
        found: Divided | None = None
        for tensor in node.inputs:
            mine = self.parts.get((tensor.node.name, tensor.index))
            if mine is None:
                if tensor.spec.rank != 0:
                    return None
            elif mine.starts is not None or (found is not None and found.by != mine.by):
                return None
            else:
                found = mine
        return found if len(node.outputs) == 1 else None

    def elementwise(self, node: Node) -> None:
        found = self.together(node)
        assert found is not None  # it was asked
        outputs = []
        for number in range(len(found.tensors)):
            mine = [self.parts.get((t.node.name, t.index)) for t in node.inputs]
            inputs = [self.whole(t) if d is None else d.tensors[number] for t, d in zip(node.inputs, mine, strict=True)]
            outputs.append(self.put(node, f"{node.name}/rows_{number}", inputs, piece=number).outputs[0])
        self.parts[(node.name, 0)] = Divided(outputs, found.by)

    # --- making ----------------------------------------------------------------------------------------------------

    def put(
        self,
        old: Node,
        name: str,
        inputs: Sequence[Tensor],
        attrs: Mapping[str, AttrValue] | None = None,
        *,
        piece: int | None = None,
    ) -> Node:
        """One node that stands for `old`, or for it on one piece."""
        kept = dict(old.attrs if attrs is None else attrs)
        controls = [m for c in old.control_inputs for m in self.nodes.get(c.name, ())]
        beside = [piece_name(c, piece or 0) if c in self.splits else c for c in old.colocate]
        node = Node(
            self.made,
            name,
            old.op,
            tuple(inputs),
            tuple(dict.fromkeys(controls)),
            kept,
            list(old.definition.infer([t.spec for t in inputs], kept)),
            device=old.device,
            colocate=tuple(dict.fromkeys(beside)),
            owner=old.owner,
            line=old.line,
            auto_named=old.auto_named,
        )
        self.made.nodes[name] = node
        if piece is None and old.name in self.graph.generations:
            self.made.generations[name] = self.graph.generations[old.name]
        self.nodes.setdefault(old.name, []).append(node)
        if piece is None:
            for mine, tensor in zip(node.outputs, old.outputs, strict=True):
                self.tensors[(old.name, tensor.index)] = mine
        return node

    def build(self, old: Node, make: Callable[[], T]) -> T:
        """What `make` makes, as of the cell that made `old`, where `old` was asked to be."""
        saved, self.made.owner = self.made.owner, old.owner
        try:
            with self.made.as_default(), self.made.absolute_scope(f"{old.name}/by_rows"), self.made.device(old.device):
                return make()
        finally:
            self.made.owner = saved

    def whole(self, old: Tensor) -> Tensor:
        """What stands for `old`, as one tensor."""
        key = (old.node.name, old.index)
        if key not in self.tensors:
            found = self.parts[key]
            self.tensors[key] = self.build(old.node, lambda: _joined(found))
        return self.tensors[key]

    def one(self, old: Node) -> Node:
        """What stands for `old`, as one node."""
        found = self.nodes[old.name]
        if len(found) == 1:
            return found[0]
        return self.build(old, lambda: self.made.add("group", (), {}, control_inputs=found))


def _joined(found: Divided) -> Tensor:
    tensors = found.tensors
    if found.starts is not None:
        tensors = [t + s if s else t for t, s in zip(tensors, found.starts, strict=True)]
    return concat(tensors, axis=0)
