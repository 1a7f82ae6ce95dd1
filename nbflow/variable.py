"""Variables: tensors that keep their value from step to step.

A variable initialises itself on first use, and stands wherever a tensor is expected. Its value lives on the device that
holds its `variable` op; reading and assigning are ops, colocated with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nbflow.body import lift, outside_bodies
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph, Node, Tensor, ancestors, as_node, get_graph, graph_for
from nbflow.operators import Operators
from nbflow.ops import astype
from nbflow.ops._build import ArrayLike, as_tensor, convert
from nbflow.ops.slices import IndexedSlices
from nbflow.ops.state import checked_shape, variable_attrs
from nbflow.spec import DTypeLike, as_dtype, can_become, format_shape


class Variable(Operators):
    """A tensor that keeps its value.

    - `initial`: tensor, array or number; its shape must be static. A Python number or list of numbers becomes float32
      or int64, unless `dtype` says otherwise. The value is copied.
    - `name`: used as it is, under the current name scope; numbered when left out.
    - `trainable`: optimizers change it by default.

    Raises GraphError (ShapeError) when the shape is not static, NameInUseError when the name is taken.
    """

    __slots__ = ("_node", "_read")

    _node: Node
    _read: Tensor

    def __init__(
        self,
        initial: ArrayLike,
        name: str | None = None,
        trainable: bool = True,
        dtype: DTypeLike = None,
    ) -> None:
        what = f"the initial value of variable {name or '(unnamed)'}"
        # Made while a body is traced, it lives outside: there is one, however often the body runs.
        with outside_bodies(_graph_of(initial)) as graph, graph.as_default():
            self._make(graph, lift(_initial_value(initial, dtype), what), what, name, trainable)

    def _make(self, graph: Graph, value: Tensor, what: str, name: str | None, trainable: bool) -> None:
        shape = checked_shape(value.shape, what)
        # A variable and its read belong to no step: dependencies around this line are not theirs.
        with graph.control_dependencies(None):
            node = graph.add("variable", (), variable_attrs(shape, value.dtype, trainable), name=name)
            with graph.absolute_scope(node.name), graph.colocate_with(node):
                attrs = {"variable": node.name}
                graph.add("initialize", (node.outputs[0], value), attrs, name="initialize")
                read = graph.add("read_variable", node.outputs, attrs, name="read")
        self._node = node
        self._read = read.outputs[0]

    @classmethod
    def from_node(cls, node: Node) -> Variable:
        """The variable whose handle is made by `node`. Raises GraphError when `node` is no variable."""
        if node.op != "variable":
            raise GraphError(f"{node.name!r} is an op {node.op!r}, not a variable", where=node.where)
        read = node.graph.find(f"{node.name}/read") or node.graph.nodes.get(f"{node.name}/read")
        if read is None or read.inputs[0].node is not node:
            raise GraphError(f"variable {node.name!r} has lost its op {node.name}/read", where=node.where)
        made = cls.__new__(cls)
        made._node, made._read = node, read.outputs[0]
        return made

    def to_tensor(self) -> Tensor:
        """The variable's value at the start of the step, in so far as nothing in the step changes it before."""
        return self._read

    def __pos__(self) -> Tensor:
        return self._read

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __bool__(self) -> bool:
        return bool(self._read)

    @property
    def name(self) -> str:
        return self._node.name

    @property
    def handle(self) -> Tensor:
        """What the ops that change the variable take."""
        return self._node.outputs[0]

    @property
    def node(self) -> Node:
        return self._node

    @property
    def graph(self) -> Graph:
        return self._node.graph

    @property
    def shape(self) -> tuple[int, ...]:
        return checked_shape(self._read.shape, f"variable {self.name}")

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._read.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def trainable(self) -> bool:
        return bool(self._node.attrs["trainable"])

    @property
    def device(self) -> str:
        """The device asked for, possibly partial or empty."""
        return str(self._node.device)

    def __repr__(self) -> str:
        return f"<Variable {self.name} {self.dtype.name}{format_shape(self.shape)} from {self._node.where}>"

    def read(self, name: str | None = None) -> Tensor:
        """Reads once more: under `nf.control_dependencies`, after what they name."""
        return self._op("read_variable", (self.handle,), {}, name)

    def assign(self, value: ArrayLike, name: str | None = None) -> Tensor:
        """Sets the value; gives it. Raises ShapeError or DTypeError when `value` does not fit."""
        return self._update("assign", value, name)

    def assign_add(self, value: ArrayLike, name: str | None = None) -> Tensor:
        """Adds `value`, in place; gives the sum."""
        return self._update("assign_add", value, name)

    def assign_sub(self, value: ArrayLike, name: str | None = None) -> Tensor:
        """Subtracts `value`, in place; gives the difference."""
        return self._update("assign_sub", value, name)

    # Scatter updates: an op that changes only the rows (slices along the first dimension) numbered `indices`, an
    # integer tensor of any shape s, with `values` of shape s + shape[1:]. They have no result: reading the variable
    # after one (`nf.control_dependencies`) gives the new value, without a copy of all of it at each update.

    def scatter_update(self, indices: ArrayLike, values: ArrayLike, name: str | None = None) -> Node:
        """An op that sets rows; where one is named twice the last value stays."""
        return self._scatter("assign", indices, values, name)

    def scatter_add(self, indices: ArrayLike, values: ArrayLike, name: str | None = None) -> Node:
        """An op that adds to rows; values for the same row add up."""
        return self._scatter("add", indices, values, name)

    def scatter_sub(self, indices: ArrayLike, values: ArrayLike, name: str | None = None) -> Node:
        """An op that subtracts from rows; values for the same row add up."""
        return self._scatter("sub", indices, values, name)

    def scatter_mul(self, indices: ArrayLike, values: ArrayLike, name: str | None = None) -> Node:
        """An op that multiplies rows, one named twice by both values."""
        return self._scatter("mul", indices, values, name)

    def scatter_min(self, indices: ArrayLike, values: ArrayLike, name: str | None = None) -> Node:
        """An op that sets rows to the lesser of themselves and the values."""
        return self._scatter("min", indices, values, name)

    def scatter_max(self, indices: ArrayLike, values: ArrayLike, name: str | None = None) -> Node:
        """An op that sets rows to the greater of themselves and the values."""
        return self._scatter("max", indices, values, name)

    def _scatter(self, how: str, indices: ArrayLike, values: ArrayLike, name: str | None) -> Node:
        if not self.shape:
            raise ShapeError(f"variable {self.name!r} is a scalar and has no rows; use assign")
        graph = graph_for([self.handle])
        with graph.as_default(), graph.colocate_with(self._node):
            places = convert(indices)
            slices = IndexedSlices(self._value(values), places, self._read)
            flat = slices if places.ndim == 1 else slices.flat()
            inputs = (self.handle, flat.indices, flat.values)
            return graph.add(f"variable_scatter_{how}", inputs, {"variable": self.name}, name=name)

    def _value(self, value: ArrayLike) -> Tensor:
        given = as_tensor(value)
        return convert(value, _castable(value, self.dtype, self.name)) if given is None else given

    def _update(self, op: str, value: ArrayLike, name: str | None) -> Tensor:
        return self._op(op, (self.handle, self._value(value)), {"shape": self.shape}, name)

    def _op(self, op: str, inputs: tuple[Tensor, ...], attrs: dict[str, Any], name: str | None) -> Tensor:
        graph = graph_for(inputs)
        with graph.colocate_with(self._node):
            return graph.add(op, inputs, {"variable": self.name, **attrs}, name=name).outputs[0]


def variables_of(*targets: Tensor | Node | Variable) -> list[Variable]:
    """The variables that `targets` depend on, by name, so that their order does not depend on that of the cells."""
    nodes = ancestors([as_node(t) for t in targets])
    return sorted((Variable.from_node(n) for n in nodes if n.op == "variable"), key=lambda v: v.name)


def global_variables(graph: Graph | None = None) -> list[Variable]:
    """All variables of `graph` (the current one when left out) as the running cell sees it, sorted by name."""
    graph = graph or get_graph()
    names = sorted({*graph.nodes.keys(), *(graph.pending or ())})
    found = [node for node in map(graph.find, names) if node is not None and node.op == "variable"]
    return [Variable.from_node(node) for node in found]


def trainable_variables(graph: Graph | None = None) -> list[Variable]:
    """All trainable variables of `graph` (the current one when left out), sorted by name."""
    return [v for v in global_variables(graph) if v.trainable]


def _graph_of(initial: ArrayLike) -> Graph:
    tensor = as_tensor(initial)
    return get_graph() if tensor is None else graph_for([tensor])


def _initial_value(initial: ArrayLike, dtype: DTypeLike) -> Tensor:
    found = as_tensor(initial)
    if found is None:
        return convert(initial, dtype)
    if dtype is not None and found.dtype != as_dtype(dtype):
        return astype(found, dtype)
    return found


def _castable(value: Any, dtype: np.dtype[Any], variable: str) -> np.dtype[Any]:
    """`dtype`, when an array like `value` may become it without changing its kind (float64 → float32, int → float)."""
    probe = np.asarray(value)
    if not can_become(probe.dtype, dtype):
        raise DTypeError(
            f"variable {variable!r} holds {dtype}, got {type(value).__name__} of {probe.dtype}; convert it first"
        )
    return dtype


def as_variables(values: Sequence[Variable | Tensor]) -> list[Variable]:
    """Variables from variables or their handles and reads. Raises GraphError for other tensors."""
    found = []
    for value in values:
        if isinstance(value, Variable):
            found.append(value)
            continue
        node = as_node(value)
        handle = node.inputs[0].node if node.op == "read_variable" else node
        found.append(Variable.from_node(handle))
    return found
