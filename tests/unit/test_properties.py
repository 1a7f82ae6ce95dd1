"""Properties of ops over random shapes, dtypes, axes, strides and special values.

What they give is compared with plain Python: loops, `sorted`, `math`, `fractions`, `bisect`. No function of numpy that
an implementation calls stands on the other side. Examples are derandomized: the same ones in every run.
"""

from __future__ import annotations

import bisect
import itertools
import math
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nbflow as nf
from nbflow.spec import BFLOAT16
from nbflow.testing import evaluate

Array = np.ndarray[Any, Any]

settings.register_profile(
    "properties", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
prop = settings(settings.get_profile("properties"))

INTS = tuple(np.dtype(f"{u}int{n}") for u in ("", "u") for n in (8, 16, 32, 64))
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
HALVES = (BFLOAT16, np.dtype(np.float16))
EVERY = (*INTS, *FLOATS, *HALVES, np.dtype(bool))
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, math.nan, math.inf, -math.inf, 5e-324, 1e-40, -1e-45, 65504.0, 1e30]


@st.composite
def arrays(
    draw: Any,
    dtypes: Any = EVERY,
    *,
    rank: tuple[int, int] = (0, 4),
    side: tuple[int, int] = (0, 4),
    finite: bool = False,
    small: bool = False,
) -> Array:
    """An array, perhaps reversed, transposed or a view of every other element. `small`: integers in [-9, 9]."""
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(st.integers(*side), min_size=rank[0], max_size=rank[1])))
    count = math.prod(shape)
    kind = "f" if dtype == BFLOAT16 else dtype.kind
    if kind == "b":
        element: Any = st.booleans()
    elif kind == "f":
        usual = st.floats(-100, 100, width=32).map(lambda x: round(x, 3))
        element = usual if finite else usual | st.sampled_from(SPECIAL)
    else:
        info = np.iinfo(dtype)
        low, high = (max(info.min, -9), min(info.max, 9)) if small else (info.min, info.max)
        element = st.integers(low, high)
    with np.errstate(over="ignore"):
        flat = np.array(draw(st.lists(element, min_size=count, max_size=count)), dtype=dtype)
    layout = draw(st.sampled_from(["plain", "reversed", "fortran", "spaced"]))
    value = flat.reshape(shape)
    if layout == "reversed" and shape:
        return np.ascontiguousarray(value[..., ::-1])[..., ::-1]
    if layout == "fortran":
        return np.asfortranarray(value)
    if layout == "spaced" and shape:
        wide = np.zeros((*shape[:-1], shape[-1] * 2), dtype)
        wide[..., ::2] = value
        return wide[..., ::2]
    return value


def run(make: Callable[..., Any], *values: Array) -> Any:
    """What `make` gives for `values`, fed into placeholders of static and of unknown shape: both must agree."""
    found = []
    for known in (True, False):
        with nf.Graph().as_default():
            inputs = [nf.placeholder(v.dtype, v.shape if known else (None,) * v.ndim) for v in values]
            made = make(*inputs)
            outputs = list(made) if isinstance(made, (tuple, list)) else [made]
            found.append(evaluate(outputs, dict(zip(inputs, values, strict=True))))
            for tensor, value in zip(outputs, found[-1], strict=True):
                assert tensor.spec.accepts(nf.TensorSpec(value.shape, value.dtype)), (tensor.spec, value.shape)
    for one, two in zip(*found, strict=True):
        assert one.tobytes() == two.tobytes()
    return found[0] if isinstance(made, (tuple, list)) else found[0][0]


def lines(value: Array, axis: int) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:
    """(where, elements) of each line along `axis`, as Python's numbers."""
    axis %= value.ndim
    for place in itertools.product(*(range(n) for i, n in enumerate(value.shape) if i != axis)):
        yield place, [value[(*place[:axis], k, *place[axis:])].item() for k in range(value.shape[axis])]


def line_of(value: Array, place: tuple[Any, ...], axis: int) -> list[Any]:
    axis %= value.ndim
    return [value[(*place[:axis], k, *place[axis:])].item() for k in range(value.shape[axis])]


def wrapped(number: int, dtype: np.dtype[Any]) -> int:
    """`number` modulo 2**bits, in the range of `dtype`."""
    bits = dtype.itemsize * 8
    number %= 2**bits
    return number - 2**bits if dtype.kind == "i" and number >= 2 ** (bits - 1) else number


def same(a: Any, b: Any) -> bool:
    """Equal, NaN equal to NaN, and zeros of one sign."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return bool(a == b)


def close(a: float, b: float, eps: float, size: float = 1.0) -> bool:
    if math.isnan(b) or math.isinf(b):
        return same(a, b)
    return abs(a - b) <= eps * max(size, abs(b))


def is_nan(x: Any) -> bool:
    return isinstance(x, float) and math.isnan(x)


def order(x: Any) -> tuple[bool, Any]:
    """The key by which elements are sorted: NaN is the greatest."""
    return is_nan(x), 0 if is_nan(x) else x


# --- order -----------------------------------------------------------------------------------------------------------


@prop
@given(x=arrays(rank=(1, 3)), axis=st.integers(-1, 0), descending=st.booleans())
def test_sort_and_argsort(x: Array, axis: int, descending: bool) -> None:
    values, places = run(
        lambda t: (nf.sort(t, axis=axis, descending=descending), nf.argsort(t, axis=axis, descending=descending)), x
    )
    assert values.dtype == x.dtype
    for place, line in lines(x, axis):
        wanted = sorted(range(len(line)), key=lambda k, line=line: order(line[k]), reverse=descending)
        assert line_of(places, place, axis) == wanted
        assert all(map(same, line_of(values, place, axis), [line[k] for k in wanted]))


@prop
@given(x=arrays(rank=(1, 3), side=(1, 4)), axis=st.integers(-1, 0))
def test_extremes(x: Array, axis: int) -> None:
    """NaN wins, and of equal elements the first."""
    top, low, first, last = run(
        lambda t: tuple(f(t, axis=axis, keepdims=True) for f in (nf.max, nf.min, nf.argmax, nf.argmin)), x
    )
    for place, line in lines(x, axis):
        nans = [k for k, v in enumerate(line) if is_nan(v)]
        k = nans[0] if nans else line.index(max(line))
        j = nans[0] if nans else line.index(min(line))
        assert (line_of(first, place, axis), line_of(last, place, axis)) == ([k], [j])
        for value, wanted in ((line_of(top, place, axis)[0], line[k]), (line_of(low, place, axis)[0], line[j])):
            assert value == wanted or (is_nan(value) and is_nan(wanted))


@prop
@given(x=arrays())
def test_unique(x: Array) -> None:
    values, indices, inverse, counts = run(nf.unique_all, x)
    flat = [v.item() for v in x.reshape(-1)]
    known: list[tuple[Any, int, int]] = []  # value, first index, count
    for k, v in enumerate(flat):
        hit = next((n for n, (w, _, _) in enumerate(known) if w == v), None)
        if hit is None:
            known.append((v, k, 1))
        else:
            known[hit] = (known[hit][0], known[hit][1], known[hit][2] + 1)
    known.sort(key=lambda item: order(item[0]))
    assert len(values) == len(known)
    numbers = [item for item in known if not is_nan(item[0])]
    assert [v.item() for v in values[: len(numbers)]] == [v for v, _, _ in numbers]
    assert [int(i) for i in indices[: len(numbers)]] == [k for _, k, _ in numbers]
    assert [int(c) for c in counts] == [c for _, _, c in known]
    assert inverse.shape == x.shape
    for k, v in zip(inverse.reshape(-1), flat, strict=True):
        assert values[k].item() == v or (is_nan(values[k].item()) and is_nan(v))


@prop
@given(data=st.data())
def test_searchsorted_and_isin(data: Any) -> None:
    x = data.draw(arrays(rank=(1, 1), side=(0, 6), finite=True, small=True))
    y = data.draw(arrays((x.dtype,), finite=True, small=True))
    vector = sorted(v.item() for v in x)
    left, right, inside = run(
        lambda a, b: (nf.searchsorted(a, b), nf.searchsorted(a, b, side="right"), nf.isin(b, a)),
        np.array(vector, x.dtype),
        y,
    )
    for place in np.ndindex(y.shape):
        v = y[place].item()
        assert left[place] == bisect.bisect_left(vector, v)
        assert right[place] == bisect.bisect_right(vector, v)
        assert inside[place] == (v in vector)


# --- sums and products -----------------------------------------------------------------------------------------------


def exact(line: list[Any]) -> list[Fraction]:
    return [Fraction(v) for v in line]


def eps_of(dtype: np.dtype[Any]) -> float:
    return nf.finfo(dtype).eps


@prop
@given(x=arrays(rank=(1, 3), finite=True), axis=st.integers(-1, 0), initial=st.booleans())
def test_sums_and_running_ones(x: Array, axis: int, initial: bool) -> None:
    total, running = run(
        lambda t: (nf.sum(t, axis=axis, keepdims=True), nf.cumulative_sum(t, axis=axis, include_initial=initial)), x
    )
    for place, line in lines(x, axis):
        partial = [sum(exact(line)[:k], Fraction(0)) for k in range(len(line) + 1)]
        wanted = [*partial[0 if initial else 1 :], partial[-1]]
        found = [*line_of(running, place, axis), *line_of(total, place, axis)]
        if total.dtype.kind in "iu":
            assert found == [wrapped(int(v), total.dtype) for v in wanted]
        else:
            size = float(sum(map(abs, exact(line)), Fraction(0)))
            assert all(close(f, float(w), 4 * eps_of(x.dtype), size) for f, w in zip(found, wanted, strict=True))


@prop
@given(x=arrays((*FLOATS, *HALVES), rank=(1, 3), side=(1, 4), finite=True), axis=st.integers(-1, 0))
def test_mean_and_variance(x: Array, axis: int) -> None:
    mean, variance = run(lambda t: (nf.mean(t, axis=axis, keepdims=True), nf.var(t, axis=axis, keepdims=True)), x)
    for place, line in lines(x, axis):
        middle = sum(exact(line), Fraction(0)) / len(line)
        spread = sum(((v - middle) ** 2 for v in exact(line)), Fraction(0)) / len(line)
        size = max(map(abs, line))
        assert close(line_of(mean, place, axis)[0], float(middle), 4 * eps_of(x.dtype), size)
        assert close(line_of(variance, place, axis)[0], float(spread), 8 * eps_of(x.dtype), size**2)


@prop
@given(data=st.data())
def test_matmul(data: Any) -> None:
    dtype = data.draw(st.sampled_from((*INTS, *FLOATS, *HALVES)))
    n, k, m = (data.draw(st.integers(0, 4)) for _ in range(3))
    batch = data.draw(st.sampled_from([((), ()), ((2,), ()), ((2, 1), (3,)), ((0,), (1,))]))
    x = data.draw(arrays((dtype,), finite=True)).reshape(-1)
    x, y = (
        np.resize(x if x.size else np.ones(1, dtype), (*b, *s)) for b, s in zip(batch, ((n, k), (k, m)), strict=True)
    )
    y = y[..., ::-1]
    found, summed = run(lambda a, b: (nf.matmul(a, b), nf.einsum("...ij,...jk->...ik", a, b)), x, y)
    assert found.dtype == dtype
    rows = np.broadcast_shapes(*batch)
    a, b = np.broadcast_to(x, (*rows, n, k)), np.broadcast_to(y, (*rows, k, m))
    for place in np.ndindex(found.shape):
        *outer, i, j = place
        terms = [Fraction(a[(*outer, i, p)].item()) * Fraction(b[(*outer, p, j)].item()) for p in range(k)]
        for value in (found[place].item(), summed[place].item()):
            if found.dtype.kind in "iu":
                assert value == wrapped(int(sum(terms)), dtype)
            else:
                size = float(sum(map(abs, terms), Fraction(0)))
                assert close(value, float(sum(terms, Fraction(0))), 4 * eps_of(dtype), size)


@prop
@given(x=arrays(FLOATS, rank=(1, 3), side=(1, 4)), axis=st.integers(-1, 0))
def test_softmax_and_logsumexp(x: Array, axis: int) -> None:
    functions = (nf.nn.softmax, nf.nn.log_softmax, nf.logsumexp)
    soft, logs, total = run(lambda t: [f(t, axis=axis) for f in functions], x)
    total = np.expand_dims(total, axis)
    for place, line in lines(x, axis):
        if any(math.isnan(v) or v == math.inf for v in line):
            continue
        top = max(line)
        if top == -math.inf:
            assert line_of(total, place, axis) == [-math.inf]
            continue
        parts = [math.exp(v - top) for v in line]
        whole = math.fsum(parts)
        eps = 8 * eps_of(x.dtype)
        assert close(line_of(total, place, axis)[0], top + math.log(whole), eps)
        for p, s, v, g in zip(parts, line_of(soft, place, axis), line, line_of(logs, place, axis), strict=True):
            assert close(s, p / whole, eps)
            assert close(g, v - top - math.log(whole), eps)


# --- arithmetic ------------------------------------------------------------------------------------------------------


@prop
@given(data=st.data())
def test_integers_wrap_around(data: Any) -> None:
    x = data.draw(arrays(INTS, rank=(1, 2)))
    y = np.ascontiguousarray(x[::-1])
    found = run(lambda a, b: (a + b, a - b, a * b, -a, nf.square(a), nf.abs(a), a & b, a | b, a ^ b, ~a), x, y)
    for place in np.ndindex(x.shape):
        a, b = int(x[place]), int(y[place])
        wanted = [a + b, a - b, a * b, -a, a * a, abs(a), a & b, a | b, a ^ b, ~a]
        assert [int(v[place]) for v in found] == [wrapped(w, x.dtype) for w in wanted]


@prop
@given(data=st.data())
def test_division_rounds_down(data: Any) -> None:
    """Of integers and floats, as Python's: x == y * (x // y) + x % y, the remainder with the sign of y."""
    x = data.draw(arrays((*INTS, np.dtype(np.float64)), rank=(1, 2), finite=True))
    y = np.ascontiguousarray(x[::-1])
    y[y == 0] = 3
    whole, rest = run(lambda a, b: (a // b, a % b), x, y)
    for place in np.ndindex(x.shape):
        a, b = x[place].item(), y[place].item()
        wanted = (a // b, a % b)
        found = (whole[place].item(), rest[place].item())
        if isinstance(a, int):
            assert found == (wrapped(wanted[0], x.dtype), wanted[1])
        else:
            assert all(map(same, found, wanted)), (a, b, found, wanted)


MATH: dict[str, Callable[[float], float]] = {
    **{n: getattr(math, n) for n in ("exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "sin", "cos", "tan")},
    **{n: getattr(math, n) for n in ("sinh", "cosh", "tanh", "asin", "acos", "atan", "asinh", "acosh", "atanh", "erf")},
    **{"abs": abs, "negative": lambda v: -v, "square": lambda v: v * v, "isnan": math.isnan, "isinf": math.isinf},
    **{"floor": math.floor, "ceil": math.ceil, "trunc": math.trunc, "isfinite": math.isfinite, "round": round},
    "sign": lambda v: v if is_nan(v) else float(v > 0) - (v < 0),
    "signbit": lambda v: math.copysign(1, v) < 0,
    "reciprocal": lambda v: 1 / v,
}


@pytest.mark.parametrize("name", MATH)
@settings(prop, max_examples=25)
@given(x=arrays(FLOATS, rank=(1, 2)))
def test_functions_of_one_number(name: str, x: Array) -> None:
    (found,) = run(lambda t: [getattr(nf, name)(t)], x)
    for place in np.ndindex(x.shape):
        v = x[place].item()
        try:
            wanted = MATH[name](v)
        except (ValueError, OverflowError, ZeroDivisionError):
            continue  # where Python raises, test_special_values says what comes
        value = found[place].item()
        if isinstance(wanted, bool):
            assert value is wanted
        elif abs(wanted) > nf.finfo(x.dtype).max:
            assert abs(value) == math.inf
        else:
            assert close(value, float(wanted), 8 * eps_of(x.dtype), 1e-30), (v, value, wanted)


def test_special_values() -> None:
    """The special cases of the standard where Python raises."""
    inf, nan = math.inf, math.nan
    with nf.Graph().as_default():
        for name, pairs in {
            "log": [(0.0, -inf), (-0.0, -inf), (-1.0, nan), (inf, inf)],
            "log1p": [(-1.0, -inf), (-2.0, nan), (-0.0, -0.0)],
            "sqrt": [(-1.0, nan), (-0.0, -0.0), (inf, inf)],
            "exp": [(1000.0, inf), (-inf, 0.0)],
            "sin": [(inf, nan), (-0.0, -0.0)],
            "acosh": [(0.5, nan), (1.0, 0.0)],
            "atanh": [(1.0, inf), (-1.0, -inf), (2.0, nan)],
            "asin": [(1.5, nan), (-0.0, -0.0)],
            "reciprocal": [(0.0, inf), (-0.0, -inf), (-inf, -0.0)],
            "floor": [(inf, inf), (nan, nan), (-0.0, -0.0)],
            "round": [(inf, inf), (-0.0, -0.0), (0.5, 0.0), (1.5, 2.0), (-0.5, -0.0)],
            "trunc": [(-0.5, -0.0), (nan, nan)],
        }.items():
            values = evaluate(getattr(nf, name)(nf.constant(np.array([v for v, _ in pairs]))))
            for (v, wanted), value in zip(pairs, values, strict=True):
                assert same(value.item(), wanted), (name, v, value)


@prop
@given(data=st.data())
def test_choices(data: Any) -> None:
    """maximum, minimum: NaN wins. clip, where, comparisons: as Python has them."""
    x = data.draw(arrays(FLOATS, rank=(1, 2)))
    y = np.ascontiguousarray(x[::-1])
    top, low, cut, picked, less, equal, sign = run(
        lambda a, b: (
            *(nf.maximum(a, b), nf.minimum(a, b), nf.clip(a, -1.0, 1.0)),
            *(nf.where(nf.isnan(a), b, a), a < b, a == b, nf.copysign(a, b)),
        ),
        x,
        y,
    )
    for place in np.ndindex(x.shape):
        a, b = x[place].item(), y[place].item()
        nan = is_nan(a) or is_nan(b)
        for value, wanted in ((top, max(a, b)), (low, min(a, b))):
            assert math.isnan(value[place]) if nan else value[place].item() == wanted
        assert math.isnan(cut[place]) if is_nan(a) else cut[place].item() == min(max(a, -1.0), 1.0)
        assert same(picked[place].item(), b if is_nan(a) else a)
        assert (less[place], equal[place]) == (a < b, a == b)
        assert same(sign[place].item(), math.copysign(a, b))


def rounded(number: float) -> int:
    """The bits of the bfloat16 nearest to a float32, halves to even."""
    bits: int = struct.unpack("<I", struct.pack("<f", number))[0]
    if is_nan(number):
        return 0x7FC0
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


@prop
@given(data=st.data())
def test_bfloat16_rounds_float32(data: Any) -> None:
    single = data.draw(arrays((np.dtype(np.float32),), rank=(1, 2)))
    cast = run(lambda t: nf.astype(t, BFLOAT16), single)
    for place in np.ndindex(single.shape):
        if not np.isnan(single[place]):
            assert int(cast.view(np.uint16)[place]) == rounded(single[place].item())
    x = cast
    y = np.ascontiguousarray(x[::-1])
    found = run(lambda a, b: (a + b, a - b, a * b), x, y)
    for place in np.ndindex(x.shape):
        a, b = np.float32(x[place]), np.float32(y[place])
        with np.errstate(all="ignore"):
            wanted = [a + b, a - b, a * b]
        for value, right in zip(found, wanted, strict=True):
            if not np.isnan(right):
                assert int(value.view(np.uint16)[place]) == rounded(float(right))
            else:
                assert np.isnan(value[place])


# --- places ----------------------------------------------------------------------------------------------------------


@prop
@given(data=st.data())
def test_moving_elements(data: Any) -> None:
    x = data.draw(arrays(rank=(1, 4)))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    axes = tuple(data.draw(st.permutations(range(x.ndim))))
    shift = data.draw(st.integers(-5, 5))
    turned, flipped, rolled, flat, stacked, tiled, repeated, padded = run(
        lambda t: (
            *(nf.permute_dims(t, axes), nf.flip(t, axis=axis), nf.roll(t, shift, axis=axis), nf.reshape(t, (-1,))),
            *(nf.stack([t, t], axis=axis), nf.tile(t, (2,) * x.ndim), nf.repeat(t, 2, axis=axis)),
            nf.pad(t, [(1, 2)] * x.ndim) if x.dtype != bool else t,
        ),
        x,
    )
    assert turned.shape == tuple(x.shape[a] for a in axes)
    assert [v.tobytes() for v in flat] == [x[p].tobytes() for p in np.ndindex(x.shape)]
    place = axis % x.ndim
    for p in np.ndindex(x.shape):
        value = x[p].tobytes()

        def at(k: int, p: tuple[int, ...] = p) -> tuple[int, ...]:
            return (*p[:place], k, *p[place + 1 :])

        n = x.shape[place]
        assert turned[tuple(p[a] for a in axes)].tobytes() == value
        assert flipped[at(n - 1 - p[place])].tobytes() == value
        assert rolled[at((p[place] + shift) % n)].tobytes() == value
        assert repeated[at(2 * p[place] + 1)].tobytes() == value
        assert tiled[tuple(i + n for i, n in zip(p, x.shape, strict=True))].tobytes() == value
        new = axis % (x.ndim + 1)
        assert stacked[(*p[:new], 1, *p[new:])].tobytes() == value
        if x.dtype != bool:
            assert padded[tuple(i + 1 for i in p)].tobytes() == value


@prop
@given(data=st.data())
def test_slices_are_those_of_lists(data: Any) -> None:
    x = data.draw(arrays(rank=(1, 2), side=(0, 6)))
    bound = st.none() | st.integers(-8, 8)
    start, stop = data.draw(bound), data.draw(bound)
    step = data.draw(st.none() | st.integers(-3, 3).filter(bool))
    found = run(lambda t: t[start:stop:step], x)
    rows = list(range(len(x)))[start:stop:step]
    assert len(found) == len(rows)
    for row, k in zip(found, rows, strict=True):
        assert row.tobytes() == x[k].tobytes()
    with nf.Graph().as_default():
        t = nf.constant(x)
        moving = [None if b is None else nf.constant(b) for b in (start, stop)]
        assert evaluate(t[moving[0] : moving[1] : step]).tobytes() == found.tobytes()


@prop
@given(data=st.data())
def test_taking_and_scattering(data: Any) -> None:
    x = data.draw(arrays((np.dtype(np.int64), np.dtype(np.float64)), rank=(1, 3), side=(1, 4), finite=True, small=True))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    n = x.shape[axis]
    indices = np.array(data.draw(st.lists(st.integers(-n, n - 1), max_size=5)), np.int64)
    taken, added = run(
        lambda t, i: (nf.take(t, i, axis=axis), nf.scatter_add(t, i, nf.take(t, i, axis=axis), axis=axis)), x, indices
    )
    for place, line in lines(x, axis):
        assert line_of(taken, place, axis) == [line[k] for k in indices]
        wanted = list(line)
        for k in indices:
            wanted[k] += line[k]
        np.testing.assert_allclose(line_of(added, place, axis), wanted, rtol=1e-14)


@prop
@given(data=st.data())
def test_broadcasting(data: Any) -> None:
    whole = data.draw(st.lists(st.integers(0, 3), max_size=4))
    parts = []
    for _ in range(2):
        cut = data.draw(st.integers(0, len(whole)))
        parts.append(tuple(data.draw(st.sampled_from([d, 1])) for d in whole[cut:]))
    x = np.arange(math.prod(parts[0])).reshape(parts[0])
    y = np.arange(math.prod(parts[1])).reshape(parts[1]) * 100
    found, one, two = run(lambda a, b: (a + b, *nf.broadcast_arrays(a, b)), x, y)
    rank = max(len(p) for p in parts)
    dims = []
    for k in range(-rank, 0):
        pair = {p[k] for p in parts if len(p) >= -k}
        dims.append(next(iter(pair - {1}), 1))
    assert found.shape == one.shape == two.shape == tuple(dims)
    for p in np.ndindex(found.shape):
        a, b = (v[tuple(0 if d == 1 else i for i, d in zip(p[rank - v.ndim :], v.shape, strict=True))] for v in (x, y))
        assert (one[p], two[p], found[p]) == (a, b, a + b)


@prop
@given(data=st.data())
def test_einsum(data: Any) -> None:
    letters = "abcd"
    sizes = dict(zip(letters, data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4)), strict=True))
    term = st.lists(st.sampled_from(letters), min_size=1, max_size=3).map("".join)
    terms = data.draw(st.lists(term, min_size=1, max_size=3))
    used = sorted(set("".join(terms)))
    result = "".join(data.draw(st.permutations(used)))[: data.draw(st.integers(0, len(used)))]
    operands = [
        np.array([(7 * k + 3) % 5 - 2 for k in range(math.prod(sizes[c] for c in t))], np.int64).reshape(
            [sizes[c] for c in t]
        )
        for t in terms
    ]
    found = run(lambda *ts: nf.einsum(f"{','.join(terms)}->{result}", *ts), *operands)
    wanted = dict.fromkeys(np.ndindex(tuple(sizes[c] for c in result)), 0)
    for values in itertools.product(*(range(sizes[c]) for c in used)):
        at = dict(zip(used, values, strict=True))
        product = math.prod(int(x[tuple(at[c] for c in t)]) for x, t in zip(operands, terms, strict=True))
        wanted[tuple(at[c] for c in result)] += product
    assert found.shape == tuple(sizes[c] for c in result)
    assert all(found[p] == w for p, w in wanted.items())
