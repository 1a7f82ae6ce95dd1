"""Op declarations and their registry.

An op is declared once, in `ops/<family>.py`: its shape rule, gradient rule, cost and flags. Its implementations stand
in the backends' tables under the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbflow.errors import GraphError
from nbflow.spec import TensorSpec

if TYPE_CHECKING:
    from nbflow.graph import Node, Tensor
    from nbflow.ops.slices import IndexedSlices

# None, bool, int, float, str, numpy.dtype, numpy.ndarray, nbflow.body.Body, and tuples of these.
AttrValue = Any
Attrs = Mapping[str, AttrValue]

ShapeRule = Callable[[Sequence[TensorSpec], Attrs], Sequence[TensorSpec]]
# (node, gradients of its outputs; None where an output is not used) -> one gradient per input, None where there is none
# A rule may give sparse gradients; what it is given is always dense.
GradientRule = Callable[["Node", Sequence["Tensor | None"]], Sequence["Tensor | IndexedSlices | None"]]


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate: floating point operations, and bytes read plus written."""

    flops: float
    nbytes: float


# (input specs, attributes) -> attributes whose bodies have the shapes that really come in
SpecialiseRule = Callable[[Sequence[TensorSpec], Attrs], dict[str, AttrValue]]
CostRule = Callable[[Sequence[TensorSpec], Sequence[TensorSpec], Attrs], Cost]


@dataclass(frozen=True, slots=True)
class OpDef:
    """One op.

    - `infer(input_specs, attrs)` gives the output specs; raises ShapeError or DTypeError.
    - `gradient(node, grads)` builds nodes; None means: not differentiable.
    - `cost(input_specs, output_specs, attrs)`; unknown dims count as `UNKNOWN_DIM`.
    - `stateful`: reads or writes state, or draws random numbers. Never folded or merged. Implementations take a
      `nbflow.backends.base.Context` first.
    - `out`: implementations accept `out=` for their only output, fully overwrite it, and allow it to be any array of
      the output's spec that is none of the inputs.
    - `elementwise`: output element i depends on input elements i (after broadcasting) only.
    - `alias`: the output may be a view of the first input (and of no other).
    - `specialise`: for ops that have bodies among their attributes (loops, branches), and None for all others.
    """

    name: str
    infer: ShapeRule
    gradient: GradientRule | None
    cost: CostRule
    doc: str
    stateful: bool = False
    out: bool = False
    elementwise: bool = False
    alias: bool = False
    specialise: SpecialiseRule | None = None


# A dimension nobody knows is costed as a common batch size.
UNKNOWN_DIM = 64

_REGISTRY: dict[str, OpDef] = {}


def nbytes_of(specs: Sequence[TensorSpec]) -> float:
    """Bytes of all `specs`, unknown dims as `UNKNOWN_DIM`."""
    total = 0.0
    for spec in specs:
        size = 1.0
        for dim in spec.shape or ():
            size *= UNKNOWN_DIM if dim is None else dim
        total += size * spec.dtype.itemsize
    return total


def size_of(spec: TensorSpec) -> float:
    """Elements of `spec`, unknown dims as `UNKNOWN_DIM`."""
    return nbytes_of([spec]) / spec.dtype.itemsize


def elementwise_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    """One operation an output element, everything read and written once."""
    return Cost(sum(size_of(o) for o in outputs), nbytes_of(inputs) + nbytes_of(outputs))


def free_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    """Views and bookkeeping."""
    return Cost(0.0, 0.0)


def define(
    name: str,
    *,
    infer: ShapeRule,
    gradient: GradientRule | None,
    cost: CostRule = elementwise_cost,
    doc: str,
    stateful: bool = False,
    out: bool = False,
    elementwise: bool = False,
    alias: bool = False,
    specialise: SpecialiseRule | None = None,
) -> OpDef:
    """Registers an op. `gradient` has no default: None must be stated. Raises GraphError for a second registration."""
    if name in _REGISTRY:
        raise GraphError(f"op {name!r} is declared twice")
    made = OpDef(name, infer, gradient, cost, doc, stateful, out, elementwise, alias, specialise)
    _REGISTRY[name] = made
    return made


def get(name: str) -> OpDef:
    """The declaration of `name`. Raises GraphError when there is none."""
    try:
        return _REGISTRY[name]
    except KeyError:
        raise GraphError(f"no op is called {name!r}; importing nbflow.ops registers the built-in ones") from None


def is_registered(name: str) -> bool:
    """Whether there is an op of this name."""
    return name in _REGISTRY


def registered() -> tuple[str, ...]:
    """All op names, sorted."""
    return tuple(sorted(_REGISTRY))
