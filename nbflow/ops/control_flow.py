"""Loops and branches: ops with bodies (`nbflow/body.py`) that run many times, or perhaps not at all.

There are two. `cond` runs one of two bodies. `loop` runs one body over and over, carrying values from one iteration to
the next, taking a row of each scanned input and giving a row to each stacked output: `while_loop`, `scan` and `map` are
its special cases, as are the Loop and Scan of ONNX. Their gradients are in `control_gradients.py`. The functional form
is that of Yu et al., "Dynamic Control Flow in Large-Scale Machine Learning" (EuroSys 2018), section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbflow import op
from nbflow.body import ARGUMENT, Body, infer, joined, narrowed, specialise
from nbflow.errors import DTypeError, ShapeError
from nbflow.op import Attrs, AttrValue, Cost
from nbflow.ops._build import INT64
from nbflow.ops.control_gradients import cond_gradient, loop_gradient
from nbflow.spec import Dim, TensorSpec, format_shape, kind_of, shape_accepts

# How often a loop runs when nobody knows, for its cost.
_UNKNOWN_ITERATIONS = 16


# --- what a body is given --------------------------------------------------------------------------------------------


def _argument_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    return [TensorSpec(attrs["shape"], attrs["dtype"], attrs["resource"])]


op.define(
    ARGUMENT,
    infer=_argument_infer,
    gradient=None,
    cost=op.free_cost,
    doc="An argument of a body, given by the op that runs it. attrs: index, shape, dtype, resource. No gradient of its "
    "own: the op that runs the body has one.",
)


# --- cond ------------------------------------------------------------------------------------------------------------


def _branch_specs(inputs: Sequence[TensorSpec], body: Body) -> list[TensorSpec]:
    return [narrowed(a.spec, s) for a, s in zip(body.arguments, inputs[1:], strict=True)]


def _cond_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    pred = inputs[0]
    if kind_of(pred.dtype) != "b" or pred.shape not in ((), None):
        raise DTypeError(f"a condition is one boolean, not {pred}; compare, or use nf.all or nf.any")
    then, otherwise = (infer(b, _branch_specs(inputs, b)) for b in (attrs["then"], attrs["otherwise"]))
    if len(then) != len(otherwise):
        raise ShapeError(f"the branches give {len(then)} and {len(otherwise)} values; they must give equally many")
    for number, (a, b) in enumerate(zip(then, otherwise, strict=True)):
        if a.dtype != b.dtype:
            raise DTypeError(f"output {number} is {a} in one branch and {b} in the other; the dtypes must be the same")
    return [joined(a, b) for a, b in zip(then, otherwise, strict=True)]


def _cond_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    costs = [_body_cost(attrs[key]) for key in ("then", "otherwise")]
    return Cost(max(c.flops for c in costs), max(c.nbytes for c in costs))


def _cond_specialise(inputs: Sequence[TensorSpec], attrs: Attrs) -> dict[str, AttrValue]:
    made = {key: specialise(attrs[key], _branch_specs(inputs, attrs[key])) for key in ("then", "otherwise")}
    return {**attrs, **made}


op.define(
    "cond",
    infer=_cond_infer,
    gradient=cond_gradient,
    cost=_cond_cost,
    doc="(condition, arguments…) → outputs of the body `then` or of `otherwise`, both of which take the arguments. "
    "Only one of them runs. attrs: then, otherwise, origin (whose random streams it draws from; empty: its own), "
    "extends (the node that it is a twin of).",
    specialise=_cond_specialise,
)


# --- loop ------------------------------------------------------------------------------------------------------------


def _parts(inputs: Sequence[TensorSpec], attrs: Attrs) -> tuple[list[TensorSpec], list[TensorSpec], list[TensorSpec]]:
    """Carried, scanned and captured inputs."""
    rest = list(inputs[1:] if attrs["limited"] else inputs)
    carried, scanned = attrs["carried"], attrs["scanned"]
    return rest[:carried], rest[carried : carried + scanned], rest[carried + scanned :]


def _length(inputs: Sequence[TensorSpec], attrs: Attrs) -> Dim:
    """How often a loop over scanned inputs runs; None when unknown. Raises ShapeError when they differ in length."""
    lengths: dict[int, TensorSpec] = {}
    for spec in _parts(inputs, attrs)[1]:
        if spec.shape == ():
            raise ShapeError(f"what a loop goes over has rows, {spec} has none")
        if spec.shape is not None and spec.shape[0] is not None:
            lengths[spec.shape[0]] = spec
    if len(lengths) > 1:
        listed = " and ".join(str(s) for s in lengths.values())
        raise ShapeError(f"a loop goes over inputs of one length, these differ: {listed}")
    return next(iter(lengths), None)


def _argument_specs(inputs: Sequence[TensorSpec], attrs: Attrs) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The specs of the body's arguments, general enough for every iteration, and of its outputs then.

    A dimension that an iteration changes, or loses sight of, is unknown from the first one on.
    """
    body: Body = attrs["body"]
    start, scanned, captured = _parts(inputs, attrs)
    carried = [_with_invariant(s, i) for s, i in zip(start, attrs["invariants"], strict=True)]
    rows = [TensorSpec(None if s.shape is None else s.shape[1:], s.dtype) for s in scanned]
    declared = body.arguments[len(carried) + len(rows) :]
    fixed = rows + [narrowed(a.spec, s) for a, s in zip(declared, captured, strict=True)]
    # Each round makes at least one dimension unknown, so this ends.
    while True:
        given = infer(body, [*carried, *fixed])
        for number, (before, after) in enumerate(zip(carried, given, strict=False)):
            if before.dtype != after.dtype:
                raise DTypeError(f"loop variable {number} enters as {before} and leaves as {after}; use nf.astype")
        wider = [joined(a, b) for a, b in zip(carried, given, strict=False)]
        if wider == carried:
            return [*carried, *fixed], given
        carried = wider


def _with_invariant(spec: TensorSpec, shape: tuple[Dim, ...] | None) -> TensorSpec:
    if shape is None:
        return spec
    if not shape_accepts(shape, spec.shape):
        raise ShapeError(f"the invariant {format_shape(shape)} does not hold for a loop variable that starts as {spec}")
    return TensorSpec(shape, spec.dtype, spec.resource)


def _loop_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if attrs["limited"] and (inputs[0].dtype != INT64 or inputs[0].shape not in ((), None)):
        raise DTypeError(f"the number of iterations is one int64, not {inputs[0]}")
    length = _length(inputs, attrs)
    arguments, given = _argument_specs(inputs, attrs)
    if attrs["condition"] is not None:
        _check_condition(attrs["condition"], arguments)
    carried = attrs["carried"]
    stacked: list[TensorSpec] = []
    for spec, padded in zip(given[carried:], attrs["padded"], strict=True):
        stacked.append(TensorSpec(None if spec.shape is None else (length, *spec.shape), spec.dtype))
        if padded:
            stacked.append(TensorSpec((length, spec.rank), INT64))
    return [*arguments[:carried], TensorSpec((), INT64), *stacked]


def _check_condition(condition: Body, arguments: Sequence[TensorSpec]) -> None:
    (found,) = infer(condition, arguments)
    if kind_of(found.dtype) != "b" or found.shape not in ((), None):
        raise DTypeError(f"the condition of a loop gives one boolean, not {found}; use nf.all or nf.any")


def _loop_cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
    once = _body_cost(attrs["body"])
    times = _length(inputs, attrs) or _UNKNOWN_ITERATIONS
    return Cost(once.flops * times, once.nbytes * times)


def _body_cost(body: Body) -> Cost:
    flops = nbytes = 0.0
    for node in body.graph.nodes.values():
        cost = node.definition.cost([t.spec for t in node.inputs], [t.spec for t in node.outputs], node.attrs)
        flops, nbytes = flops + cost.flops, nbytes + cost.nbytes
    return Cost(flops, nbytes)


def _loop_specialise(inputs: Sequence[TensorSpec], attrs: Attrs) -> dict[str, AttrValue]:
    arguments, _ = _argument_specs(inputs, attrs)
    condition = attrs["condition"]
    return {
        **attrs,
        "body": specialise(attrs["body"], arguments),
        "condition": None if condition is None else specialise(condition, arguments),
    }


op.define(
    "loop",
    infer=_loop_infer,
    gradient=loop_gradient,
    cost=_loop_cost,
    doc="([limit], carried…, scanned…, captured…) → carried…, iterations, stacked…. The body takes the carried values, "
    "a row of each scanned input and the captured ones, and gives the carried values and a row of each stacked output. "
    "It runs once a row, up to `limit` times, or while the body `condition` holds. attrs: body, condition (or None), "
    "carried, scanned (numbers of inputs), limited, reverse (rows from the last to the first), invariants (a shape or "
    "None for each carried value), padded (for each stacked output: rows may differ in shape and are padded with "
    "zeros, and an output of their sizes follows), origin (whose random streams it draws from; empty: its own), "
    "extends (the node that it is a twin of).",
    specialise=_loop_specialise,
)
