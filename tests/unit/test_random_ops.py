"""Random ops: the same bits for the same seed, name and step; other bits otherwise; the right distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbflow import random
from nbflow.backends.base import Context
from nbflow.backends.numpy.random import stream_key, uniforms, words
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph
from nbflow.ops import placeholder, shape_of
from nbflow.state import StateStore
from nbflow.testing import Evaluator, evaluate


def context(seed: int = 0, key: str = "r:0", step: int = 1) -> Context:
    return Context(key, seed, step, StateStore(), lambda: None)


def test_bits_depend_on_seed_name_and_step_only() -> None:
    base = words(context(), 100)
    np.testing.assert_array_equal(base, words(context(), 100))
    np.testing.assert_array_equal(base[:7], words(context(), 7))
    np.testing.assert_array_equal(base, words(context(key="r:3"), 100))  # a later generation of the same op
    for other in (context(seed=1), context(key="s:0"), context(step=2)):
        assert not np.intersect1d(base, words(other, 100)).size


def test_words_are_philox_4x64_10() -> None:
    """Against the algorithm written out: Salmon et al., SC 2011, section 4.3."""
    mask = 2**64 - 1
    k0, k1 = (int(k) for k in stream_key(5, "r"))
    c = [1, 0, 9, 0]  # numpy adds one before the first block
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(p1 >> 64) ^ c[1] ^ k0, p1 & mask, (p0 >> 64) ^ c[3] ^ k1, p0 & mask]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    np.testing.assert_array_equal(words(context(seed=5, step=9), 4), np.array(c, np.uint64))


def test_uniforms_are_the_top_bits() -> None:
    raw = words(context(), 3)
    np.testing.assert_array_equal(uniforms(context(), 3, np.dtype("f8")), (raw >> 11) * 2.0**-53)
    low, high = int(raw[0]) & 0xFFFFFFFF, int(raw[0]) >> 32
    expected = np.array([low >> 8, high >> 8], np.float32) * np.float32(2**-24)
    np.testing.assert_array_equal(uniforms(context(), 5, np.dtype("f4"))[:2], expected)


def draw(make: Any, **options: Any) -> np.ndarray[Any, Any]:
    with Graph().as_default():
        tensor = make(**options)
        value: np.ndarray[Any, Any] = evaluate(tensor)
        assert value.dtype == tensor.dtype
        assert value.shape == tensor.shape
        return value


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distributions(dtype: str) -> None:
    n = 200_000
    normal = draw(random.normal, shape=(n,), mean=2.0, stddev=3.0, dtype=dtype)
    assert abs(normal.mean() - 2) < 0.05
    assert abs(normal.std() - 3) < 0.05
    assert abs(np.mean(((normal - 2) / 3) ** 3)) < 0.05
    assert abs(np.mean(((normal - 2) / 3) ** 4) - 3) < 0.1
    flat = draw(random.uniform, shape=(n,), minval=-1.0, maxval=3.0, dtype=dtype)
    assert flat.min() >= -1
    assert flat.max() < 3
    assert abs(flat.mean() - 1) < 0.02
    assert abs(flat.var() - 16 / 12) < 0.02
    cut = draw(random.truncated_normal, shape=(n,), mean=1.0, stddev=0.5, dtype=dtype)
    assert np.abs(cut - 1).max() <= 1.0 + 1e-6
    assert abs(cut.std() - 0.5 * 0.8796) < 0.01  # the standard deviation of a normal cut at 2
    coins = draw(random.bernoulli, shape=(n,), p=0.3, dtype=dtype)
    assert set(np.unique(coins)) == {0, 1}
    assert abs(coins.mean() - 0.3) < 0.01


def test_randint_covers_its_range() -> None:
    values = draw(random.randint, shape=(10_000,), low=-3, high=4)
    np.testing.assert_array_equal(np.unique(values), np.arange(-3, 4))
    assert np.abs(np.bincount(values + 3) - 10_000 / 7).max() < 200
    wide = draw(random.randint, shape=(1000,), low=-(2**63), high=2**63)
    assert wide.min() < -(2**61)
    assert wide.max() > 2**61


def test_permutation() -> None:
    np.testing.assert_array_equal(np.sort(draw(lambda: random.permutation(50))), np.arange(50))
    rows = draw(lambda: random.permutation(np.arange(20).reshape(10, 2)))
    np.testing.assert_array_equal(np.sort(rows[:, 0]), np.arange(0, 20, 2))
    np.testing.assert_array_equal(rows[:, 1], rows[:, 0] + 1)
    assert draw(lambda: random.permutation(0)).shape == (0,)


def test_steps_differ_and_ops_differ() -> None:
    with Graph().as_default():
        first, second = random.normal((4,)), random.normal((4,))
        runner = Evaluator()
        one, two = runner.run([first, second]), runner.run([first, second])
        assert len(np.unique(np.concatenate([*one, *two]))) == 16


def test_uniform_like_draws_in_the_shape_at_run_time() -> None:
    with Graph().as_default():
        x = placeholder("float32", (None, 3))
        drawn = random.uniform_like(x)
        assert drawn.shape == (None, 3)
        value, shape = evaluate([drawn, shape_of(drawn)], {x: np.zeros((5, 3), np.float32)})
        assert value.shape == (5, 3)
        np.testing.assert_array_equal(shape, [5, 3])


def test_shapes_may_be_known_at_run_time_only() -> None:
    """What a model with an unknown batch size draws is what it draws of that size."""
    with Graph().as_default():
        x = placeholder("float32", (None, 3))
        n = shape_of(x)[0]
        drawn = [
            random.normal(shape_of(x), 1.0, 2.0, "float64", name="a"),
            random.normal((n, 2), name="b"),
            random.uniform((n, 2), -1.0, 3.0, "bfloat16"),
            random.uniform((2, n), name="c"),
            random.bernoulli((n,), 0.25, "int32"),
            random.exponential((n, 2)),
        ]
        assert [t.shape for t in drawn] == [(None, 3), (None, 2), (None, 2), (2, None), (None,), (None, 2)]
        found = evaluate(drawn, {x: np.zeros((500, 3), np.float32)})
    assert [v.shape for v in found] == [(500, 3), (500, 2), (500, 2), (2, 500), (500,), (500, 2)]
    with Graph().as_default():
        static = [
            random.normal((500, 3), 1.0, 2.0, "float64", name="a"),
            random.normal((500, 2), name="b"),
            random.uniform((2, 500), name="c"),
        ]
        for mine, right in zip((found[0], found[1], found[3]), evaluate(static), strict=True):
            np.testing.assert_array_equal(mine, right)
    stretched = found[2].astype(np.float64)
    assert -1 <= stretched.min() < -0.9 < 2.9 < stretched.max() < 3
    assert set(found[4]) == {0, 1}
    assert abs(found[4].mean() - 0.25) < 0.1
    assert abs(found[5].mean() - 1) < 0.1


def test_errors() -> None:
    with Graph().as_default():
        with pytest.raises(ShapeError, match="uniform_like"):
            random.normal((None, 3))
        with pytest.raises(DTypeError, match="gives floats"):
            random.normal((3,), dtype="int32")
        with pytest.raises(GraphError, match="empty"):
            random.uniform((3,), 1.0, 1.0)
        with pytest.raises(GraphError, match="empty"):
            random.randint((3,), 5, 5)
        with pytest.raises(DTypeError, match="do not fit uint8"):
            random.randint((3,), 0, 300, dtype="uint8")
        with pytest.raises(GraphError, match="probability"):
            random.bernoulli((3,), 1.5)
