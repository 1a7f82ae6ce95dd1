"""Algebraic simplification, exact only: an op goes when its result has the very bits of an input.

IEEE 754 decides what that leaves of school algebra. Of floating x: x * 1, x / 1, x - 0, x + (-0) and -(-x) are x;
x + 0 is not (it turns -0 into 0), x * 0 is not 0 (NaN, infinities), x - x is not 0, x / x is not 1, log(exp(x)) is not
x. A signalling NaN is the one value that x * 1 would have changed (to a quiet one). Of complex x only what does no
arithmetic holds. The result has the dtype and, as far as it is known before the run, the shape that it had; where a
constant might have broadcast x, the op stays.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nbflow.graph import Node, Tensor
from nbflow.optimize.draft import Draft
from nbflow.optimize.values import filling, is_number
from nbflow.spec import BFLOAT16, kind_of

# op -> (neutral number, the kinds of dtype it holds for, also as the first input, of two zeros the negative one)
_NEUTRAL: dict[str, tuple[int, str, bool, bool]] = {
    "multiply": (1, "biuf", True, False),
    "divide": (1, "f", False, False),
    "floor_divide": (1, "iu", False, False),
    "add": (0, "biuf", True, True),
    "subtract": (0, "iuf", False, False),
    "pow": (1, "iu", False, False),
    "bitwise_or": (0, "biu", True, False),
    "bitwise_xor": (0, "biu", True, False),
    "bitwise_left_shift": (0, "iu", False, False),
    "bitwise_right_shift": (0, "iu", False, False),
    "logical_or": (0, "b", True, False),
    "logical_xor": (0, "b", True, False),
    "logical_and": (1, "b", True, False),
}
# f(f(x)) is x.
_INVOLUTIONS = {"negative": "biufc", "bitwise_invert": "biu", "logical_not": "b", "conj": "biufc"}
# f(f(x)) is f(x).
_IDEMPOTENT = ("abs", "floor", "ceil", "trunc", "round")
# f(x) is x. A `checkpoint` has done its work when the gradients are there.
_SAME = ("identity", "stop_gradient", "positive", "checkpoint")
# f(x, x) is x.
_CHOICES = ("maximum", "minimum", "bitwise_and", "bitwise_or")
# Of one tensor, the tensor.
_JOINS = ("concat", "add_n")
# Over dimensions of length 1 they change nothing; a floating sum would turn -0 into 0.
_REDUCTIONS = {"max": "biuf", "min": "biuf", "prod": "iufc", "sum": "iu"}

Finding = tuple[Tensor, str]
Look = Callable[[Node], Finding | None]


def simplify(draft: Draft) -> None:
    """Replaces ops by what has the same bits for less."""

    def rule(node: Node) -> None:
        if len(node.outputs) != 1 or not node.inputs:
            return
        look = _LOOKS.get(node.op)
        found = None if look is None else look(node)
        if found is None or found[0].dtype != node.outputs[0].dtype:
            return
        if _same_shape(found[0], node) and draft.may_stand(found[0], node):
            draft.replace(node, [found[0]], found[1])
        elif node.op in _REDUCTIONS and node.outputs[0].spec.is_static and draft.may_go(node):
            attrs = {"shape": node.outputs[0].shape}
            draft.become(node, "reshape", [found[0]], attrs, f"{found[1]}, in another shape")

    draft.walk(rule)


def _same_shape(x: Tensor, node: Node) -> bool:
    """True when x certainly has the shape of the output of `node`."""
    mine, wanted = x.shape, node.outputs[0].shape
    if mine is not None and mine == wanted and x.spec.is_static:
        return True
    if node.op in _KEEP_SHAPE:
        return True
    others = [t for t in node.inputs if t is not x]
    return node.definition.elementwise and all(_never_broadcasts(t, x) for t in others)


def _never_broadcasts(other: Tensor, x: Tensor) -> bool:
    if other.shape is None or x.shape is None:
        return other.shape == ()
    return len(other.shape) <= len(x.shape) and all(d == 1 for d in other.shape)


# --- what to look for ------------------------------------------------------------------------------------------------


def _neutral(node: Node) -> Finding | None:
    number, kinds, either, negative_zero = _NEUTRAL[node.op]
    x, y = node.inputs
    # Of mixed dtypes the number is converted first: an integer 0 is then 0.0, which changes -0.
    if kind_of(node.outputs[0].dtype) in kinds and x.dtype == y.dtype:
        if is_number(filling(y), number, negative_zero=negative_zero):
            return x, f"is {x.name}: {node.op} with {_text(filling(y))} changes nothing"
        if either and is_number(filling(x), number, negative_zero=negative_zero):
            return y, f"is {y.name}: {node.op} with {_text(filling(x))} changes nothing"
    return _choice(node) if node.op in _CHOICES else None


def _choice(node: Node) -> Finding | None:
    x, y = node.inputs
    return (x, f"is {x.name}: both inputs are") if x is y else None


def _text(value: np.generic | None) -> str:
    return "" if value is None else str(value.item())


def _involution(node: Node) -> Finding | None:
    inner = node.inputs[0].node
    x = inner.inputs[0] if inner.op == node.op else None
    if x is None or kind_of(x.dtype) not in _INVOLUTIONS[node.op]:
        return None
    return x, f"is {x.name}: {node.op} twice"


def _idempotent(node: Node) -> Finding | None:
    x = node.inputs[0]
    return (x, f"is {x.name}: {node.op} once more changes nothing") if x.node.op == node.op else None


def _same(node: Node) -> Finding | None:
    return node.inputs[0], f"is {node.inputs[0].name} ({node.op})"


def _join(node: Node) -> Finding | None:
    return (node.inputs[0], f"is {node.inputs[0].name}, the only input") if len(node.inputs) == 1 else None


def _where(node: Node) -> Finding | None:
    _, x, y = node.inputs
    return (x, f"is {x.name}: both branches are") if x is y else None


def _clip(node: Node) -> Finding | None:
    unbounded = node.attrs["min"] is None and node.attrs["max"] is None
    return (node.inputs[0], f"is {node.inputs[0].name}: there is no bound") if unbounded else None


def _cast(node: Node) -> Finding | None:
    x = node.inputs[0]
    if x.dtype == node.outputs[0].dtype:
        return x, f"is {x.name}, which has the dtype already"
    if x.node.op == "astype":
        first = x.node.inputs[0]
        if first.dtype == node.outputs[0].dtype and _holds_all(x.dtype, first.dtype):
            return first, f"is {first.name}: {x.dtype.name} holds all of {first.dtype.name}"
    return None


# Significant bits of a floating dtype; an integer of no more than these fits exactly.
_BITS = {BFLOAT16: 8, np.dtype("float16"): 11, np.dtype("float32"): 24, np.dtype("float64"): 53}


def _holds_all(wide: np.dtype[np.generic], narrow: np.dtype[np.generic]) -> bool:
    """True when a cast from `narrow` to `wide` and back gives the same bits."""
    kinds = kind_of(wide) + kind_of(narrow)
    if kinds == "ff":
        return wide in (np.dtype("float32"), np.dtype("float64")) and wide.itemsize > narrow.itemsize
    if kinds in ("fi", "fu") and wide in _BITS:
        return narrow.itemsize * 8 <= _BITS[wide]
    if kinds == "iu":
        return wide.itemsize > narrow.itemsize
    return kinds in ("ii", "uu", "ib", "ub", "fb") and wide.itemsize >= narrow.itemsize


def _reduction(node: Node) -> Finding | None:
    x = node.inputs[0]
    if kind_of(x.dtype) not in _REDUCTIONS[node.op] or not x.spec.is_static or x.spec.size == 0:
        return None
    size = node.outputs[0].spec.size
    if size is None or size != x.spec.size:
        return None
    return x, f"is {x.name}: the reduced dimensions have length 1"


def _pad(node: Node) -> Finding | None:
    x = node.inputs[0]
    return (x, f"is {x.name}: nothing is added") if all(w == (0, 0) for w in node.attrs["widths"]) else None


def _tile(node: Node) -> Finding | None:
    x = node.inputs[0]
    once = all(r == 1 for r in node.attrs["reps"]) and x.spec.rank is not None
    return (x, f"is {x.name}: repeated once") if once and len(node.attrs["reps"]) <= (x.spec.rank or 0) else None


def _fitting(node: Node) -> Finding | None:
    x = node.inputs[0]
    fits = x.spec.is_static and x.shape == node.outputs[0].shape
    return (x, f"is {x.name}, which has the shape already") if fits else None


_LOOKS: dict[str, Look] = {
    **dict.fromkeys(_CHOICES, _choice),
    **dict.fromkeys(_NEUTRAL, _neutral),
    **dict.fromkeys(_INVOLUTIONS, _involution),
    **dict.fromkeys(_IDEMPOTENT, _idempotent),
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_JOINS, _join),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("broadcast_to", "sum_to_shape", "reshape"), _fitting),
    "where": _where,
    "clip": _clip,
    "astype": _cast,
    "pad": _pad,
    "tile": _tile,
}
# What these find has the output's shape, known or not.
_KEEP_SHAPE = frozenset({*_INVOLUTIONS, *_IDEMPOTENT, *_SAME, *_JOINS, "astype", "clip", "pad", "tile"})
