"""The array API standard 2024.12: every function with its parameters, and what calls give beside numpy.

The signatures are those of the specification. A function of ours may take more, such as `name`, that can be left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import DTypeError, GraphError, NbflowError, ShapeError
from nbflow.testing import evaluate

# Functions of the form f(x, /) and f(x1, x2, /).
UNARY = """
    abs acos acosh asin asinh atan atanh bitwise_invert ceil conj cos cosh exp expm1 floor imag isfinite isinf
    isnan log log10 log1p log2 logical_not matrix_transpose negative nonzero positive real reciprocal round sign
    signbit sin sinh sqrt square tan tanh trunc unique_all unique_counts unique_inverse unique_values
"""
BINARY = """
    add atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor copysign divide equal
    floor_divide greater greater_equal hypot less less_equal logaddexp logical_and logical_or logical_xor matmul
    maximum minimum multiply nextafter not_equal pow remainder subtract
"""
OTHERS = """
all(x, /, *, axis=None, keepdims=False)
any(x, /, *, axis=None, keepdims=False)
arange(start, /, stop=None, step=1, *, dtype=None, device=None)
argmax(x, /, *, axis=None, keepdims=False)
argmin(x, /, *, axis=None, keepdims=False)
argsort(x, /, *, axis=-1, descending=False, stable=True)
asarray(obj, /, *, dtype=None, device=None, copy=None)
astype(x, dtype, /, *, copy=True, device=None)
broadcast_arrays(*arrays)
broadcast_to(x, /, shape)
can_cast(from_, to, /)
clip(x, /, min=None, max=None)
concat(arrays, /, *, axis=0)
count_nonzero(x, /, *, axis=None, keepdims=False)
cumulative_prod(x, /, *, axis=None, dtype=None, include_initial=False)
cumulative_sum(x, /, *, axis=None, dtype=None, include_initial=False)
diff(x, /, *, axis=-1, n=1, prepend=None, append=None)
empty(shape, *, dtype=None, device=None)
empty_like(x, /, *, dtype=None, device=None)
expand_dims(x, /, *, axis=0)
eye(n_rows, n_cols=None, /, *, k=0, dtype=None, device=None)
finfo(type, /)
flip(x, /, *, axis=None)
from_dlpack(x, /, *, device=None, copy=None)
full(shape, fill_value, *, dtype=None, device=None)
full_like(x, /, fill_value, *, dtype=None, device=None)
iinfo(type, /)
isdtype(dtype, kind)
linspace(start, stop, /, num, *, dtype=None, device=None, endpoint=True)
max(x, /, *, axis=None, keepdims=False)
mean(x, /, *, axis=None, keepdims=False)
meshgrid(*arrays, indexing='xy')
min(x, /, *, axis=None, keepdims=False)
moveaxis(x, source, destination, /)
ones(shape, *, dtype=None, device=None)
ones_like(x, /, *, dtype=None, device=None)
permute_dims(x, /, axes)
prod(x, /, *, axis=None, dtype=None, keepdims=False)
repeat(x, repeats, /, *, axis=None)
reshape(x, /, shape, *, copy=None)
result_type(*arrays_and_dtypes)
roll(x, /, shift, *, axis=None)
searchsorted(x1, x2, /, *, side='left', sorter=None)
sort(x, /, *, axis=-1, descending=False, stable=True)
squeeze(x, /, axis)
stack(arrays, /, *, axis=0)
std(x, /, *, axis=None, correction=0.0, keepdims=False)
sum(x, /, *, axis=None, dtype=None, keepdims=False)
take(x, indices, /, *, axis=None)
take_along_axis(x, indices, /, *, axis=-1)
tensordot(x1, x2, /, *, axes=2)
tile(x, repetitions, /)
tril(x, /, *, k=0)
triu(x, /, *, k=0)
unstack(x, /, *, axis=0)
var(x, /, *, axis=None, correction=0.0, keepdims=False)
vecdot(x1, x2, /, *, axis=-1)
where(condition, x1, x2, /)
zeros(shape, *, dtype=None, device=None)
zeros_like(x, /, *, dtype=None, device=None)
"""
LINALG = """
cholesky(x, /, *, upper=False)
cross(x1, x2, /, *, axis=-1)
det(x, /)
diagonal(x, /, *, offset=0)
eigh(x, /)
eigvalsh(x, /)
inv(x, /)
matmul(x1, x2, /)
matrix_norm(x, /, *, keepdims=False, ord='fro')
matrix_power(x, n, /)
matrix_rank(x, /, *, rtol=None)
matrix_transpose(x, /)
outer(x1, x2, /)
pinv(x, /, *, rtol=None)
qr(x, /, *, mode='reduced')
slogdet(x, /)
solve(x1, x2, /)
svd(x, /, *, full_matrices=True)
svdvals(x, /)
tensordot(x1, x2, /, *, axes=2)
trace(x, /, *, offset=0, dtype=None)
vecdot(x1, x2, /, *, axis=-1)
vector_norm(x, /, *, axis=None, keepdims=False, ord=2)
"""
FFT = """
fft(x, /, *, n=None, axis=-1, norm='backward')
fftfreq(n, /, *, d=1.0, dtype=None, device=None)
fftn(x, /, *, s=None, axes=None, norm='backward')
fftshift(x, /, *, axes=None)
hfft(x, /, *, n=None, axis=-1, norm='backward')
ifft(x, /, *, n=None, axis=-1, norm='backward')
ifftn(x, /, *, s=None, axes=None, norm='backward')
ifftshift(x, /, *, axes=None)
ihfft(x, /, *, n=None, axis=-1, norm='backward')
irfft(x, /, *, n=None, axis=-1, norm='backward')
irfftn(x, /, *, s=None, axes=None, norm='backward')
rfft(x, /, *, n=None, axis=-1, norm='backward')
rfftfreq(n, /, *, d=1.0, dtype=None, device=None)
rfftn(x, /, *, s=None, axes=None, norm='backward')
"""
SIGNATURES = [
    *(f"{name}(x, /)" for name in UNARY.split()),
    *(f"{name}(x1, x2, /)" for name in BINARY.split()),
    *OTHERS.split("\n")[1:-1],
    *(f"linalg.{line}" for line in LINALG.split("\n")[1:-1]),
    *(f"fft.{line}" for line in FFT.split("\n")[1:-1]),
]


def function_of(path: str) -> Any:
    found: Any = nf
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("line", SIGNATURES, ids=[s.partition("(")[0] for s in SIGNATURES])
def test_signatures(line: str) -> None:
    path, _, parameters = line.partition("(")
    wanted = inspect.signature(eval(f"lambda {parameters[:-1]}: None"))
    ours = inspect.signature(function_of(path)).parameters
    named = {n: p for n, p in ours.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    places = [p for p in ours.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    used: set[str] = set()
    for number, asked in enumerate(wanted.parameters.values()):
        if asked.kind is asked.VAR_POSITIONAL:
            assert any(p.kind is p.VAR_POSITIONAL for p in ours.values())
            continue
        if asked.kind is asked.POSITIONAL_ONLY:
            found = places[number]
        elif asked.kind is asked.POSITIONAL_OR_KEYWORD:
            found = named[asked.name]
            assert places[number].name == asked.name
        else:
            found = named[asked.name]
        used.add(found.name)
        if asked.default is not asked.empty:
            assert found.default == asked.default, found
    more = [p for p in ours.values() if p.name not in used and p.kind is not p.VAR_POSITIONAL]
    assert all(p.default is not p.empty for p in more), more


def test_constants_and_dtypes() -> None:
    assert (nf.e, nf.pi, nf.inf, nf.newaxis) == (np.e, np.pi, np.inf, None)
    assert np.isnan(nf.nan)
    assert nf.__array_api_version__ == "2024.12"
    info = nf.__array_namespace_info__()
    for name, dtype in info.dtypes().items():
        assert getattr(nf, name) == dtype
        assert dtype.name == name
    assert set(info.dtypes(kind="integral")) == {f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)}
    assert set(info.dtypes(kind=("bool", "complex floating"))) == {"bool", "complex64", "complex128"}
    assert info.default_dtypes()["real floating"] == nf.float32
    assert info.capabilities()["data-dependent shapes"] is True
    assert info.default_device() in info.devices()


# --- the array object ------------------------------------------------------------------------------------------------

OPERATORS: list[Callable[[Any, Any], Any]] = [
    *(lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x // y, lambda x, y: x % y),
    *(lambda x, y: x**y, lambda x, y: x & y, lambda x, y: x | y, lambda x, y: x ^ y, lambda x, y: x << y),
    *(lambda x, y: x >> y, lambda x, y: x < y, lambda x, y: x <= y, lambda x, y: x > y, lambda x, y: x >= y),
    *(lambda x, y: x == y, lambda x, y: x != y, lambda x, y: x @ y, lambda x, y: x / y),
]


@pytest.mark.parametrize("number", range(len(OPERATORS)))
def test_operators_and_reflected_ones(number: int) -> None:
    x, y = np.array([[5, 2], [3, 7]]), np.array([[1, 2], [4, 3]])
    operator = OPERATORS[number]
    with nf.Graph().as_default():
        a, b = nf.constant(x), nf.constant(y)
        values = evaluate([operator(a, b), operator(a, y), operator(x, b)])
        for value in values:
            np.testing.assert_array_equal(value, operator(x, y))
        if number != 17:  # a matrix product takes no numbers
            np.testing.assert_array_equal(evaluate(operator(2, b)), operator(2, y))
            np.testing.assert_array_equal(evaluate(operator(a, 2)), operator(x, 2))


def test_in_place_forms_make_new_tensors() -> None:
    with nf.Graph().as_default():
        first = made = nf.constant([6, 7])
        made += 1
        made *= 2
        made //= 3
        made <<= 1
        made ^= 1
        assert made is not first
        np.testing.assert_array_equal(evaluate(made), ((np.array([6, 7]) + 1) * 2 // 3 << 1) ^ 1)


def test_attributes_and_methods() -> None:
    with nf.Graph().as_default():
        x = nf.constant(np.arange(24.0).reshape(2, 3, 4))
        assert (x.shape, x.ndim, x.size, x.dtype) == ((2, 3, 4), 3, 24, nf.float64)
        assert nf.placeholder("float32", (None, 3)).size is None
        assert nf.placeholder("float32", None).size is None
        assert x.mT.shape == (2, 4, 3)
        assert x.__array_namespace__() is nf
        assert x.__array_namespace__(api_version="2023.12") is nf
        with pytest.raises(ValueError, match=r"2024\.12"):
            x.__array_namespace__(api_version="1999.1")
        moved = x.to_device("/job:worker/task:1")
        assert "worker" in moved.device
        np.testing.assert_array_equal(evaluate(moved), evaluate(x))
        with pytest.raises(ValueError, match="stream"):
            x.to_device("/cpu:0", stream=1)
        for convert in (bool, int, float, complex):
            with pytest.raises(TypeError):
                convert(nf.constant(1.0))
        w = nf.Variable(np.ones((2, 3)), name="w")
        assert w.size == 6
        assert w.mT.shape == (3, 2)


def test_device_and_copy() -> None:
    with nf.Graph().as_default():
        x = nf.constant([1.0, 2.0])
        for made in (
            nf.zeros((2,), device="/cpu:0"),
            nf.ones_like(x, device="/cpu:0"),
            nf.arange(3, device="/cpu:0"),
            nf.asarray([1], device="/cpu:0"),
            nf.astype(x, "float64", copy=False, device="/cpu:0"),
            nf.fft.fftfreq(4, device="/cpu:0"),
        ):
            assert "cpu:0" in made.device
        assert nf.asarray(x, copy=False) is x
        assert nf.reshape(x, (1, 2), copy=True).shape == (1, 2)
        with pytest.raises(GraphError, match="copy"):
            nf.asarray([1.0], copy=False)
        with pytest.raises(GraphError, match="copy"):
            nf.from_dlpack(np.ones(2), copy=False)


# --- calls beside numpy's, which follows the standard since 2.0 ------------------------------------------------------

X = np.array([[3.0, -1.0, 2.0], [0.0, 5.0, -4.0]])
N = np.array([[3, 1, 3], [2, 2, 0]])
C = np.array([1 + 2j, -3j, 2.0])
V = np.array([1.0, 2.0, 4.0, 8.0])
S = np.array([[4.0, 1.0], [1.0, 3.0]])

CALLS: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (lambda xp, x: xp.cumulative_sum(x, axis=1, include_initial=True), (X,)),
    (lambda xp, x: xp.cumulative_prod(x, axis=0, include_initial=True), (X,)),
    (lambda xp, x: xp.cumulative_sum(x, axis=-1, dtype=np.float32), (N,)),
    (lambda xp, x: xp.unstack(x, axis=1), (X,)),
    (lambda xp, x: xp.repeat(x, 2, axis=1), (X,)),
    (lambda xp, x: xp.repeat(x, np.array([2, 0, 1]), axis=1), (X,)),
    (lambda xp, x: xp.repeat(x, 2), (X,)),
    (lambda xp, x: xp.take_along_axis(x, N - 1, axis=1), (X,)),
    (lambda xp, x: xp.take(x, np.array([1, 0, 1]), axis=1), (X,)),
    (lambda xp, x: xp.searchsorted(x, np.array([0.0, 2.0, 9.0]), side="right"), (V,)),
    (lambda xp, x: xp.searchsorted(x[::-1], np.array([0.0, 2.0]), sorter=np.array([3, 2, 1, 0])), (V,)),
    (lambda xp, x: xp.unique_all(x), (N,)),
    (lambda xp, x: xp.unique_counts(x), (N,)),
    (lambda xp, x: xp.unique_inverse(x), (X,)),
    (lambda xp, x: xp.vecdot(x, x * 2, axis=0), (X,)),
    (lambda xp, x: xp.vecdot(x, x * 2j), (C,)),
    (lambda xp, x: xp.diff(x, n=2, prepend=np.zeros((2, 1)), append=np.ones((2, 2))), (X,)),
    (lambda xp, x: xp.roll(x, (1, -1), axis=(0, 1)), (X,)),
    (lambda xp, x: xp.roll(x, 2), (X,)),
    (lambda xp, x: xp.flip(x), (X,)),
    (lambda xp, x: xp.flip(x, axis=-1), (X,)),
    (lambda xp, x: xp.tile(x, (2, 1, 2)), (X,)),
    (lambda xp, x: xp.permute_dims(x, (1, 0)), (X,)),
    (lambda xp, x: xp.moveaxis(x, 0, -1), (X,)),
    (lambda xp, x: xp.meshgrid(x, x[:2], indexing="ij"), (V,)),
    (lambda xp, x: xp.meshgrid(x, x[:2]), (V,)),
    (lambda xp, x: xp.broadcast_arrays(x, x[:1], x[0]), (X,)),
    (lambda xp, x: xp.var(x, axis=1, correction=1), (X,)),
    (lambda xp, x: xp.std(x, correction=2, keepdims=True), (X,)),
    (lambda xp, x: xp.count_nonzero(x, axis=0), (N,)),
    (lambda xp, x: xp.argmax(x, axis=1, keepdims=True), (N,)),
    (lambda xp, x: xp.argmin(x), (N,)),
    (lambda xp, x: xp.clip(x, -1.0, None), (X,)),
    (lambda xp, x: xp.clip(x, None, np.array([0.0, 1.0, 2.0])), (X,)),
    (lambda xp, x: xp.tril(x, k=1), (X,)),
    (lambda xp, x: xp.triu(x, k=-1), (X,)),
    (lambda xp, x: xp.tensordot(x, x, axes=((1,), (1,))), (X,)),
    (lambda xp, x: xp.tensordot(x, x, axes=0), (V,)),
    (lambda xp, x: xp.sign(x), (C,)),
    (lambda xp, x: xp.round(x), (np.array([0.5 + 1.5j, -2.5]),)),
    (lambda xp, x: xp.copysign(x, -x), (X,)),
    (lambda xp, x: xp.nonzero(x), (X,)),
    (lambda xp, x: xp.concat([x, x], axis=None), (X,)),
    (lambda xp, x: xp.linspace(0, 1, 5, endpoint=False, dtype=np.float64) * x, (np.float64(2),)),
    (lambda xp, x: xp.eye(3, 4, k=-1, dtype=np.float64) * x, (np.float64(2),)),
    (lambda xp, x: xp.linalg.vector_norm(x, axis=(0, 1), ord=3), (X,)),
    (lambda xp, x: xp.linalg.vector_norm(x, axis=1, ord=-np.inf, keepdims=True), (X,)),
    (lambda xp, x: xp.linalg.matrix_norm(x, ord="nuc"), (X,)),
    (lambda xp, x: xp.linalg.matrix_norm(x, ord=-2, keepdims=True), (X,)),
    (lambda xp, x: xp.linalg.matrix_norm(x, ord=1), (X,)),
    (lambda xp, x: xp.linalg.cross(x, x[::-1], axis=1), (X,)),
    (lambda xp, x: xp.linalg.outer(x, x), (C,)),
    (lambda xp, x: xp.linalg.diagonal(x, offset=1), (X,)),
    (lambda xp, x: xp.linalg.trace(x, offset=-1, dtype=np.float32), (X,)),
    (lambda xp, x: xp.linalg.trace(x), (np.ones((2, 2), np.int8),)),
    (lambda xp, x: xp.linalg.matrix_rank(x), (X,)),
    (lambda xp, x: xp.linalg.matrix_power(x, -2), (S,)),
    (lambda xp, x: xp.linalg.matrix_power(x, 0), (S,)),
    (lambda xp, x: xp.linalg.svdvals(x), (X,)),
    (lambda xp, x: xp.linalg.eigvalsh(x), (S,)),
    (lambda xp, x: xp.linalg.cholesky(x), (S,)),
    (lambda xp, x: xp.linalg.slogdet(x), (S,)),
    (lambda xp, x: xp.linalg.solve(x, x[0]), (S,)),
    (lambda xp, x: xp.linalg.pinv(x, rtol=1e-3), (X,)),
    (lambda xp, x: xp.fft.fftn(x, s=(3, 2), axes=(0, 1), norm="ortho"), (X,)),
    (lambda xp, x: xp.fft.irfft(x, n=5), (C,)),
    (lambda xp, x: xp.fft.hfft(x, norm="forward"), (C,)),
    (lambda xp, x: xp.fft.ihfft(x), (V,)),
    (lambda xp, x: xp.fft.fftshift(x, axes=1), (X,)),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_calls(number: int) -> None:
    call, arrays = CALLS[number]
    wanted = call(np, *arrays)
    with nf.Graph().as_default():
        made = call(nf, *(nf.constant(a) for a in arrays))
        found = evaluate(list(made) if isinstance(made, tuple) else [made])
    for value, right in zip(found, wanted if isinstance(wanted, (tuple, list)) else [wanted], strict=True):
        assert value.dtype == np.asarray(right).dtype
        assert value.shape == np.shape(right)
        np.testing.assert_allclose(value, right, rtol=1e-12, atol=1e-12)


def test_repeats_of_a_tensor() -> None:
    with nf.Graph().as_default():
        repeats = nf.placeholder("int64", (3,))
        made = nf.repeat(nf.constant(X), repeats, axis=1)
        assert made.shape == (2, None)
        np.testing.assert_array_equal(evaluate(made, {repeats: [2, 0, 1]}), np.repeat(X, [2, 0, 1], axis=1))
        with pytest.raises(ShapeError, match="3 elements"):
            nf.repeat(nf.constant(X), [1, 2], axis=1)
        with pytest.raises(DTypeError, match="integers"):
            nf.repeat(nf.constant(X), [0.5, 1.0, 2.0], axis=1)


@pytest.mark.parametrize("function", [nf.max, nf.min, nf.argmax, nf.argmin])
def test_extremes_of_nothing(function: Any) -> None:
    with nf.Graph().as_default():
        x = nf.zeros((0, 3))
        for axis in (None, 0):
            with pytest.raises(ShapeError, match="of nothing"):
                function(x, axis=axis)
        assert evaluate(function(x, axis=1)).shape == (0,)
        unknown = nf.placeholder("float32", (None, 3))
        with pytest.raises(NbflowError):
            evaluate(function(unknown, axis=0), {unknown: np.zeros((0, 3))})


# --- indexing --------------------------------------------------------------------------------------------------------

CUBE = np.arange(60).reshape(3, 4, 5)
MASK = CUBE % 7 < 3
KEYS: list[Any] = [
    *(0, -1, (1, 2), (0, -1, 3), ..., (..., 2), (1, ...), (slice(None), 1), None, (None, ..., None)),
    *(slice(1, None), slice(None, None, -1), slice(-1, 0, -2), slice(5, 9), (slice(0, 0), ..., slice(None, None, 3))),
    *(MASK, MASK[:, :, 1], MASK[:, 0, 0]),
    *((slice(None), MASK[0, :, 0]), (..., MASK[0, 0]), (0, MASK[0]), (MASK[:, 0, 0], 1)),
    *([0, 2, 2], (slice(None), [3, 0]), ([0, 1], [2, 3]), ([0, 1], slice(None), [2, 3]), (..., [[0], [1]], [2, 3])),
    *((1, [0, 2], slice(None, None, 2)), ([0, 1], None, [2, 3]), ([[0, 1], [2, 0]], ...), ([-1, -3],)),
    *((slice(None, 2), [1, 1], None), (0, ..., [4, 0]), (None, 1, [0, 2], 3)),
]


@pytest.mark.parametrize("number", range(len(KEYS)))
def test_indexing(number: int) -> None:
    key = KEYS[number]
    parts = key if isinstance(key, tuple) else (key,)
    with nf.Graph().as_default():
        x, y = nf.constant(CUBE), nf.placeholder("int64", (None, None, None))
        tensors = tuple(nf.constant(p) if isinstance(p, (list, np.ndarray)) else p for p in parts)
        plain = x[key]
        values = evaluate([plain, x[tensors], y[key]], {y: CUBE})
        assert plain.spec.accepts(nf.TensorSpec(values[0].shape, values[0].dtype))
    for value in values:
        np.testing.assert_array_equal(value, CUBE[key])


BOUNDS: list[tuple[Any, ...]] = [
    *((1, 3, None), (None, 2, None), (-2, None, None), (0, 4, 2), (3, 0, -1), (None, 1, -1), (2, None, -2)),
    *((-100, 100, 3), (3, 1, None), (None, None, None)),
]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_slices_between_tensors(bounds: tuple[Any, ...]) -> None:
    with nf.Graph().as_default():
        start, stop = (None if b is None else nf.placeholder("int32", ()) for b in bounds[:2])
        feeds = {t: b for t, b in zip((start, stop), bounds[:2], strict=True) if t is not None}
        x = nf.constant(CUBE.astype(float))
        cut = slice(start, stop, bounds[2])
        made = [x[:, cut], x[..., cut], x[1, cut, None], x[cut, [0, 1]], x[None, cut, ..., 2]]
        grad = nf.gradients(nf.sum(x[:, cut]), [x])[0]
        values = evaluate([*made, grad], feeds)
    key = slice(*bounds)
    wanted: list[Any] = [CUBE[:, key], CUBE[..., key], CUBE[1, key, None], CUBE[key][:, [0, 1]]]
    wanted.append(CUBE[None, key, ..., 2])
    for value, right in zip(values, wanted, strict=False):
        np.testing.assert_array_equal(value, right)
    ones = np.zeros(CUBE.shape)
    ones[:, key] = 1
    np.testing.assert_array_equal(values[-1], ones)


def test_indexing_errors() -> None:
    with nf.Graph().as_default():
        x = nf.constant(CUBE)
        for key, error, text in (
            ((..., ...), ShapeError, "one '...'"),
            ((0, 0, 0, 0), ShapeError, "4 indices"),
            (5, ShapeError, "out of range"),
            (1.5, DTypeError, "an index is"),
            (nf.constant([0.5]), DTypeError, "integer tensor"),
            (MASK[:2], ShapeError, "does not fit"),
            (slice(nf.constant(0.5), None), DTypeError, "bound"),
            (slice(nf.constant([1, 2]), None), ShapeError, "bound"),
            (slice(None, None, nf.constant(1)), ShapeError, "both bounds"),
        ):
            with pytest.raises(error, match=text):
                x[key]
