"""`nf.cond`, `nf.while_loop`, `nf.scan` and `nf.map`: what users write loops and branches with."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

from nbflow.body import Body, Trace, describe_change, share_captures
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph, Node, Tensor, graph_for
from nbflow.ops._build import INT64, ArrayLike, as_tensor, build, convert
from nbflow.spec import Shape, TensorSpec, as_shape, format_shape, kind_of, shape_accepts
from nbflow.structure import flatten

Nested = Any  # tensors, or lists, tuples and dicts of them
Rebuild = Callable[[list[Any]], Any]


def cond(
    pred: ArrayLike,
    true_fn: Callable[..., Nested],
    false_fn: Callable[..., Nested],
    *operands: Nested,
    name: str | None = None,
) -> Nested:
    """What `true_fn(*operands)` gives when the boolean scalar `pred` is true, and what `false_fn` gives otherwise.

    Only one of the two runs. Both are traced, and must give the same nesting of tensors with the same dtypes;
    dimensions that differ are unknown in the result. They may use any tensor of the graph around them. Ops that write
    variables run with their branch even if nothing reads them; branches that give None make an op. Raises DTypeError
    when `pred` is no boolean scalar, GraphError when the branches do not fit each other.
    """
    decision = convert(pred)
    leaves, _ = _leaves(operands)
    graph = graph_for([decision, *leaves])
    full = graph.reserve("cond", name)
    traces: list[Trace] = []
    found: list[tuple[list[Tensor], Rebuild]] = []
    try:
        for label, function in (("then", true_fn), ("else", false_fn)):
            trace = Trace(graph, full, label)
            traces.append(trace)
            with trace.building():
                outputs, rebuild = _results(function(*operands))
            found.append((outputs, rebuild))
        (then, rebuild), (otherwise, other) = found
        _check_alike(rebuild(builtins.list(range(len(then)))), other(builtins.list(range(len(otherwise)))), full)
        captured = share_captures(traces)
        bodies = [t.close(outputs) for t, (outputs, _) in zip(traces, found, strict=True)]
    except BaseException:
        for trace in traces:
            trace.abandon()
        raise
    attrs = {"then": bodies[0], "otherwise": bodies[1], "origin": "", "extends": ""}
    node = _add(graph, "cond", [decision, *captured], attrs, full, name, traces)
    return rebuild(builtins.list(node.outputs)) if then else node


def while_loop(
    cond: Callable[..., Any],
    body: Callable[..., Nested],
    loop_vars: Nested,
    *,
    shape_invariants: Nested = None,
    maximum_iterations: ArrayLike | None = None,
    name: str | None = None,
) -> Nested:
    """Runs `body` on `loop_vars` as long as `cond` holds for them; gives what they are then.

    - `loop_vars`: a tensor, or a list, tuple or dict of tensors; a list or tuple is passed as several arguments.
      `body` gives the same nesting, with the same dtypes.
    - `shape_invariants`: the same nesting of shapes, for what changes its shape from one iteration to the next
      (`(None, 3)`); None where nothing changes.
    - `maximum_iterations`: an end in any case.

    Differentiable as long as the values have one shape in all iterations. A variable used in a body is its value when
    the loop starts; `variable.read()` reads anew in each iteration. Raises ShapeError when a shape changes and no
    invariant says so, DTypeError when a dtype does.
    """
    start, rebuild = _leaves(loop_vars)
    if not start:
        raise GraphError("while_loop needs at least one loop variable")
    invariants = _invariants(shape_invariants, start)

    def condition(carried: list[Tensor]) -> Tensor:
        return convert(_call(cond, rebuild(builtins.list(carried))))

    def step(carried: list[Tensor], rows: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return _same_nesting(_call(body, rebuild(builtins.list(carried))), loop_vars, start, "while_loop"), []

    node = build_loop("while_loop", start, [], step, condition, invariants, maximum_iterations, name=name)
    return rebuild(builtins.list(node.outputs[: len(start)]))


def scan(
    fn: Callable[[Nested, Nested], tuple[Nested, Nested]],
    init: Nested,
    xs: Nested = None,
    *,
    length: ArrayLike | None = None,
    reverse: bool = False,
    name: str | None = None,
) -> tuple[Nested, Nested]:
    """Goes over the rows of `xs`: `carry, y = fn(carry, x)`, from `init` on. Gives (the last carry, all y stacked).

    - `init`: a tensor or any nesting of tensors; `fn` gives a carry of the same nesting, shapes and dtypes.
    - `xs`: a tensor or any nesting of tensors of equally many rows, (n, …); `fn` gets one row, (…), of each.
    - `length`: how often to run when there are no `xs`, or at most when there are.
    - `reverse`: from the last row to the first; y still stands in the row of its x.

    y may be None, and is None then. Raises ShapeError or DTypeError when the carry changes, or rows differ in number.
    """
    start, rebuild_carry = _leaves(init)
    rows, rebuild_rows = _leaves(xs) if xs is not None else ([], lambda values: None)
    if not rows and length is None:
        raise GraphError("scan needs xs to go over, or a length")
    stacked: list[Rebuild | None] = []

    def step(carried: list[Tensor], row: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        given = fn(rebuild_carry(builtins.list(carried)), rebuild_rows(builtins.list(row)))
        if not isinstance(given, tuple) or len(given) != 2:
            raise GraphError(f"the function given to scan returns (carry, y), not {type(given).__name__}")
        ys, rebuild_ys = ([], None) if given[1] is None else _leaves(given[1])
        stacked.append(rebuild_ys)
        return _same_nesting(given[0], init, start, "scan"), ys

    none: list[Shape] = [None] * len(start)
    node = build_loop("scan", start, rows, step, None, none, length, reverse=reverse, name=name)
    last, ys = node.outputs[: len(start)], node.outputs[len(start) + 1 :]
    rebuild_ys = stacked[0]
    return rebuild_carry(builtins.list(last)), None if rebuild_ys is None else rebuild_ys(builtins.list(ys))


def map(fn: Callable[[Nested], Nested], xs: Nested, *, name: str | None = None) -> Nested:
    """`fn` on each row of `xs` (a tensor or any nesting of tensors, (n, …)), the results stacked, (n, …)."""
    rows, rebuild_rows = _leaves(xs)
    if not rows:
        raise GraphError("map needs something to go over")
    stacked: list[Rebuild] = []

    def step(carried: list[Tensor], row: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        ys, rebuild = _leaves(fn(rebuild_rows(builtins.list(row))))
        stacked.append(rebuild)
        return [], ys

    node = build_loop("map", [], rows, step, None, [], None, name=name)
    return stacked[0](builtins.list(node.outputs[1:]))


def build_loop(
    op: str,
    start: Sequence[Tensor],
    rows: Sequence[Tensor],
    step: Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]],
    condition: Callable[[list[Tensor]], Tensor] | None,
    invariants: Sequence[Shape],
    limit: ArrayLike | None,
    *,
    reverse: bool = False,
    name: str | None = None,
    static: bool = True,
) -> Node:
    """A `loop` node (its outputs: carried values, the number of iterations, stacked rows) around traced functions.

    `step(carried, rows)` gives the next carried values and what is stacked. `static`: raise ShapeError when a carried
    value changes a known dimension that no invariant leaves open; otherwise that dimension is unknown. `op` names the
    node when `name` does not.
    """
    bound = None if limit is None else convert(limit, dtype=None if as_tensor(limit) is not None else INT64)
    if bound is not None and bound.dtype != INT64:
        bound = build("astype", (bound,), {"dtype": INT64}) if kind_of(bound.dtype) in "iu" else bound
    graph = graph_for([*start, *rows, *([bound] if bound is not None else [])])
    full = graph.reserve(op, name)
    specs = [TensorSpec(s.shape if i is None else i, s.dtype) for s, i in zip(start, invariants, strict=True)]
    specs += [TensorSpec(None if r.shape is None else r.shape[1:], r.dtype) for r in rows]
    traces: list[Trace] = []
    try:
        test = None
        if condition is not None:
            traces.append(test := Trace(graph, full, "condition"))
            arguments = [test.argument(s) for s in specs]
            with test.building():
                holds = condition(arguments)
        trace = Trace(graph, full, "body")
        traces.append(trace)
        arguments = [trace.argument(s) for s in specs]
        with trace.building():
            carried, stacked = step(arguments[: len(start)], arguments[len(start) :])
        if static:
            _check_carried(arguments, carried, invariants, full)
        captured = share_captures(traces)
        body = trace.close([*carried, *stacked])
        test_body: Body | None = None if test is None else test.close([holds])
    except BaseException:
        for made in traces:
            made.abandon()
        raise
    attrs = {
        "body": body,
        "condition": test_body,
        "carried": len(start),
        "scanned": len(rows),
        "limited": bound is not None,
        "reverse": reverse,
        "invariants": tuple(invariants),
        "padded": (False,) * len(stacked),
        "origin": "",
        "extends": "",
    }
    inputs = [*([bound] if bound is not None else []), *start, *rows, *captured]
    return _add(graph, "loop", inputs, attrs, full, name, traces)


def _add(
    graph: Graph,
    op: str,
    inputs: Sequence[Tensor],
    attrs: dict[str, Any],
    full: str,
    name: str | None,
    traces: Sequence[Trace],
) -> Node:
    awaited = dict.fromkeys(n for t in traces for n in t.awaited)
    return graph.add(op, inputs, attrs, name=name, reserved=full, control_inputs=awaited)


# --- nestings --------------------------------------------------------------------------------------------------------


def _leaves(value: Nested) -> tuple[list[Tensor], Rebuild]:
    """The tensors in `value`, numbers and arrays made constants, and how to put others in their places."""
    found, rebuild = flatten(value, convert)
    return [_tensor(leaf) for leaf in found], rebuild


def _tensor(leaf: Tensor | Node) -> Tensor:
    if isinstance(leaf, Node):
        raise GraphError(f"{leaf.name!r} is an op without a value here; use nf.control_dependencies to run after it")
    return leaf


def _results(value: Nested) -> tuple[list[Tensor], Rebuild]:
    """What a branch gave: None and ops have no value, and run for their effect."""
    if value is None or isinstance(value, Node):
        return [], lambda values: None
    return _leaves(value)


def _call(function: Callable[..., Any], value: Nested) -> Any:
    return function(*value) if isinstance(value, (builtins.list, tuple)) else function(value)


def _same_nesting(given: Nested, wanted: Nested, start: Sequence[Tensor], what: str) -> list[Tensor]:
    if isinstance(wanted, (builtins.list, tuple)) and len(wanted) == 1 and as_tensor(given) is not None:
        given = [given]
    leaves, rebuild = _leaves(given)
    if len(leaves) != len(start):
        raise GraphError(
            f"the body of {what} gives {len(leaves)} values for {len(start)} loop variables; it gives the same nesting"
        )
    _check_alike(rebuild([0] * len(leaves)), flatten(wanted, convert)[1]([0] * len(start)), what)
    return leaves


def _check_alike(one: Nested, other: Nested, what: str) -> None:
    if _shape_of_nesting(one) != _shape_of_nesting(other):
        raise GraphError(
            f"the functions given to {what} return different nestings: {_shape_of_nesting(one)} and "
            f"{_shape_of_nesting(other)}"
        )


def _shape_of_nesting(value: Nested) -> Any:
    """The nesting with `*` for each leaf; lists and tuples are one kind."""
    if isinstance(value, dict):
        return {key: _shape_of_nesting(item) for key, item in value.items()}
    if isinstance(value, (builtins.list, tuple)):
        return [_shape_of_nesting(item) for item in value]
    return None if value is None else "*"


def _invariants(given: Nested, start: Sequence[Tensor]) -> list[Shape]:
    if given is None:
        return [None] * len(start)
    shapes = [given] if len(start) == 1 and _is_shape(given) else _flat_shapes(given)
    if len(shapes) != len(start):
        raise GraphError(f"{len(shapes)} shape invariants were given for {len(start)} loop variables")
    found = [None if s is None else as_shape(s) for s in shapes]
    for shape, tensor in zip(found, start, strict=True):
        if not shape_accepts(shape, tensor.shape):
            raise ShapeError(
                f"the invariant {format_shape(shape)} does not hold for {tensor.name}, {format_shape(tensor.shape)}",
                where=tensor.node.where,
            )
    return found


def _is_shape(value: Any) -> bool:
    return isinstance(value, (tuple, builtins.list)) and all(v is None or isinstance(v, int) for v in value)


def _flat_shapes(given: Nested) -> list[Any]:
    if isinstance(given, dict):
        return [s for v in given.values() for s in _flat_shapes(v)]
    if given is None or _is_shape(given):
        return [given]
    return [s for v in given for s in _flat_shapes(v)]


def _check_carried(
    arguments: Sequence[Tensor], carried: Sequence[Tensor], invariants: Sequence[Shape], full: str
) -> None:
    for number, (before, after, invariant) in enumerate(zip(arguments, carried, invariants, strict=False)):
        what = f"loop variable {number} of {full!r}"
        if before.dtype != after.dtype:
            raise DTypeError(f"{describe_change(what, before.spec, after.spec)}; use nf.astype in the body")
        if not shape_accepts(before.shape, after.shape):
            more = (
                f"the invariant is {format_shape(invariant)}"
                if invariant is not None
                else "say with shape_invariants which dimensions change (None)"
            )
            raise ShapeError(f"{describe_change(what, before.spec, after.spec)}; {more}")
