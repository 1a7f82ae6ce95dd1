"""The bits of `docs/random.md`: the published vectors of Philox4x64-10, and golden values of every random op."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.backends.base import Context
from nbflow.backends.numpy.random import philox, stream_key, words
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.spec import BFLOAT16
from nbflow.state import StateStore
from nbflow.testing import evaluate

_ONES = 2**64 - 1

# (counter, key, words): tests/kat_vectors of Random123 1.14, the lines "philox4x64 10".
PUBLISHED = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (_ONES, _ONES, _ONES, _ONES),
        (_ONES, _ONES),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


def before(counter: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The counter before `counter`, as four words: numpy adds one first."""
    whole = (sum(word << 64 * n for n, word in enumerate(counter)) - 1) % 2**256
    return np.array([whole >> 64 * n & _ONES for n in range(4)], np.uint64)


@pytest.mark.parametrize(("counter", "key", "wanted"), PUBLISHED, ids=["zeros", "ones", "pi"])
def test_the_published_vectors(counter: Any, key: Any, wanted: Any) -> None:
    found = philox(np.array(key, np.uint64), before(counter), 4)
    np.testing.assert_array_equal(found, np.array(wanted, np.uint64))


def context(step: int = 0, frame: tuple[int, ...] = ()) -> Context:
    return Context("scope/draw:2", 7, step, StateStore(), lambda: None, frame)


def test_key_and_counter() -> None:
    """SHA-256("7|scope/draw") starts with these bytes; block 1 of step 5 is the first."""
    assert [hex(int(k)) for k in stream_key(7, "scope/draw")] == ["0x3ffc2635aed10ab8", "0x619ee2a886f8955d"]
    direct = philox(stream_key(7, "scope/draw"), before((1, 0, 5, 0)), 8)
    np.testing.assert_array_equal(words(context(step=5), 8), direct)
    again = philox(stream_key(7, "scope/draw"), before((1, 3, 5, 0)), 4)
    np.testing.assert_array_equal(words(context(step=5), 4, attempt=3), again)
    inside = philox(stream_key(7, "scope/draw@3.0"), before((1, 0, 5, 0)), 4)
    np.testing.assert_array_equal(words(context(5, (3, 0)), 4), inside)


def drawn(make: Any) -> np.ndarray[Any, Any]:
    with nf.Graph().as_default():
        nf.set_seed(7)
        tensor = make("draw")
        value: np.ndarray[Any, Any] = evaluate(tensor)
        assert value.dtype == tensor.dtype
        return value


GOLDEN: dict[str, tuple[Any, list[Any]]] = {
    "uniform float32": (
        lambda n: nf.random.uniform((4,), name=n),
        [0.17429256439208984, 0.06528186798095703, 0.848770260810852, 0.33214086294174194],
    ),
    "uniform float64": (
        lambda n: nf.random.uniform((4,), dtype="float64", name=n),
        [0.06528188594949724, 0.33214088083449056, 0.3510927711785451, 0.5245081279094721],
    ),
    "uniform -1 3": (
        lambda n: nf.random.uniform((4,), -1.0, 3.0, name=n),
        [-0.3028297424316406, -0.7388725280761719, 2.395081043243408, 0.3285634517669678],
    ),
    "uniform bfloat16": (
        lambda n: nf.random.uniform((4,), dtype=BFLOAT16, name=n),
        [0.173828125, 0.0654296875, 0.84765625, 0.33203125],
    ),
    "normal float32": (
        lambda n: nf.random.normal((5,), name=n),
        [-0.30542245507240295, 0.32858526706695557, -1.153239130973816, 0.5382812023162842, 0.1644757091999054],
    ),
    "normal float64": (
        lambda n: nf.random.normal((3,), 1.0, 2.0, "float64", name=n),
        [0.5639629261492742, -0.7757954287332856, 1.5915690067998094],
    ),
    "truncated_normal": (
        lambda n: nf.random.truncated_normal((40,), name=n)[-4:],
        [-1.267415165901184, -0.7222742438316345, -1.0648592710494995, -1.0341262817382812],
    ),
    "randint": (lambda n: nf.random.randint((5,), -5, 100, name=n), [14, 93, -4, 42, 48]),
    "randint uint8": (lambda n: nf.random.randint((5,), 0, 256, "uint8", name=n), [205, 116, 225, 155, 195]),
    "permutation": (lambda n: nf.random.permutation(8, name=n), [0, 7, 4, 1, 2, 3, 6, 5]),
    "shuffle": (lambda n: nf.random.shuffle([10, 20, 30, 40], name=n), [30, 20, 40, 10]),
    "bernoulli": (lambda n: nf.random.bernoulli((10,), 0.3, name=n), [1, 0, 0, 0, 1, 0, 0, 1, 0, 0]),
    "choice": (lambda n: nf.random.choice(7, (6,), name=n), [4, 6, 0, 0, 0, 5]),
    "exponential": (
        lambda n: nf.random.exponential((3,), name=n),
        [1.4871677160263062, 1.295719861984253, 4.205248832702637],
    ),
    "laplace": (lambda n: nf.random.laplace((3,), name=n), [0.7940205931663513, 0.6025726795196533, 3.512101650238037]),
    "gumbel": (lambda n: nf.random.gumbel((3,), name=n), [1.3618017435073853, 1.1400808095932007, 4.1977434158325195]),
    "gamma": (lambda n: nf.random.gamma((3,), 2.5, name=n), [1.8547263145446777, 2.710556745529175, 1.637418508529663]),
    "gamma below 1": (
        lambda n: nf.random.gamma((3,), 0.5, name=n),
        [0.18221920728683472, 0.015434474684298038, 0.39744535088539124],
    ),
    "categorical": (lambda n: nf.random.categorical([0.0, 1.0, 2.0], num=8, name=n), [2, 2, 2, 2, 2, 2, 2, 2]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name: str) -> None:
    make, wanted = GOLDEN[name]
    value = drawn(make)
    # The logarithm and the cosine may differ in the last bit between processors; all else may not.
    exact = name in EXACT
    np.testing.assert_allclose(value.astype(float), wanted, rtol=0 if exact else 4e-6, atol=0)


EXACT = {n for n in GOLDEN if n.split()[0] in ("uniform", "randint", "permutation", "bernoulli", "choice", "shuffle")}


# --- distributions ---------------------------------------------------------------------------------------------------

N = 100_000
EULER = 0.5772156649015329
# name: (make, mean, variance)
MOMENTS: dict[str, tuple[Any, float, float]] = {
    "uniform": (lambda n: nf.random.uniform((N,), -1.0, 3.0, name=n), 1, 16 / 12),
    "normal": (lambda n: nf.random.normal((N,), 1.0, 2.0, name=n), 1, 4),
    "exponential": (lambda n: nf.random.exponential((N,), 2.0, name=n), 2, 4),
    "laplace": (lambda n: nf.random.laplace((N,), 1.0, 0.5, name=n), 1, 0.5),
    "gumbel": (lambda n: nf.random.gumbel((N,), 1.0, 2.0, name=n), 1 + 2 * EULER, 4 * math.pi**2 / 6),
    "gamma 0.3": (lambda n: nf.random.gamma((N,), 0.3, name=n), 0.3, 0.3),
    "gamma 1": (lambda n: nf.random.gamma((N,), 1, 2.0, name=n), 2, 4),
    "gamma 9": (lambda n: nf.random.gamma((N,), 9.0, name=n), 9, 9),
    "randint": (lambda n: nf.random.randint((N,), -2, 3, name=n), 0, 2),
    "bernoulli": (lambda n: nf.random.bernoulli((N,), 0.2, "float32", name=n), 0.2, 0.16),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_moments(name: str) -> None:
    make, mean, variance = MOMENTS[name]
    value = drawn(make).astype(float)
    assert np.isfinite(value).all()
    assert abs(value.mean() - mean) < 5 * math.sqrt(variance / N)
    fourth = np.mean((value - value.mean()) ** 4)
    assert abs(value.var() - variance) < 5 * math.sqrt((fourth - variance**2) / N)


CUMULATIVE: dict[str, tuple[Any, Any]] = {
    "normal": (lambda n: nf.random.normal((N,), name=n), lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))),
    "exponential": (lambda n: nf.random.exponential((N,), name=n), lambda x: 1 - math.exp(-x)),
    "laplace": (
        lambda n: nf.random.laplace((N,), name=n),
        lambda x: 0.5 * math.exp(x) if x < 0 else 1 - 0.5 * math.exp(-x),
    ),
    "gumbel": (lambda n: nf.random.gumbel((N,), name=n), lambda x: math.exp(-math.exp(-x))),
    "gamma 1": (lambda n: nf.random.gamma((N,), 1.0, name=n), lambda x: 1 - math.exp(-x)),
    "gamma 0.5": (lambda n: nf.random.gamma((N,), 0.5, name=n), lambda x: math.erf(math.sqrt(x))),
    "truncated_normal": (
        lambda n: nf.random.truncated_normal((N,), name=n),
        lambda x: 0.5 + 0.5 * math.erf(x / math.sqrt(2)) / math.erf(math.sqrt(2)),
    ),
}


@pytest.mark.parametrize("name", CUMULATIVE)
def test_kolmogorov_smirnov(name: str) -> None:
    """The distance between the drawn and the true distribution function; above the bound once in a million draws."""
    make, cumulative = CUMULATIVE[name]
    value = np.sort(drawn(make).astype(float))[::50]
    true = np.array([cumulative(x) for x in value])
    assert np.abs(true - (np.arange(len(value)) * 50 + 0.5) / N).max() < math.sqrt(math.log(2e6) / (2 * N))


def test_categorical_draws_by_probability() -> None:
    p = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])
    with np.errstate(divide="ignore"):
        logits = np.log(p)
    value = drawn(lambda n: nf.random.categorical(logits, num=20_000, name=n))
    assert value.shape == (2, 20_000)
    for row, wanted in zip(value, p, strict=True):
        found = np.bincount(row, minlength=3) / len(row)
        np.testing.assert_allclose(found, wanted, atol=5 * math.sqrt(0.25 / len(row)))
        assert found[wanted == 0].sum() == 0
    one = drawn(lambda n: nf.random.categorical(logits.T, axis=0, name=n))
    assert one.shape == (2,)
    with nf.Graph().as_default():
        x = nf.placeholder("float32", (None, 3))
        assert evaluate(nf.random.categorical(x), {x: np.zeros((5, 3))}).shape == (5,)
        with pytest.raises(ShapeError, match="static shape"):
            nf.random.categorical(x, num=2)
        with pytest.raises(DTypeError, match="floating"):
            nf.random.categorical(np.arange(3))


def test_choice() -> None:
    rows = np.arange(10).reshape(5, 2)
    assert drawn(lambda n: nf.random.choice(rows, (3, 4), name=n)).shape == (3, 4, 2)
    few = drawn(lambda n: nf.random.choice(5, (5,), replace=False, name=n))
    np.testing.assert_array_equal(np.sort(few), np.arange(5))
    some = drawn(lambda n: nf.random.choice(3, (3000,), p=[0.0, 3.0, 1.0], name=n))
    counts = np.bincount(some, minlength=3)
    assert counts[0] == 0
    assert abs(counts[1] - 2250) < 150
    assert drawn(lambda n: nf.random.choice(3, name=n)).shape == ()
    np.testing.assert_array_equal(np.sort(drawn(lambda n: nf.random.shuffle(np.arange(6), name=n))), np.arange(6))
    with nf.Graph().as_default():
        with pytest.raises(ShapeError, match="6 different rows"):
            nf.random.choice(5, (6,), replace=False)
        with pytest.raises(ShapeError, match="as many probabilities"):
            nf.random.choice(5, p=[0.5, 0.5])
        with pytest.raises(GraphError, match="takes no p"):
            nf.random.choice(2, p=[0.5, 0.5], replace=False)
        with pytest.raises(ShapeError, match="first dimension"):
            nf.random.choice(nf.placeholder("float32", (None, 2)))
        with pytest.raises(GraphError, match="above 0"):
            nf.random.gamma((2,), 0.0)
        with pytest.raises(DTypeError, match="a number"):
            nf.random.gamma((2,), "1")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=["float16", "bfloat16"])
def test_16_bit_uniforms_are_rounded_and_stay_below_1(dtype: Any) -> None:
    n = 50_000
    half = drawn(lambda name: nf.random.uniform((n,), dtype=dtype, name=name))
    single = drawn(lambda name: nf.random.uniform((n,), name=name))
    like = drawn(lambda name: nf.random.uniform_like(nf.zeros((n,), dtype=dtype), name=name))
    below = np.nextafter(np.ones((), dtype), np.zeros((), dtype))
    wanted = np.minimum(single.astype(dtype), below)
    np.testing.assert_array_equal(half, wanted)
    np.testing.assert_array_equal(like, wanted)
    assert float(half.max()) < 1
    for make in (nf.random.normal, nf.random.exponential, nf.random.laplace, nf.random.gumbel):
        value = drawn(lambda name, make=make: make((n,), dtype=dtype, name=name))
        right = drawn(lambda name, make=make: make((n,), name=name))
        np.testing.assert_array_equal(value, right.astype(dtype))


def test_scale_has_a_gradient() -> None:
    with nf.Graph().as_default():
        scale = nf.constant(2.0)
        made = nf.random.exponential((10,), scale)
        grad, value = evaluate([nf.gradients(nf.sum(made), [scale])[0], made])
    np.testing.assert_allclose(grad, value.sum() / 2, rtol=1e-5)
