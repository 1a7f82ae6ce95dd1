"""What every `Backend` promises, as a suite: `check_backend(make)` runs the table of cases over it, row by row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nbflow import op
from nbflow.autodiff import gradients
from nbflow.backends.base import Backend
from nbflow.errors import NbflowError
from nbflow.graph import Graph, Node, Tensor
from nbflow.spec import BFLOAT16, kind_of, spec_of
from nbflow.testing.cases import NOT_COMPUTED, ROWS, Case, build, ids
from nbflow.testing.evaluate import Evaluator

Array = Any

# How many broken promises a report lists.
LISTED = 20
DTYPES = [
    *(np.dtype(name) for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")),
    *(np.dtype(name) for name in ("float16", "float32", "float64", "complex64", "complex128")),
    BFLOAT16,
]


class BackendCheckError(AssertionError):
    """A backend does not keep a promise."""


def check_backend(
    make: Callable[[], Backend], *, ops: Sequence[str] | None = None, without: Collection[str] = ()
) -> None:
    """Checks what `make()` gives: its methods, and every row of the table of cases (only those of `ops`, if given).
    `without`: ops that it leaves to the CPU.

    A row's values are those that numpy gives by other ways, within its tolerance, and with the shapes and dtypes of the
    op's rule; first derivatives agree with differences; `out=` is filled and given back; inputs stay as they are;
    results share memory with inputs only where the op is declared so. Raises BackendCheckError with a list of the
    promises that were broken, by op and row, after all have been tried; GraphError for an unknown op in `ops`.
    """
    backend = make()
    wanted = {op.get(name).name for name in ops} if ops is not None else set(op.registered())
    broken = [] if ops is not None else list(_methods(backend))
    wanted -= set(without)
    missing = sorted(wanted - set(backend.table) - set(NOT_COMPUTED))
    broken += [f"{name}: not implemented" for name in missing]
    for case, name in zip(ROWS, ids(ROWS), strict=True):
        if case.op in wanted and case.op not in missing:
            try:
                check_case(backend, case)
            except (AssertionError, NbflowError) as error:
                broken.append(f"{name}: {error}")
    if broken:
        more = [f"… and {len(broken) - LISTED} more"] if len(broken) > LISTED else []
        listed = "\n".join([*broken[:LISTED], *more])
        raise BackendCheckError(f"the backend for {backend.type} breaks {len(broken)} promises:\n{listed}")


def check_case(backend: Backend, case: Case) -> None:
    """Raises AssertionError, or what the backend raised, when `backend` breaks a promise in this row."""
    check_value(backend, case)
    check_promises(backend, case)
    if case.differentiable:
        check_derivative(backend, case)


# --- a row -----------------------------------------------------------------------------------------------------------


def check_value(backend: Backend, case: Case, shape_of: Callable[[Array], Any] = np.shape) -> None:
    """The value of the row is the expected one; `shape_of(array)` is what the graph knows of an input's shape."""
    with Graph().as_default() as graph, np.errstate(all="ignore"):
        outputs, feeds = build(case, shape_of)
        _expect(any(n.op == case.op for n in graph.nodes.values()), f"the row makes no {case.op}")
        compare(case, outputs, Evaluator(backend).run(outputs, feeds))


def compare(case: Case, outputs: Sequence[Tensor], values: Sequence[Array]) -> None:
    """Shapes and dtypes are what the rules say, values what the row expects."""
    for tensor, value in zip(outputs, values, strict=True):
        actual = spec_of(value)
        accepted = tensor.dtype == actual.dtype and tensor.spec.accepts(actual)
        _expect(accepted, f"the rule says {tensor.spec}, the value is {actual}")
    if case.expect is None:
        return
    wanted = case.expect(*[np.asarray(a) for a in case.inputs])
    wanted = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    _expect(len(wanted) == len(values), f"{len(values)} outputs, expected {len(wanted)}")
    for value, right in zip(values, map(np.asarray, wanted), strict=True):
        _expect(spec_of(value) == spec_of(right), f"{spec_of(value)}, expected {spec_of(right)}")
        bound = tolerance(case, value.dtype)
        _close(value, right, bound, "the value")


def tolerance(case: Case, dtype: np.dtype[Any]) -> float:
    """The error allowed in this row, relative and absolute."""
    if case.rtol is not None:
        return case.rtol
    return 64 * float(np.finfo(dtype).eps) if dtype.kind in "fc" else 0.0


def check_promises(backend: Backend, case: Case) -> None:
    """Each op of the row: specs equal the rule's, `out=` is filled and given back, inputs stay, views are declared."""

    def observe(node: Node, inputs: list[Any], outputs: list[Any]) -> None:
        definition = node.definition
        for tensor, value in zip(node.outputs, outputs, strict=True):
            if not tensor.spec.resource:
                actual = spec_of(np.asarray(backend.to_host(value)))
                _expect(tensor.spec.accepts(actual), f"{node.op}: the rule says {tensor.spec}, the value is {actual}")
        if definition.stateful:
            return
        if not definition.alias and node.op != "constant":
            # Other libraries' arrays answer numpy's function with their own (NEP 18).
            shared = [o for o in outputs for x in inputs if _size(x) and np.may_share_memory(o, x)]
            _expect(not shared, f"{node.op} gives a view of an input, but is not declared alias")
        if definition.out:
            _check_out(backend, node, inputs, outputs[0])

    with Graph().as_default(), np.errstate(all="ignore"):
        outputs, feeds = build(case, np.shape)
        with _unchanged(case.inputs, np.asarray, "what was fed"):
            Evaluator(backend, observe).run(outputs, feeds)


def _check_out(backend: Backend, node: Node, inputs: Sequence[Array], wanted: Array) -> None:
    right = np.array(backend.to_host(wanted))
    target = backend.asarray(np.full(right.shape, 77, right.dtype))
    with backend.scope(), _unchanged(inputs, lambda x: np.asarray(backend.to_host(x)), f"an input of {node.op}"):
        given = backend.table[node.op](*inputs, **node.attrs, out=target)
    _expect(given is target, f"{node.op} does not give `out` back")
    _expect(_equal(backend.to_host(target), right), f"{node.op} writes something else into `out` than it gives without")


@contextmanager
def _unchanged(arrays: Sequence[Array], on_host: Callable[[Array], Array], what: str) -> Iterator[None]:
    kept = [np.array(on_host(x)) for x in arrays]
    yield
    for before, after in zip(kept, arrays, strict=True):
        _expect(_equal(before, on_host(after)), f"{what} was changed")


def check_derivative(backend: Backend, case: Case) -> None:
    """First derivatives are those of numpy's backend, which tests compare with finite differences."""
    mine, right = derivatives(backend, case), derivatives(None, case)
    for one, other in zip(mine, right, strict=True):
        bound = max(tolerance(case, one.dtype), 1e-12)
        _close(one, other, bound, "its gradient")


def derivatives(
    backend: Backend | None, case: Case, shape_of: Callable[[Array], Any] = np.shape
) -> list[np.ndarray[Any, Any]]:
    """The gradients of the row's real outputs for its real inputs, where they are connected."""
    with Graph().as_default(), np.errstate(all="ignore"):
        outputs, feeds = build(case, shape_of)
        found = gradients(
            [t for t in outputs if kind_of(t.dtype) == "f"], [t for t in feeds if kind_of(t.dtype) == "f"]
        )
        connected = [g for g in found if g is not None]
        values: list[np.ndarray[Any, Any]] = Evaluator(backend).run(connected, feeds)
        for grad, value in zip(connected, values, strict=True):
            _expect(grad.spec.accepts(spec_of(value)), f"the rule says {grad.spec}, the gradient is {spec_of(value)}")
        return values


# --- the methods -----------------------------------------------------------------------------------------------------


def _methods(backend: Backend) -> Iterator[str]:
    for dtype in DTYPES:
        values = np.arange(6).reshape(2, 3).astype(dtype)
        for array in (values, values.T, values[:, ::-1], values[:0], np.array(values[0, 1])):
            there = backend.asarray(array)
            back = np.asarray(backend.to_host(there))
            if back.dtype != dtype or back.shape != array.shape or not np.array_equal(back, array):
                yield f"asarray, to_host: {spec_of(array)} came back as {spec_of(back)}: {back.tolist()}"
            whole = np.asarray(backend.to_host(backend.contiguous(there)))
            if not whole.flags.c_contiguous or not np.array_equal(whole, array):
                yield f"contiguous: {spec_of(array)} came back as {whole.tolist()}, strides {whole.strides}"
        made = np.asarray(backend.to_host(backend.empty((2, 0, 3), dtype)))
        if (made.shape, made.dtype) != ((2, 0, 3), dtype):
            yield f"empty: {dtype}[2,0,3] was asked for, {spec_of(made)} made"
    backend.synchronize()


def _size(value: Any) -> int:
    return int(getattr(value, "size", 0))  # 0: the handle of a variable


def _equal(one: Array, other: Array) -> bool:
    return np.asarray(one).tobytes() == np.asarray(other).tobytes() or np.array_equal(one, other)


def _close(value: Array, right: Array, bound: float, what: str) -> None:
    try:
        np.testing.assert_allclose(value, right, rtol=bound, atol=bound)
    except AssertionError as error:
        told = [line.strip() for line in str(error).splitlines() if line.strip().startswith(("Mismatched", "Max "))]
        raise AssertionError(f"{what} differs: {'; '.join(told) or error}") from None


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
