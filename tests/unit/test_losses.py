"""CTC against all alignments one by one; what losses refuse."""

from __future__ import annotations

from itertools import groupby, product
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph
from nbflow.testing import Evaluator, check_gradients, evaluate

A = np.ndarray[Any, Any]
RNG = np.random.default_rng(3)


def brute(logits: A, labels: list[int], blank: int) -> float:
    """-log Σ over all paths that spell the labels, for one example (time, classes)."""
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    total = 0.0
    for path in product(range(logits.shape[1]), repeat=logits.shape[0]):
        if [c for c, _ in groupby(path) if c != blank] == labels:
            total += float(np.prod([p[t, c] for t, c in enumerate(path)]))
    return -np.log(total) if total else np.inf


@pytest.mark.parametrize("blank", [0, 2])
def test_ctc_is_the_sum_over_all_alignments(blank: int) -> None:
    logits = RNG.normal(size=(5, 5, 3)) * 2
    one, other = [c for c in range(3) if c != blank]
    labels = np.array([[one, other, one], [one, one, one], [other, 99, 99], [blank, -5, 7], [one, one, other]])
    steps, lengths = np.array([5, 5, 3, 4, 3]), np.array([3, 3, 1, 0, 3])
    expected = [brute(x[:s], list(y[:n]), blank) for x, s, y, n in zip(logits, steps, labels, lengths, strict=True)]
    assert np.isinf(expected[4])  # three steps have no room for the blank between equal labels
    with Graph().as_default():
        np.testing.assert_allclose(evaluate(nf.nn.ctc_loss(logits, labels, steps, lengths, blank)), expected)
        zeroed = evaluate(nf.nn.ctc_loss(logits, labels, steps, lengths, blank, zero_infinity=True))
        np.testing.assert_allclose(zeroed, [*expected[:4], 0])
        half = nf.nn.ctc_loss(logits.astype(np.float16), labels, steps, lengths, blank)
        assert half.dtype == np.float16
        np.testing.assert_allclose(evaluate(half), expected, rtol=2e-3)
        whole = [brute(x, list(y), blank) for x, y in zip(logits[:2], labels[:2], strict=True)]
        made = nf.nn.ctc_loss(logits[:2], labels[:2], blank=blank, reduction="sum")
        np.testing.assert_allclose(evaluate(made), sum(whole))


def test_gradients_of_ctc() -> None:
    logits, labels = RNG.normal(size=(2, 4, 3)), np.array([[1, 1], [2, 9]])
    check_gradients(lambda x: nf.nn.ctc_loss(x, labels, [4, 3], [2, 1]), logits)
    with Graph().as_default():
        x = nf.constant(RNG.normal(size=(2, 3, 2)))
        losses = nf.nn.ctc_loss(x, np.array([[1, 1], [1, 0]]), label_lengths=[2, 1])
        (grad,) = nf.gradients(losses, [x])
        impossible = nf.nn.ctc_loss(x[:, :2], np.array([[1, 1]] * 2))
        (none,) = nf.gradients(impossible, [x])
        found, lost, nothing = evaluate([grad, impossible, none])
        # Softmax takes out what all classes have in common.
        np.testing.assert_allclose(found.sum(-1), np.zeros((2, 3)), atol=1e-12)
        assert np.isinf(lost).all()
        np.testing.assert_array_equal(nothing, np.zeros((2, 3, 2)))


def test_ctc_with_sizes_of_the_run() -> None:
    logits, labels = RNG.normal(size=(2, 4, 3)), np.array([[1, 2], [2, 0]])
    with Graph().as_default():
        x, y, n = nf.placeholder("float64", None), nf.placeholder("int32", None), nf.placeholder("int32", None)
        losses = nf.nn.ctc_loss(x, y, label_lengths=n)
        (grad,) = nf.gradients(losses, [x])
        found, slope = Evaluator().run([losses, grad], {x: logits, y: labels, n: [2, 1]})
        np.testing.assert_allclose(found, [brute(logits[0], [1, 2], 0), brute(logits[1], [2], 0)])
        assert slope.shape == logits.shape


def test_a_long_sequence_does_not_underflow() -> None:
    logits = RNG.normal(size=(1, 400, 5)).astype(np.float32)
    labels = RNG.integers(1, 5, (1, 60))
    with Graph().as_default():
        x = nf.constant(logits)
        loss = nf.nn.ctc_loss(x, labels)
        double = nf.nn.ctc_loss(logits.astype(np.float64), labels)
        value, exact, slope = evaluate([loss, double, nf.gradients(loss, [x])[0]])
        np.testing.assert_allclose(value, exact, rtol=1e-4)
        assert np.isfinite(slope).all()


def test_what_losses_refuse() -> None:
    with Graph().as_default():
        x, y = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)
        with pytest.raises(GraphError, match="'none', 'mean' or 'sum'"):
            nf.nn.mean_squared_error(x, x, reduction="average")
        with pytest.raises(GraphError, match="label_smoothing"):
            nf.nn.softmax_cross_entropy(x, y, 1.0)
        with pytest.raises(ShapeError, match=r"\(2, 3\) and \(3, 2\) differ"):
            nf.nn.gaussian_nll(x, x.T, x)
        with pytest.raises(DTypeError, match="class ids are integers"):
            nf.nn.negative_log_likelihood(x, x[:, 0])
        with pytest.raises(ShapeError, match=r"logits .* and labels"):
            nf.nn.ctc_loss(x, x.astype(int))
        with pytest.raises(ShapeError, match="equally many"):
            nf.nn.ctc_loss(np.zeros((3, 4, 2), np.float32), np.zeros((2, 2), int))
        with pytest.raises(GraphError, match="blank"):
            nf.nn.ctc_loss(np.zeros((3, 4, 2), np.float32), np.zeros((3, 2), int), blank=2)
        with pytest.raises(ShapeError, match="one number for each"):
            nf.nn.ctc_loss(np.zeros((3, 4, 2), np.float32), np.zeros((3, 2), int), [4, 4])
