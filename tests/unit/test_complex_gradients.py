"""Gradients for complex numbers: the convention, and the rules against central differences in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import ShapeError
from nbflow.graph import Graph
from nbflow.testing import Evaluator, check_gradients, evaluate

A = np.ndarray[Any, Any]


def c(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> A:
    rng = np.random.default_rng([seed, *shape])
    return rng.uniform(low, high, shape) + 1j * rng.uniform(low, high, shape)


def r(*shape: int, seed: int = 0, low: float = 0.2, high: float = 2.0) -> A:
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape)


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made


# --- the convention --------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_square_is_twice_the_number(graph: Graph) -> None:
    """As PyTorch and TensorFlow have it; JAX gives the conjugate."""
    z = nf.placeholder("complex128", (2,), name="z")
    at = np.array([3 + 4j, -1j])
    for loss in (nf.sum(nf.abs(z) ** 2.0), nf.sum(nf.real(z * nf.conj(z)))):
        (grad,) = nf.gradients(loss, [z])
        np.testing.assert_allclose(evaluate(grad, {z: at}), 2 * at)
    (grad,) = nf.gradients(nf.sum(z * z), [z])  # of the real part; a holomorphic f gives conj(f')
    np.testing.assert_allclose(evaluate(grad, {z: at}), 2 * at.conj())
    (grad,) = nf.gradients(z * z, [z], grad_ys=[np.array([1j, 1.0])])
    np.testing.assert_allclose(evaluate(grad, {z: at}), 2 * at.conj() * [1j, 1])


def test_against_the_gradient_descends(graph: Graph) -> None:
    z = nf.Variable(np.array([1 + 2j, -3j]), name="z")
    wanted = np.array([0.5 - 1j, 2.0])
    loss = nf.sum(nf.abs(nf.exp(z * 0.3) - wanted) ** 2.0)
    (grad,) = nf.gradients(loss, [z])
    moved = z.assign_sub(grad * 1.0)
    runner = Evaluator()
    before = runner.run(loss)
    for _ in range(100):
        runner.run(moved)
    assert runner.run(loss) < 1e-6 * before


def test_real_inputs_have_real_gradients(graph: Graph) -> None:
    x = nf.placeholder("float32", (3,), name="x")
    z = nf.placeholder("complex64", (3,), name="z")
    for y in (x * z, nf.astype(x, "complex64") + z, nf.where(x > 0, x, z), nf.fft.fft(x) * z, z**x):
        grads = nf.gradients(y, [x, z])
        assert [g.dtype for g in grads if g is not None] == [np.float32, np.complex64]


def test_operands_of_different_precision(graph: Graph) -> None:
    x, y = nf.placeholder("float32", (3,), name="x"), nf.placeholder("float64", (3,), name="y")
    wide = nf.eye(3, dtype="float64")
    made = [x * y, x / y, x**y, nf.where(x > 0, x, y), x[None] @ y[:, None], nf.maximum(x, y), nf.linalg.solve(wide, x)]
    made += [nf.hypot(x, y), nf.einsum("i,i->i", x, y), nf.sum(x, dtype="float64") * y, wide @ x]
    for value in made:
        for source, grad in zip((x, y), nf.gradients(value, [x, y]), strict=True):
            assert grad is None or grad.dtype == source.dtype


# --- the rules -------------------------------------------------------------------------------------------------------

RULES: dict[str, tuple[Callable[..., Any], tuple[A, ...]]] = {
    "add": (lambda x, y: x + y * 2j, (c(2, 3), c(3))),
    "subtract": (lambda x, y: x - y, (c(2, 3), r(3))),
    "multiply": (lambda x, y: x * y, (c(2, 3), c(3))),
    "multiply by real": (lambda x, y: x * y, (c(2, 3), r(3))),
    "divide": (lambda x, y: x / y, (c(2, 3), c(3, low=0.5))),
    "divide real": (lambda x, y: x / y, (r(2, 3), c(3, low=0.5))),
    "negative": (lambda x: -x, (c(3),)),
    "square": (nf.square, (c(3),)),
    "sqrt": (nf.sqrt, (c(3, low=0.3),)),
    "rsqrt": (nf.rsqrt, (c(3, low=0.3),)),
    "reciprocal": (nf.reciprocal, (c(3, low=0.3),)),
    "pow": (lambda x, y: x**y, (c(3, low=0.3), c(3, seed=1))),
    "pow of real": (lambda x, y: x**y, (r(3), c(3, seed=1))),
    "pow of negative": (lambda x, y: x**y, (-r(3), c(3, seed=1))),
    "exp": (nf.exp, (c(3),)),
    "expm1": (nf.expm1, (c(3),)),
    "log": (nf.log, (c(3, low=0.3),)),
    "log1p": (nf.log1p, (c(3, low=0.3),)),
    "log2": (nf.log2, (c(3, low=0.3),)),
    "log10": (nf.log10, (c(3, low=0.3),)),
    "sin": (nf.sin, (c(3),)),
    "cos": (nf.cos, (c(3),)),
    "tan": (nf.tan, (c(3, high=1.0),)),
    "sinh": (nf.sinh, (c(3),)),
    "cosh": (nf.cosh, (c(3),)),
    "tanh": (nf.tanh, (c(3, low=0.1, high=1.0),)),
    "asin": (nf.asin, (c(3, low=0.1, high=0.8),)),
    "acos": (nf.acos, (c(3, low=0.1, high=0.8),)),
    "atan": (nf.atan, (c(3, low=0.1, high=0.8),)),
    "asinh": (nf.asinh, (c(3, low=0.1, high=0.8),)),
    "acosh": (nf.acosh, (c(3, low=1.2),)),
    "atanh": (nf.atanh, (c(3, low=0.1, high=0.8),)),
    "abs": (nf.abs, (c(3),)),
    "sign": (nf.sign, (c(3),)),
    "angle": (nf.angle, (c(4),)),
    "real": (lambda x: nf.real(x) ** 2.0, (c(3),)),
    "imag": (lambda x: nf.imag(x) ** 2.0, (c(3),)),
    "conj": (lambda x: nf.conj(x) * x * x, (c(3),)),
    "where": (lambda x, y: nf.where(nf.constant([True, False, True]), x * x, y * y), (c(3), c(3, seed=1))),
    "astype": (lambda x: nf.astype(x, "complex128") * (1 + 2j), (r(3),)),
    "sum": (lambda x: nf.sum(x * x, axis=0), (c(2, 3),)),
    "mean": (lambda x: nf.mean(x * x, axis=1, keepdims=True), (c(2, 3),)),
    "prod": (lambda x: nf.prod(x, axis=1), (c(2, 3),)),
    "cumulative_sum": (lambda x: nf.cumulative_sum(x * x, axis=1), (c(2, 3),)),
    "cumulative_prod": (lambda x: nf.cumulative_prod(x, axis=1), (c(2, 3),)),
    "weighted_sum": (lambda x, y, w: nf.weighted_sum([x, y], [w, 2.0]), (c(3), c(3, seed=1), r())),
    "matmul": (lambda x, y: x @ y, (c(2, 3), c(3, 2))),
    "matmul batched with real": (lambda x, y: nf.matmul(x, y, transpose_b=True), (c(4, 2, 3), r(2, 3))),
    "vecdot": (nf.vecdot, (c(2, 3), c(2, 3, seed=1))),
    "einsum": (lambda x, y: nf.einsum("ij,kj->ik", x, y), (c(2, 3), c(2, 3, seed=1))),
    "take": (lambda x: nf.take(x, [1, 1, 0], axis=0) ** 2.0, (c(2, 3),)),
    "concat": (lambda x, y: nf.concat([x * x, y]), (c(2, 3), c(1, 3))),
    "vector_norm": (lambda x: nf.linalg.vector_norm(x, axis=-1), (c(2, 3),)),
    "vector_norm 3": (lambda x: nf.linalg.vector_norm(x, ord=3), (c(2, 3),)),
    "inv": (nf.linalg.inv, (c(2, 3, 3),)),
    "det": (nf.linalg.det, (c(2, 3, 3),)),
    "slogdet": (nf.linalg.slogdet, (c(2, 3, 3),)),
    "solve": (nf.linalg.solve, (c(3, 3), c(3, 2))),
    "solve real": (nf.linalg.solve, (r(3, 3), c(3, 2))),
    "matrix_power": (lambda x: nf.linalg.matrix_power(x, 3), (c(3, 3),)),
    "pinv tall": (nf.linalg.pinv, (c(4, 2),)),
    "pinv wide": (nf.linalg.pinv, (c(2, 4),)),
    "cholesky": (lambda x: nf.linalg.cholesky(_positive(x)), (c(3, 3),)),
    "eigh values": (lambda x: nf.linalg.eigvalsh(_hermitian(x)), (c(3, 3),)),
    "eigh projectors": (lambda x: _projectors(nf.linalg.eigh(_hermitian(x)).eigenvectors), (c(3, 3),)),
    "svd values": (nf.linalg.svdvals, (c(3, 2),)),
    "svd left": (lambda x: _projectors(nf.linalg.svd(x, full_matrices=False).U), (c(3, 2),)),
    "svd right": (lambda x: _projectors(_adjoint(nf.linalg.svd(x, full_matrices=False).Vh)), (c(2, 3),)),
    "svd both": (lambda x: _middle(nf.linalg.svd(x, full_matrices=False)), (c(3, 2),)),
    "qr": (nf.linalg.qr, (c(4, 3),)),
    "qr wide": (nf.linalg.qr, (c(2, 3),)),
}


def _adjoint(x: Any) -> Any:
    return nf.conj(nf.matrix_transpose(x))


def _hermitian(x: Any) -> Any:
    return x + _adjoint(x)


def _positive(x: Any) -> Any:
    return x @ _adjoint(x) + nf.eye(3, dtype="complex128") * 2.0


def _projectors(vectors: Any) -> Any:
    """Of each vector v the matrix v v^H, which does not see its phase."""
    return vectors[..., :, None, :] * nf.conj(vectors)[..., None, :, :]


def _middle(found: Any) -> Any:
    """U V^H, in which the phases of U and V cancel."""
    return found.U @ found.Vh


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str) -> None:
    function, arrays = RULES[name]
    check_gradients(function, *arrays, rtol=2e-5, atol=1e-6)


TRANSFORMS = [
    (name, real, sizes, axes, norm)
    for name, real in (("fftn", False), ("fftn", True), ("ifftn", False), ("rfftn", True), ("irfftn", False))
    for sizes, axes, norm in (
        (None, None, "backward"),
        (None, (0,), "ortho"),
        ((5,), (1,), "forward"),
        ((2, 6), None, "backward"),
        ((3, 3), (1, 0), "ortho"),
    )
]


@pytest.mark.parametrize(("name", "real", "sizes", "axes", "norm"), TRANSFORMS)
def test_fourier_transforms(name: str, real: bool, sizes: Any, axes: Any, norm: str) -> None:
    function = getattr(nf.fft, name)
    x = r(3, 4, low=-2.0) if real else c(3, 4)
    check_gradients(lambda x: function(x, s=sizes, axes=axes, norm=norm), x, directions=3)
    check_gradients(lambda x: function(x * x, s=sizes, axes=axes, norm=norm), x)


@pytest.mark.parametrize("n", [None, 3, 4, 7, 8])
def test_transforms_of_one_dimension(n: int | None) -> None:
    for name, x in (("fft", c(5)), ("ifft", c(5)), ("rfft", r(5)), ("irfft", c(5)), ("hfft", c(5)), ("ihfft", r(5))):
        function = getattr(nf.fft, name)
        check_gradients(lambda x, f=function: f(x, n=n), x)


def test_transforms_of_unknown_shapes(graph: Graph) -> None:
    x = nf.placeholder("complex128", (None, None), name="x")
    (grad,) = nf.gradients(nf.fft.fftn(x), [x], grad_ys=[nf.fft.fftn(x)])
    at = c(3, 4)
    np.testing.assert_allclose(evaluate(grad, {x: at}), 12 * at)
    y = nf.placeholder("float64", (None,), name="y")
    with pytest.raises(ShapeError, match="needs to know dimension 0"):
        nf.gradients(nf.fft.rfft(y), [y])


def test_the_checker_finds_a_wrong_conjugate() -> None:
    """Both ways, and along directions: a rule that forgets to conjugate is right for real numbers only."""

    def wrong(x: nf.Tensor) -> nf.Tensor:
        return nf.stop_gradient(x * x - nf.conj(x) * nf.conj(x)) + nf.conj(x) * nf.conj(x)

    check_gradients(lambda x: x * x, c(3), order=1)
    for directions in (0, 2):
        with pytest.raises(AssertionError, match="derivative 1 for input 0"):
            check_gradients(wrong, c(3), order=1, directions=directions)


def test_zeros_and_infinities_of_complex_numbers(graph: Graph) -> None:
    z = nf.placeholder("complex128", (2,), name="z")
    at = np.array([0j, 1 + 1j])
    for y in (nf.abs(z), nf.angle(z), nf.abs(nf.sign(z)), z**2.0, z**0.0, nf.where(nf.abs(z) > 0, nf.log(z), 0)):
        (grad,) = nf.gradients(y, [z])
        assert np.isfinite(evaluate(grad, {z: at})).all(), y.node.op
