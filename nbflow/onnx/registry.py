"""Translators: how each ONNX operator becomes nodes, in a table keyed by domain, name and the opset it holds since.

A translator takes a `Call`, one node of a model with its inputs as tensors, and returns its outputs: a tensor, or a
sequence of them (None for an optional output that it does not make). It builds under the node's scope.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto

from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor, ancestors
from nbflow.onnx.statics import Statics

if TYPE_CHECKING:
    from nbflow.onnx.importer import Builder

# What a name in a model stands for: a tensor, a sequence (as a tuple of values), or nothing (an empty optional).
Value = Any
Translator = Callable[["Call"], Value]

MAIN = ""
ML = "ai.onnx.ml"


class NeedsValue(GraphError):
    """What the graph looks like depends on a value that is only known at run time.

    `inputs`: the model's inputs that it is computed from; binding them to arrays at import makes it known.
    """

    def __init__(self, message: str, inputs: Sequence[Node]) -> None:
        super().__init__(message)
        self.inputs = tuple(inputs)


@dataclass(frozen=True, slots=True)
class Call:
    """One node of a model, ready to be translated.

    `attrs` holds the given attributes and the schema's defaults, strings as str, tensors as arrays. `opset` is the
    version of the node's domain that the model imports.
    """

    proto: NodeProto
    inputs: tuple[Value, ...]
    attrs: Mapping[str, Any]
    opset: int
    statics: Statics
    builder: Builder

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Tensor:
        """Input `index`. Raises GraphError when it is left out."""
        found = self.get(index)
        if found is None:
            raise GraphError(f"{self.what} lacks its input {index}")
        return found

    def get(self, index: int) -> Tensor | None:
        """Input `index`, None when it is left out."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is not None and not isinstance(value, Tensor):
            raise GraphError(f"input {index} of {self.what} is a sequence; it takes tensors")
        return value

    @property
    def tensors(self) -> list[Tensor]:
        """All inputs, for operators that take any number."""
        return [self[n] for n in range(len(self.inputs))]

    @property
    def what(self) -> str:
        """The node, for messages."""
        return f"{self.proto.op_type} {self.proto.name or (self.proto.output[0] if self.proto.output else '')!r}"

    @property
    def outputs(self) -> int:
        """How many outputs the node names, up to the last one used."""
        return len(self.proto.output)

    def wants(self, index: int) -> bool:
        """Whether output `index` is used."""
        return index < len(self.proto.output) and bool(self.proto.output[index])

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attrs.get(name, default)

    def rank(self, index: int = 0) -> int:
        """The rank of an input. Raises GraphError when it is not known."""
        rank = self[index].spec.rank
        if rank is None:
            raise GraphError(f"{self.what} needs an input {index} of known rank; the model does not say it")
        return rank

    def static(self, index: int) -> np.ndarray[Any, Any] | None:
        """The value of input `index` where it is known at import; None when it is left out or not known."""
        tensor = self.get(index)
        return None if tensor is None else self.statics.value(tensor)

    def known(self, index: int) -> np.ndarray[Any, Any]:
        """The value of input `index`. Raises NeedsValue when it is known only at run time."""
        found = self.static(index)
        if found is None:
            raise self.needs(self[index], f"input {index}")
        return found

    def needs(self, tensor: Tensor, what: str) -> NeedsValue:
        """The error that says that `tensor` must be known at import."""
        sources = [n for n in ancestors([tensor.node]) if n.op == "placeholder"]
        names = ", ".join(n.name for n in sources) or tensor.name
        return NeedsValue(
            f"{what} of {self.what} decides what the graph looks like, but is known only at run time; "
            f"give nf.onnx.load(..., inputs=) arrays for {names}",
            sources,
        )

    def ints(self, index: int, attr: str | None = None) -> tuple[int, ...] | None:
        """Integers that older opsets have as attribute `attr`, and newer ones as input `index`; None when left out."""
        if attr is not None and attr in self.attrs:
            value = self.attrs[attr]
            return None if value is None else tuple(int(v) for v in np.atleast_1d(value))
        return None if self.get(index) is None else tuple(int(v) for v in self.known(index).reshape(-1))


@dataclass(frozen=True, slots=True)
class _Entry:
    since: int
    translator: Translator


_TABLE: dict[tuple[str, str], list[_Entry]] = {}


def translates(*names: str, since: int = 1, domain: str = MAIN) -> Callable[[Translator], Translator]:
    """Registers a translator for operators `names` of `domain`, from opset `since` on until a newer one is there."""

    def register(translator: Translator) -> Translator:
        for name in names:
            entries = _TABLE.setdefault((domain, name), [])
            if any(e.since == since for e in entries):
                raise GraphError(f"{domain or 'ai.onnx'} {name} since opset {since} is translated twice")
            entries.append(_Entry(since, translator))
            entries.sort(key=lambda e: -e.since)
        return translator

    return register


def find(domain: str, name: str, opset: int) -> Translator | None:
    """The translator of an operator as of `opset`; None when there is none."""
    for entry in _TABLE.get((domain, name), ()):
        if entry.since <= opset:
            return entry.translator
    return None


def translated() -> tuple[tuple[str, str, int], ...]:
    """All (domain, operator, since), sorted."""
    return tuple(sorted((d, n, e.since) for (d, n), entries in _TABLE.items() for e in entries))
