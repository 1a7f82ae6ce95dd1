"""Every op over every dtype: it computes in the right one and close to double precision, or refuses while building.

The rows are those of the `cases` modules, with their inputs in another dtype. What a row gives then is compared with
what it gives in float64 (complex128, int64): those values are checked against numpy by `test_ops_cases.py`.

Bound: |value - reference| <= 16 eps(dtype) max(1, |reference|); more only where `LOOSE` says why.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow import op
from nbflow.backends.numpy import NumpyBackend, half
from nbflow.errors import DTypeError, NbflowError, OpError
from nbflow.graph import Graph, Node
from nbflow.spec import BFLOAT16, FLOAT32, as_dtype, float_info, is_half, kind_of
from nbflow.testing import Evaluator, cases, evaluate
from nbflow.testing.cases import ROWS, Case, ids

NAMES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
)
DTYPES = {name: as_dtype(name) for name in NAMES}
WIDEST = {k: np.dtype(n) for k, n in (("f", "f8"), ("c", "c16"), ("i", "i8"), ("u", "u8"), ("b", "?"))}

# Ops whose values have no counterpart in double precision, or lose more than rounding does.
LOOSE = {
    "nextafter": "the neighbour of a float32 is not that of a float64",
    **dict.fromkeys(("random_uniform_like", "random_normal_like"), "each precision draws its own numbers"),
}

# A row that rounds a number it computed jumps where another precision does not: then only its dtype is compared.
JUMPS = {"floor", "ceil", "round", "trunc", "floor_divide", "remainder"}


def main_kind(case: Case) -> str:
    """The kind of the inputs that change their dtype: floats before integers before booleans."""
    kinds = {kind_of(np.asarray(a).dtype) for a in case.inputs}
    return next((k for k in "cfiu" if k in kinds), "b")


def retyped(case: Case, dtype: np.dtype[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The inputs in `dtype`, and the same values in the widest dtype of its kind."""
    main, wide = main_kind(case), WIDEST[kind_of(dtype)]
    narrow, wider = [], []
    for array in map(np.asarray, case.inputs):
        kind = kind_of(array.dtype)
        if kind == main or {kind, main} == {"i", "u"}:
            part = array.real if kind == "c" and kind_of(dtype) != "c" else array
            if kind_of(dtype) == "u":
                part = np.abs(part)  # no huge sizes where negative numbers wrap around
            with np.errstate(all="ignore"):
                narrow.append(part.astype(dtype))
            wider.append(narrow[-1].astype(wide))
        else:
            narrow.append(array)
            wider.append(array)
    return narrow, wider


def run(case: Case, arrays: list[np.ndarray]) -> tuple[list[Any], list[np.ndarray], set[str], bool]:
    """Outputs, their values, the ops in the graph, and whether the row itself names a floating dtype."""
    with Graph().as_default() as graph, np.errstate(all="ignore"):
        inputs = [nf.placeholder(a.dtype, a.shape) for a in arrays]
        made = case.build(*inputs)
        outputs = list(made) if isinstance(made, (list, tuple)) else [made]
        values = Evaluator().run(outputs, dict(zip(inputs, arrays, strict=True)))
        nodes = [n for n in graph.nodes.values() if n.op != "placeholder"]
        return outputs, values, {n.op for n in nodes}, any(names_dtype(n) for n in nodes)


def names_dtype(node: Node) -> bool:
    found = [v if isinstance(v, np.dtype) else getattr(v, "dtype", None) for v in node.attrs.values()]
    return any(d in (np.dtype("f8"), np.dtype("c16")) for d in found if d is not None)


def right_dtypes(dtype: np.dtype[Any], reference: np.dtype[Any]) -> tuple[np.dtype[Any], ...]:
    """What the result may be in `dtype` when it is `reference` in the widest dtype of its kind."""
    kind, wide = kind_of(dtype), WIDEST[kind_of(dtype)]
    if kind in "iu" and reference == wide:
        return dtype, wide  # sums and counts of small integers are 64-bit ones
    if reference == wide:
        return (dtype,)
    if kind == "c" and reference == np.float64:
        return (np.dtype(f"f{dtype.itemsize // 2}"),)
    if kind == "f" and reference == np.complex128:
        return (np.dtype(f"c{2 * dtype.itemsize}"),)  # for 16 bits there is none: such an op must refuse
    return (reference,)


def check_value(case: Case, value: np.ndarray, reference: np.ndarray) -> None:
    assert value.shape == reference.shape
    if kind_of(reference.dtype) == "u" and (reference >= 2**63).any():
        return  # below 0 inside the row: each width wraps around at another number
    if kind_of(value.dtype) not in "fc":
        np.testing.assert_array_equal(value, reference.astype(value.dtype))
    elif case.op not in LOOSE:
        info = float_info(value.dtype)
        finite = np.isfinite(reference) & (np.abs(reference) <= info.max)
        near, right = value[finite].astype(reference.dtype), reference[finite]
        assert np.isfinite(near).all()
        assert (np.abs(near - right) <= 16 * info.eps * np.maximum(1, np.abs(right))).all(), (value, reference)
        if kind_of(value.dtype) == "f":  # what is infinite or NaN in a product of complex numbers is nobody's promise
            odd = ~np.isfinite(reference)
            np.testing.assert_array_equal(value[odd].astype(reference.dtype), reference[odd])


USABLE = [(c, n) for c, n in zip(ROWS, ids(ROWS), strict=True) if c.inputs and all(np.size(a) for a in c.inputs)]


@functools.cache
def sweep(name: str) -> tuple[list[str], set[str], set[str]]:
    """What is wrong in the dtype `name`; which ops computed in it alone; which beside constants of other dtypes too."""
    dtype = DTYPES[name]
    failures: list[str] = []
    computed: set[str] = set()
    ran: set[str] = set()
    for case, label in USABLE:
        narrow, wide = retyped(case, dtype)
        try:
            outputs, values, ops, fixed = run(case, narrow)
        except OpError as error:
            failures.append(f"{label}: fails at run time: {error}")
            continue
        except NbflowError as error:
            if not isinstance(error, DTypeError) and "None" not in str(error):
                failures.append(f"{label}: refuses with {type(error).__name__}, not DTypeError: {error}")
            continue
        for tensor, value in zip(outputs, values, strict=True):
            if tensor.dtype != value.dtype:
                failures.append(f"{label}: the rule says {tensor.dtype}, the value is {value.dtype}")
        ran |= ops
        if fixed and dtype not in (WIDEST["f"], WIDEST["c"]):
            continue
        computed |= ops
        try:
            _, references, _, _ = run(case, wide)
        except DTypeError:
            continue  # a row that mixes uint8 with a constant of int64 does not mix in uint64
        for value, reference in zip(values, references, strict=True):
            right = right_dtypes(dtype, reference.dtype)
            if value.dtype not in right:
                failures.append(f"{label}: gives {value.dtype}, not {' or '.join(map(str, right))}")
                continue
            if ops & JUMPS and case.op not in JUMPS:
                continue
            try:
                check_value(case, value, reference)
            except AssertionError as error:
                failures.append(f"{label}: {str(error).strip().splitlines()[-1]} {error}")
    return failures, computed, ran


@pytest.mark.parametrize("name", NAMES)
def test_every_row_in_every_dtype(name: str) -> None:
    failures, _, _ = sweep(name)
    assert not failures, "\n".join(failures[:20])


# Ops of single and double precision only: LAPACK's and the Fourier transforms. (conj and eye stand in their rows.)
NO_HALF = {
    *("solve", "inv", "pinv", "det", "slogdet", "cholesky", "qr", "eigh", "svd"),
    *("fftn", "ifftn", "rfftn", "irfftn", "conj", "eye"),
}


@pytest.mark.parametrize(
    ("one", "others", "but"),
    [
        ("float32", ("float64",), set()),
        ("float32", ("float16", "bfloat16"), NO_HALF),
        ("complex128", ("complex64",), set()),
        ("int64", ("int32", "int16", "int8"), set()),
        ("uint64", ("uint32", "uint16", "uint8"), set()),
    ],
)
def test_what_takes_one_dtype_takes_its_kind(one: str, others: tuple[str, ...], but: set[str]) -> None:
    for other in others:
        missing = sweep(one)[2] - sweep(other)[2] - {"bitcast"}  # which takes what has as many bits as it gives
        assert missing <= but, f"these compute {one}, but not {other}: {sorted(missing)}"


def test_the_sweep_leaves_out_no_op() -> None:
    computed = set().union(*(sweep(name)[1] for name in NAMES))
    left = set(op.registered()) - computed - set(cases.NOT_COMPUTED) - set(cases.NO_VALUE)
    assert not {name for name in left if not op.get(name).stateful}


# --- promotion -------------------------------------------------------------------------------------------------------

# The array API standard 2024.12, "Type Promotion Rules", and bfloat16 beside it.
_SIGNED, _UNSIGNED = ["int8", "int16", "int32", "int64"], ["uint8", "uint16", "uint32", "uint64"]
PROMOTION: dict[tuple[str, str], str] = {("bool", "bool"): "bool"}
for _names in (_SIGNED, _UNSIGNED):
    PROMOTION |= {(a, b): max(a, b, key=_names.index) for a in _names for b in _names}
_MIXED = """
        uint8  uint16 uint32
int8    int16  int32  int64
int16   int16  int32  int64
int32   int32  int32  int64
int64   int64  int64  int64
"""
_lines = [line.split() for line in _MIXED.strip().splitlines()]
for _row in _lines[1:]:
    for _u, _found in zip(_lines[0], _row[1:], strict=True):
        PROMOTION[_row[0], _u] = PROMOTION[_u, _row[0]] = _found
_FLOATING = """
           bfloat16   float16    float32    float64    complex64  complex128
bfloat16   bfloat16   float32    float32    float64    complex64  complex128
float16    float32    float16    float32    float64    complex64  complex128
float32    float32    float32    float32    float64    complex64  complex128
float64    float64    float64    float64    float64    complex128 complex128
complex64  complex64  complex64  complex64  complex128 complex64  complex128
complex128 complex128 complex128 complex128 complex128 complex128 complex128
"""
_lines = [line.split() for line in _FLOATING.strip().splitlines()]
for _row in _lines[1:]:
    PROMOTION |= {(_row[0], b): found for b, found in zip(_lines[0], _row[1:], strict=True)}


@pytest.mark.parametrize(("a", "b"), list(itertools.product(NAMES, NAMES)))
def test_promotion(a: str, b: str) -> None:
    x, y = np.ones(3, DTYPES[a]), np.ones((2, 1), DTYPES[b])
    wanted = PROMOTION.get((a, b))
    with Graph().as_default():
        if wanted is None:
            with pytest.raises(DTypeError, match=f"{a}.* and .*{b}|{b}.* and .*{a}"):
                nf.constant(x) * nf.constant(y)
            with pytest.raises(DTypeError):
                nf.result_type(DTYPES[a], DTYPES[b])
            assert not nf.can_cast(DTYPES[a], DTYPES[b])
            return
        assert nf.result_type(DTYPES[a], nf.constant(y)) == DTYPES[wanted]
        assert nf.can_cast(DTYPES[a], DTYPES[b]) == (wanted == b)
        made = [
            nf.constant(x) * nf.constant(y),
            nf.where(nf.constant(np.array([True, False, True])), x, nf.constant(y)),
            nf.concat([nf.constant(x), nf.reshape(nf.constant(y), (2,))]),
            nf.stack([nf.constant(x[:2]), nf.reshape(nf.constant(y), (2,))]),
        ]
        if wanted != "bool":
            made += [nf.constant(y) @ nf.constant(x[:1]), nf.vecdot(nf.constant(x), nf.constant(np.ones(3, y.dtype)))]
            made += [nf.einsum("i,ji->j", x, nf.broadcast_to(nf.constant(y), (2, 3)))]
        for tensor, value in zip(made, evaluate(made), strict=True):
            if tensor.node.op != "sum":  # a sum of small integers is a 64-bit one
                assert tensor.dtype == DTYPES[wanted], tensor
            assert value.dtype == tensor.dtype, tensor


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scalar", [True, 1, 0.5, 0.5j])
def test_python_scalars_are_weak(name: str, scalar: Any) -> None:
    fits = {bool: "b", int: "iufc", float: "fc", complex: "c"}[type(scalar)]
    dtype = DTYPES[name]
    with Graph().as_default():
        x = nf.constant(np.ones(2, dtype))
        if isinstance(scalar, complex) and name in ("float32", "float64"):
            made = x + scalar
            assert made.dtype == np.result_type(dtype, np.complex64)
        elif kind_of(dtype) in fits:
            made = [x == scalar, nf.where(nf.constant([True, False]), x, scalar)]
            made += [x * scalar, scalar * x] if scalar is not True else [x & scalar, scalar | x]
            for tensor, value in zip(made, evaluate(made), strict=True):
                assert tensor.dtype == value.dtype == (np.bool_ if tensor.node.op == "equal" else dtype)
        else:
            with pytest.raises(DTypeError, match="does not fit"):
                x * scalar


def test_a_scalar_outside_the_dtype_is_refused() -> None:
    with Graph().as_default():
        for x, scalar in ((np.int8(1), 128), (np.uint8(1), -1)):
            with pytest.raises(DTypeError, match="cannot make a tensor"):
                nf.constant(np.array([x])) + scalar
            with pytest.raises(DTypeError, match="does not fit"):
                nf.clip(nf.constant(np.array([x])), min=scalar)


# --- accumulation ----------------------------------------------------------------------------------------------------

halves = pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16)], ids=["bfloat16", "float16"])


@halves
def test_sums_of_16_bit_floats_are_made_in_float32(dtype: np.dtype[Any]) -> None:
    """In 16 bits, 1 added over and over stops at 256 (bfloat16) or 2048 (float16)."""
    n = 4096
    ones = np.ones((n, 2), dtype)
    with Graph().as_default():
        x = nf.constant(ones)
        made = {
            "sum": nf.sum(x, axis=0),
            "sum of float32": nf.sum(nf.constant(np.ones((n, 2), np.float32)), axis=0, dtype=dtype),
            "cumulative_sum": nf.cumulative_sum(x, axis=0)[-1],
            "cumulative_sum from 0": nf.cumulative_sum(x, axis=0, include_initial=True)[-1],
            "matmul": (x.T @ x)[0],
            "vecdot": nf.vecdot(x, x, axis=0),
            "einsum": nf.einsum("ij,ij->j", x, x),
            "scatter_add": nf.scatter_add(nf.zeros((1, 2), dtype=dtype), np.zeros(n, int), x)[0],
            "norm": nf.square(nf.linalg.vector_norm(x, axis=0)),
            "gradient of a broadcast": nf.gradients(nf.sum(nf.ones((2,), dtype=dtype) * x), [x])[0].sum(axis=0),
            "add_n": nf.add_n([nf.full((2,), 1, dtype=dtype)] * n),
        }
        for name, value in evaluate(made).items():
            assert value.dtype == dtype, name
            np.testing.assert_allclose(value.astype(float), [n, n], rtol=0.01, err_msg=name)
        means = {"mean": nf.mean(x, axis=0), "softmax": nf.sum(nf.nn.softmax(x, axis=0), axis=0)}
        means["layer_norm"] = nf.mean(nf.nn.layer_norm(x, axis=0), axis=0) + 1
        for name, value in evaluate(means).items():
            np.testing.assert_allclose(value.astype(float), [1, 1], rtol=0.01, err_msg=name)


@halves
def test_squares_of_16_bit_floats_do_not_overflow_inside(dtype: np.dtype[Any]) -> None:
    big = np.zeros(100, dtype)
    big[0] = 1000
    with Graph().as_default():
        x = nf.constant(big)
        *made, normal = evaluate([nf.var(x), nf.std(x), nf.linalg.vector_norm(x), nf.nn.layer_norm(x)])
    np.testing.assert_allclose(
        [float(v) for v in made],
        [np.var(big.astype(float)), np.std(big.astype(float)), 1000],
        rtol=0.01,
    )
    np.testing.assert_allclose(float(normal[0]), (1000 - 10) / np.std(big.astype(float)), rtol=0.01)


@halves
def test_the_gradient_of_a_mean_over_many(dtype: np.dtype[Any]) -> None:
    """70 000 is no float16, and 1 / 70 000 is one."""
    for shape in ((70_000,), (None,)):
        with Graph().as_default():
            x = nf.placeholder(dtype, shape)
            (grad,) = nf.gradients(nf.mean(x), [x])
            value = evaluate(grad, {x: np.zeros(70_000)})
        assert value.dtype == dtype
        np.testing.assert_allclose(value[0].astype(float), 1 / 70_000, rtol=0.02)


def test_ops_by_way_of_float32_are_ops() -> None:
    listed = (*half.PROMOTED, *half.LIKE_FIRST)
    assert set(listed) <= set(NumpyBackend().table)
    assert len(set(listed)) == len(listed)


def test_mixed_16_bit_floats_give_float32() -> None:
    with Graph().as_default():
        x, y = nf.constant(np.ones((2, 2), BFLOAT16)), nf.constant(np.ones((2, 2), np.float16))
        for made in (x @ y, x + y, nf.concat([x, y]), nf.einsum("ij,jk->ik", x, y), nf.isin(x, y), nf.tensordot(x, y)):
            assert evaluate(made).dtype == made.dtype
            assert made.dtype in (FLOAT32, np.dtype(bool))


# --- integers and booleans -------------------------------------------------------------------------------------------


def test_integers_wrap_around() -> None:
    """As in the array API and numpy: modulo 2**bits, without an error."""
    with Graph().as_default():
        small = nf.constant(np.array([127, -128], np.int8))
        made = [small + 1, -small, small * 2, nf.abs(small), -nf.constant(np.array([1, 0], np.uint8))]
        values = evaluate(made)
    wanted = [[-128, -127], [-127, -128], [-2, 0], [127, -128], [255, 0]]
    for value, right in zip(values, wanted, strict=True):
        np.testing.assert_array_equal(value, right)


@pytest.mark.parametrize("name", [n for n in NAMES if kind_of(DTYPES[n]) in "biu"])
def test_integers_are_added_as_64_bit_ones(name: str) -> None:
    wanted = np.dtype(np.uint64 if kind_of(DTYPES[name]) == "u" else np.int64)
    with Graph().as_default():
        x = nf.constant(np.ones(300, DTYPES[name]))
        made = [nf.sum(x), nf.prod(x), nf.cumulative_sum(x)[-1], nf.cumulative_prod(x)[-1]]
        values = evaluate(made)
    assert [v.dtype for v in values] == [wanted] * 4
    np.testing.assert_array_equal(values, [300, 1, 300, 1])


@pytest.mark.parametrize("name", [n for n in NAMES if kind_of(DTYPES[n]) in "biu"])
def test_functions_onto_the_reals_take_integers_as_float64(name: str) -> None:
    with Graph().as_default():
        x = nf.constant(np.ones(2, DTYPES[name]))
        for function in (nf.exp, nf.log1p, nf.sqrt, nf.rsqrt, nf.reciprocal, nf.tanh, nf.erf):
            if name == "bool":
                with pytest.raises(DTypeError, match="bool"):
                    function(x)
            else:
                assert evaluate(function(x)).dtype == function(x).dtype == np.float64
        if name != "bool":
            assert evaluate(x / x).dtype == evaluate(nf.hypot(x, x)).dtype == np.float64


def test_dropping_imaginary_parts_is_refused() -> None:
    with Graph().as_default():
        x = nf.constant(np.ones(2, np.complex64))
        for function in (nf.sum, nf.prod, nf.cumulative_sum, nf.cumulative_prod):
            with pytest.raises(DTypeError, match="imaginary"):
                function(x, dtype="float32")
        with pytest.raises(DTypeError, match="imaginary"):
            nf.astype(x, "float32")
        with pytest.raises(DTypeError):
            nf.erf(x)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in NAMES if kind_of(DTYPES[n]) in "fc"])
def test_finfo(name: str) -> None:
    found = nf.finfo(DTYPES[name])
    real = DTYPES[name] if kind_of(DTYPES[name]) == "f" else np.dtype(f"f{DTYPES[name].itemsize // 2}")
    assert (found.dtype, found.bits, found.min) == (real, real.itemsize * 8, -found.max)
    one = np.ones((), real)
    assert float(one + real.type(found.eps)) > 1
    assert float((one + real.type(found.eps / 2)).astype(real)) == 1
    with np.errstate(over="ignore"):
        assert np.isinf(real.type(found.max) * real.type(2))
    assert float(real.type(found.smallest_normal)) == found.smallest_normal
    with pytest.raises(DTypeError, match="finfo"):
        nf.iinfo(DTYPES[name])


@halves
def test_is_half(dtype: np.dtype[Any]) -> None:
    assert is_half(dtype)
    assert not any(is_half(DTYPES[n]) for n in NAMES if n not in ("bfloat16", "float16"))


# --- training --------------------------------------------------------------------------------------------------------


def moons(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in two classes that no line separates."""
    random = np.random.default_rng(0)
    angle = random.uniform(0, np.pi, count)
    labels = np.arange(count) % 2
    sign = np.where(labels, -1, 1)
    points = np.stack([sign * np.cos(angle) + labels, sign * np.sin(angle) + labels * 0.5], axis=1)
    return points + random.normal(0, 0.1, points.shape), labels


@halves
@pytest.mark.parametrize("rule", ["SGD", "Adam"])
def test_an_mlp_trains_in_16_bits(dtype: np.dtype[Any], rule: str) -> None:
    """All in 16 bits: weights, slots, gradients. float16 with loss scaling, whose range is that of small gradients."""
    points, labels = moons(128)
    random = np.random.default_rng(1)
    with Graph().as_default():
        x = nf.constant(points.astype(dtype))
        first = nf.Variable(nf.constant((random.normal(size=(2, 16)) * 0.7).astype(dtype)), name="first")
        second = nf.Variable(nf.constant((random.normal(size=(16, 2)) * 0.3).astype(dtype)), name="second")
        logits = nf.nn.relu(x @ first) @ second
        loss = nf.mean(nf.nn.softmax_cross_entropy(logits, labels))
        assert loss.dtype == dtype
        optimizer: Any = nf.optim.SGD(0.5, momentum=0.9) if rule == "SGD" else nf.optim.Adam(0.02)
        scale = nf.optim.DynamicLossScale(2.0**10) if dtype == np.float16 else None
        step = optimizer.minimize(loss, loss_scale=scale)
        with nf.Session() as session:
            losses = [float(session.run([step, loss])[1]) for _ in range(60)]
            assert session.run(first).dtype == dtype
    assert losses[-1] < 0.5 * losses[0], losses
    assert all(np.isfinite(losses))


# --- from the feed to the fetch --------------------------------------------------------------------------------------


@halves
def test_16_bit_floats_pass_through_the_pipeline(dtype: np.dtype[Any]) -> None:
    """Feeds, variables, datasets, plans, checks, digests and what is shown: all know the dtype by its name."""
    with Graph().as_default() as graph:
        x = nf.placeholder(dtype, (None, 2), name="x")
        w = nf.Variable(nf.constant(np.full((2, 3), 0.5), dtype=dtype), name="w")
        y = nf.clip(x @ w, -2.0, 2.0)
        batch = nf.data.from_arrays({"a": np.arange(8).reshape(4, 2).astype(dtype)}).batch(2).next()["a"]
        assert nf.graph_json(graph)["nodes"][0]["outputs"] == [{"shape": [None, 2], "dtype": dtype.name}]
        assert f"{dtype.name}[?,3]" in repr(y)
        assert Graph.from_proto(graph.to_proto()).digest() == graph.digest()
        with nf.Session() as session:
            for fed in (np.ones((3, 2), dtype), np.ones((3, 2), np.float32), [[1, 1]] * 3):
                value = session.run(y, {x: fed}, check_numerics=True)
                assert value.dtype == dtype
                np.testing.assert_array_equal(value.astype(float), np.ones((3, 3)))
            assert session.run(batch).dtype == dtype
            with pytest.raises(DTypeError, match="complex64"):
                session.run(y, {x: np.ones((3, 2), np.complex64)})
            with pytest.raises(NbflowError, match=r"inf|Inf|finite"):
                session.run(y / 0, {x: np.ones((3, 2))}, check_numerics=True)
