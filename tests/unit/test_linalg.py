"""What the case tables cannot say of linear algebra, indexing and einsum: errors, random keys, identities, dtypes."""

from __future__ import annotations

from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbflow as nf
from nbflow.errors import DTypeError, GraphError, NbflowError, OpError, ShapeError
from nbflow.graph import Graph
from nbflow.testing import Evaluator

BAD: dict[str, Any] = {
    "inverse of a rectangle": nf.linalg.inv,
    "cholesky of a vector": lambda x: nf.linalg.cholesky(x[0]),
    "integers": lambda x: nf.linalg.det(nf.astype(x[:, :2], "int64")),
    "half precision": lambda x: nf.linalg.svd(nf.astype(x, "float16")),
    "right side of another length": lambda x: nf.linalg.solve(x[:, :2], nf.zeros((3, 1))),
    "mode of qr": lambda x: nf.linalg.qr(x, mode="raw"),
    "power of a rectangle": lambda x: nf.linalg.matrix_power(x, 2),
    "power of 1.5": lambda x: nf.linalg.matrix_power(x[:, :2], 1.5),
    "name of a norm": lambda x: nf.linalg.matrix_norm(x, ord="max"),
    "norm of integers": lambda x: nf.linalg.vector_norm(nf.astype(x, "int64")),
    "cross of pairs": lambda x: nf.linalg.cross(x, x, axis=0),
    "diagonal of a vector": lambda x: nf.linalg.diagonal(x[0]),
    "transform of integers": lambda x: nf.fft.fft(nf.astype(x, "int64")),
    "real transform of complex": lambda x: nf.fft.rfft(nf.astype(x, "complex64")),
    "norm of a transform": lambda x: nf.fft.fft(x, norm="half"),
    "no points": lambda x: nf.fft.fft(x, n=0),
    "einsum, operands": lambda x: nf.einsum("ij,jk->ik", x),
    "einsum, letters": lambda x: nf.einsum("i->i", x),
    "einsum, lengths": lambda x: nf.einsum("ij,jk->ik", x, x),
    "einsum, result": lambda x: nf.einsum("ij->ik", x),
    "einsum, twice": lambda x: nf.einsum("ij->ii", x),
    "einsum, digits": lambda x: nf.einsum("i1->i", x),
    "nonzero of a scalar": lambda x: nf.nonzero(nf.sum(x)),
    "side": lambda x: nf.searchsorted(x[0], x, side="middle"),
    "search in a matrix": lambda x: nf.searchsorted(x, x),
    "grid of matrices": lambda x: nf.meshgrid(x, x),
    "too many index tensors": lambda x: x[[0], [0], [0]],
    "real of booleans": lambda x: nf.real(x > 0),
    "result_type": lambda x: nf.result_type(x, "int64"),
    "finfo of integers": lambda x: nf.finfo("int8"),
}


@pytest.mark.parametrize("build", BAD.values(), ids=BAD.keys())
def test_bad_calls_say_what_is_wrong(build: Any) -> None:
    with Graph().as_default():
        x = nf.placeholder("float32", (2, 3))
        with pytest.raises(NbflowError) as caught:
            build(x)
        assert isinstance(caught.value, (ShapeError, DTypeError, GraphError))
        assert len(str(caught.value)) > 20


def test_gradients_that_do_not_exist_say_so() -> None:
    with Graph().as_default():
        x = nf.placeholder("float64", (3, 2))
        with pytest.raises(GraphError, match="full_matrices=False"):
            nf.gradients(nf.linalg.svd(x).U, x)
        with pytest.raises(GraphError, match="mode='reduced'"):
            nf.gradients(nf.linalg.qr(x, mode="complete").Q, x)
        unknown = nf.placeholder("float64", (None, 2), name="unknown")
        with pytest.raises(GraphError, match="known size"):
            nf.gradients(nf.linalg.qr(unknown).R, unknown)


@pytest.mark.parametrize("build", [nf.linalg.inv, nf.linalg.cholesky, lambda x: nf.linalg.solve(x, x)])
def test_singular_matrices_are_errors_of_the_op(build: Any) -> None:
    with Graph().as_default(), pytest.raises(OpError, match="LinAlgError"):
        nf.run(build(nf.constant(np.zeros((2, 2)))))


def test_a_mask_of_another_length_is_an_error_of_the_run() -> None:
    with Graph().as_default():
        x, mask = nf.placeholder("float64", (None, 2)), nf.placeholder("bool", (None,))
        with pytest.raises(OpError, match=r"mask of \(2,\) does not fit"):
            nf.run(x[mask], {x: np.ones((3, 2)), mask: [True, False]})


def test_dtypes_answer_while_the_graph_is_built() -> None:
    assert nf.result_type("int8", np.zeros(1, "int16"), nf.constant([1], "int32")) == np.int32
    assert nf.can_cast("int8", "int16")
    assert not nf.can_cast("int16", "int8")
    assert not nf.can_cast("int8", "float32")
    assert nf.isdtype("uint8", ("bool", "integral"))
    assert not nf.isdtype("float32", "complex floating")
    assert nf.finfo(nf.constant([1.0])).bits == 32
    assert nf.iinfo("uint8").max == 255


SHAPE = (3, 4, 2)


@st.composite
def keys(draw: st.DrawFn) -> tuple[Any, ...]:
    """Index tuples for SHAPE that mix ints, slices, None, '...', index arrays and masks."""
    rank, used, key, ellipsis = len(SHAPE), 0, [], False
    while used < rank and draw(st.integers(0, 5)):
        kind = draw(st.sampled_from(["int", "slice", "none", "ellipsis", "array", "mask"]))
        size = SHAPE[used] if not ellipsis else min(SHAPE)
        if kind == "none":
            key.append(None)
            continue
        if kind == "ellipsis":
            if not ellipsis:
                key.append(...)
            ellipsis = True
            continue
        if kind == "mask":
            if ellipsis:  # where it stands is not known here
                continue
            key.append(np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size))))
        elif kind == "int":
            key.append(draw(st.integers(-size, size - 1)))
        elif kind == "slice":
            key.append(
                slice(draw(st.integers(-2, 2)), draw(st.none() | st.integers(0, 3)), draw(st.sampled_from([1, 2])))
            )
        else:
            shape = draw(st.sampled_from([(), (2,), (2, 2), (1,)]))
            values = draw(st.lists(st.integers(-size, size - 1), min_size=4, max_size=4))
            key.append(np.resize(np.array(values), shape))
        used += 1
    return tuple(key)


@settings(deadline=None, max_examples=150)
@given(keys())
def test_any_key_picks_what_numpy_picks(key: tuple[Any, ...]) -> None:
    array = np.arange(24.0).reshape(SHAPE)
    try:
        wanted = array[key]
    except IndexError:
        return  # indices that do not broadcast together are errors of both; see the cases above
    with Graph().as_default():
        x = nf.placeholder("float64", SHAPE)
        y = nf.placeholder("float64", (None,) * 3, name="y")
        feeds = {x: array, y: array}
        for tensor in (x, y):
            picked = tensor[key]
            value, back = Evaluator().run([picked, nf.gradients(nf.sum(picked * picked), tensor)[0]], feeds)
            np.testing.assert_array_equal(value, wanted)
            counts = np.zeros(SHAPE)
            np.add.at(counts, key, 1.0)
            np.testing.assert_array_equal(back, 2 * array * counts)


_SYMMETRIC = np.array([[4.0, 0.5, -0.3], [0.5, 2.0, 0.2], [-0.3, 0.2, 1.0]])
_WEIGHTS = np.arange(1.0, 10.0).reshape(3, 3) / 5


@pytest.mark.parametrize(
    ("mine", "theirs", "symmetric"),
    [
        (nf.linalg.inv, anp.linalg.inv, False),
        (nf.linalg.cholesky, anp.linalg.cholesky, True),
        (lambda x: nf.linalg.eigh(x)[1], lambda x: anp.linalg.eigh(x)[1], True),
        (lambda x: nf.linalg.svd(x + 1)[0], lambda x: anp.linalg.svd(x + 1, full_matrices=False)[0], False),
        (lambda x: nf.einsum("ij,jk,il->kl", x, x, x), lambda x: anp.einsum("ij,jk,il->kl", x, x, x), False),
    ],
    ids=["inv", "cholesky", "eigh", "svd", "einsum"],
)
def test_gradients_agree_with_autograd(mine: Any, theirs: Any, symmetric: bool) -> None:
    """Rules written by others; ours for symmetric matrices are symmetric, theirs need not be."""
    wanted = autograd.grad(lambda x: anp.sum(theirs(x) * _WEIGHTS))(_SYMMETRIC)
    with Graph().as_default():
        x = nf.placeholder("float64", (3, 3))
        found = Evaluator().run(nf.gradients(nf.sum(mine(x) * _WEIGHTS), x), {x: _SYMMETRIC})[0]
    np.testing.assert_allclose(found, (wanted + wanted.T) / 2 if symmetric else wanted, rtol=1e-10, atol=1e-12)
