"""What export rules write with: ONNX nodes, constants and inner graphs as plain records. Nothing imports `onnx` here.

A rule translates one node: `rule(site, *names)` takes the ONNX names of the node's inputs, adds ONNX nodes through the
`Site`, and returns the names of its outputs. `Rules` is a table of them by nbflow op, as backends are tables.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor, topological
from nbflow.spec import TensorSpec, kind_of

Array = np.ndarray[Any, Any]
Rule = Callable[..., "str | Sequence[str]"]
Key = tuple[str, int]
# A dimension while writing: known, or the name of an int64 vector of length 1.
Size = int | str

INT64 = np.dtype(np.int64)
# What a slice's open ends are in ONNX: clamped to the dimension.
LAST, FIRST = np.iinfo(np.int64).max, np.iinfo(np.int64).min
# Constants up to this size are shared where they are equal.
_SHARED_BYTES = 256


class Rules(dict[str, Rule]):
    """Rules by op name; `@rules.writes("add")` adds one. Adding one twice is an error."""

    def writes(self, *names: str) -> Callable[[Rule], Rule]:
        def add(rule: Rule) -> Rule:
            for name in names:
                if name in self:
                    raise GraphError(f"op {name!r} has two export rules")
                self[name] = rule
            return rule

        return add


@dataclass(slots=True)
class Written:
    """One ONNX node. Inner graphs are attributes."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any]


@dataclass(slots=True)
class Inner:
    """The graph of a branch or of a loop's body. It sees the names around it; its constants are the model's."""

    inputs: list[tuple[str, TensorSpec]]
    outputs: list[tuple[str, TensorSpec]]
    nodes: list[Written]


def all_nodes(nodes: Iterable[Written]) -> Iterator[Written]:
    """`nodes` and those of their inner graphs."""
    for node in nodes:
        yield node
        for value in node.attrs.values():
            if isinstance(value, Inner):
                yield from all_nodes(value.nodes)


def needed(outputs: Iterable[Tensor], known: Container[Key] = ()) -> list[Node]:
    """What computes `outputs` from what is known, topologically sorted. Control inputs are not looked at."""
    found: dict[str, Node] = {}
    todo = [t for t in outputs if key_of(t) not in known]
    while todo:
        node = todo.pop().node
        if node.name not in found:
            found[node.name] = node
            todo.extend(t for t in node.inputs if key_of(t) not in known)
    return topological(found[name] for name in sorted(found))


def key_of(tensor: Tensor) -> Key:
    """A tensor within its graph: its node's name and its index."""
    return tensor.node.name, tensor.index


class Writer:
    """The nodes and constants written so far, by `rules`. Names are unique; `reserved` ones are the model's ends."""

    def __init__(self, opset: int, rules: Mapping[str, Rule], reserved: Sequence[str] = ()) -> None:
        self.opset = opset
        self.rules = rules
        self.nodes: list[Written] = []
        self.constants: dict[str, Array] = {}
        self._taken = set(reserved)
        self._numbers: dict[str, int] = {}
        self._shared: dict[Any, str] = {}

    def unique(self, wanted: str) -> str:
        """`wanted`, numbered when it is taken."""
        name = wanted
        while name in self._taken:
            number = self._numbers.get(wanted, 0) + 1
            self._numbers[wanted] = number
            name = f"{wanted}.{number}"
        self._taken.add(name)
        return name

    def constant(self, value: Any, dtype: Any = None, name: str = "constant") -> str:
        """A constant's name; small equal ones are one."""
        array = np.asarray(value, dtype)
        if array.nbytes > _SHARED_BYTES:
            made = self.unique(name)
        else:
            key = (array.dtype, array.shape, array.tobytes())
            if key in self._shared:
                return self._shared[key]
            made = self._shared[key] = self.unique(name)
        self.constants[made] = array
        return made

    def translate(self, nodes: Iterable[Node], names: dict[Key, str]) -> None:
        """Writes `nodes`, in order. `names` has those of what they take, and gets those of what they give."""
        for node in nodes:
            made = self.rules[node.op](Site(self, node), *[names[key_of(t)] for t in node.inputs])
            for tensor, name in zip(node.outputs, [made] if isinstance(made, str) else made, strict=True):
                names.setdefault(key_of(tensor), name)

    @contextmanager
    def inner(self) -> Iterator[list[Written]]:
        """What is written inside goes into the list that this yields."""
        outside, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outside

    def add(self, op: str, inputs: Sequence[str], outputs: int, scope: str, attrs: dict[str, Any]) -> list[str]:
        """The names of a new node's outputs."""
        name = self.unique(f"{scope}/{op}")
        made = [name if outputs == 1 else self.unique(f"{name}:{n}") for n in range(outputs)]
        self.nodes.append(Written(op, name, list(inputs), made, attrs))
        return made


class Site:
    """The node being translated, and what its rule may use."""

    def __init__(self, writer: Writer, node: Node) -> None:
        self.writer = writer
        self.node = node
        self.attrs = node.attrs
        self.specs: tuple[TensorSpec, ...] = tuple(t.spec for t in node.inputs)

    @property
    def out(self) -> TensorSpec:
        """The spec of the first output."""
        return self.node.outputs[0].spec

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        """The output of a new ONNX node. Inputs that are left out are ''."""
        (made,) = self.writer.add(op, inputs, 1, self.node.name, attrs)
        return made

    def add_many(self, op: str, *inputs: str, outputs: int, **attrs: Any) -> list[str]:
        """The outputs of a new ONNX node that has several."""
        return self.writer.add(op, inputs, outputs, self.node.name, attrs)

    def const(self, value: Any, dtype: Any = None) -> str:
        """A constant."""
        return self.writer.constant(value, dtype, f"{self.node.name}/constant")

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.const(values, INT64)

    def cast(self, x: str, source: np.dtype[Any], wanted: np.dtype[Any]) -> str:
        """`x` in another dtype; `x` itself when it has it."""
        if source == wanted:
            return x
        known = self.writer.constants.get(x)
        if known is not None and kind_of(wanted) in "biuf":
            return self.const(known.astype(wanted))
        return self.add("Cast", x, to=wanted)

    def widely(self, op: str, *inputs: str, dtype: np.dtype[Any], keep: str = "", **attrs: Any) -> str:
        """A node whose inputs and output are all `dtype`; computed in int64 for integers and booleans, which wraps
        around as they do, unless the dtype is one of `keep`, those that runtimes have kernels for."""
        if kind_of(dtype) == "f" or dtype.name in keep.split():
            return self.add(op, *inputs, **attrs)
        return self.cast(self.add(op, *[self.cast(x, dtype, INT64) for x in inputs], **attrs), INT64, dtype)

    def transpose(self, x: str, axes: Sequence[int]) -> str:
        """`x` with its dimensions in another order; of a constant, another constant."""
        if list(axes) == list(range(len(axes))):
            return x
        known = self.writer.constants.get(x)
        if known is not None:
            return self.writer.constant(np.ascontiguousarray(known.transpose(axes)), name=x)
        return self.add("Transpose", x, perm=list(axes))

    def fail(self, why: str) -> NoReturn:
        """Raises GraphError that names the op, the node and its cell."""
        raise GraphError(f"{self.node.op} {self.node.name!r} cannot be written as ONNX: {why}", where=self.node.where)

    def rank(self, index: int = 0) -> int:
        """The rank of an input. Raises GraphError when it is unknown."""
        found = self.specs[index].rank
        if found is None:
            self.fail(f"the rank of {self.node.inputs[index].name} is unknown; give its placeholder a shape")
        return found

    def axis(self, index: int = 0, name: str = "axis") -> int:
        """The attribute `axis`, counted from the front."""
        return int(self.attrs[name]) % max(self.rank(index), 1)

    # --- shapes ----------------------------------------------------------------------------------------------------

    def shape(self, x: str) -> str:
        """The shape of `x`, an int64 vector."""
        return self.add("Shape", x)

    def size(self, x: str, axis: int, spec: TensorSpec | None = None) -> Size:
        """One dimension of `x`, which `spec` may know."""
        if spec is not None and spec.shape is not None:
            known = spec.shape[axis]
            if known is not None:
                return known
        end = {} if axis == -1 else {"end": axis + 1}
        return self.add("Shape", x, start=axis, **end)

    def sizes(self, x: str, index: int = 0) -> list[Size]:
        """All dimensions of an input, whose rank must be known."""
        return [self.size(x, axis, self.specs[index]) for axis in range(self.rank(index))]

    def vector(self, sizes: Sequence[Size]) -> str:
        """An int64 vector of dimensions: a constant when all are known."""
        if all(isinstance(s, int) for s in sizes):
            return self.const(list(sizes), INT64)
        parts = [self.ints(s) if isinstance(s, int) else s for s in sizes]
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)

    def arithmetic(self, op: str, a: Size, b: Size) -> Size:
        """`a op b` of dimensions: Add, Sub, Mul, Div, Max or Min."""
        if isinstance(a, int) and isinstance(b, int):
            return _ARITHMETIC[op](a, b)
        return self.add(op, *[self.ints(s) if isinstance(s, int) else s for s in (a, b)])

    def scalar(self, size: Size) -> str:
        """A dimension as an int64 scalar."""
        return self.const(size, INT64) if isinstance(size, int) else self.add("Squeeze", size, self.ints(0))

    def range(self, count: Size) -> str:
        """0 to count - 1, an int64 vector."""
        if isinstance(count, int):
            return self.const(np.arange(count))
        return self.add("Range", self.const(0, INT64), self.scalar(count), self.const(1, INT64))

    def reshape(self, x: str, sizes: Sequence[Size]) -> str:
        """`x` in another shape; a 0 is a dimension of 0."""
        if -1 in sizes:
            return self.add("Reshape", x, self.vector(sizes))
        return self.add("Reshape", x, self.vector(sizes), allowzero=1)


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a // b,
    "Max": max,
    "Min": min,
}
