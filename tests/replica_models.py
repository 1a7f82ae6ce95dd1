"""Small models that the tests of strategies train: two on real handwritten digits, and a transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.graph import Graph
from nbflow.inprocess import InProcessCluster

Array = np.ndarray[Any, Any]

DIGITS = Path(__file__).parents[1] / "examples" / "data" / "mnist10k.npz"
ROWS, BATCH = 256, 32


@cache
def digits() -> tuple[Array, Array]:
    """The first images of MNIST, (ROWS, 28, 28, 1) float64 in [0, 1], and what digits they are, int64."""
    with np.load(DIGITS) as found:
        return found["images"][:ROWS, ..., None] / 255.0, found["labels"][:ROWS].astype(np.int64)


def _images(dtype: str) -> tuple[Any, Any]:
    images, labels = digits()
    data = nf.data.from_arrays({"x": images.astype(dtype), "y": labels}).repeat().batch(BATCH).next()
    return data["x"], data["y"]


def mlp(dtype: str, devices: Sequence[str] = ("", "")) -> Any:
    """784-32-32-10; the loss. `devices`: of the first hidden layer, and of the second."""
    x, y = _images(dtype)
    h = nf.reshape(x, (-1, 784))
    for number, device in enumerate(devices):
        with nf.device(device):
            h = nf.layers.dense(h, 32, activation=nf.nn.relu, name=f"hidden{number}")
    return nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(h, 10, name="logits"), y))


def conv(dtype: str) -> Any:
    """Two convolutions, a pooling and a dense layer; the loss."""
    x, y = _images(dtype)
    h = nf.layers.conv2d(x, 4, 5, strides=2, activation=nf.nn.relu, name="conv0")
    h = nf.nn.max_pool2d(nf.layers.conv2d(h, 8, 3, activation=nf.nn.relu, name="conv1"), 2)
    return nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(nf.reshape(h, (-1, 392)), 10, name="logits"), y))


def transformer(dtype: str, devices: Sequence[str] = ("", "")) -> Any:
    """Width 32, 2 heads, 2 layers, 16 words, with a causal mask: says at each place what the first word was.
    `devices`: of the first layer, and of the second."""
    words = np.random.default_rng(1).integers(0, 12, (ROWS, 16))
    first = np.repeat(words[:, :1], 16, axis=1)
    data = nf.data.from_arrays({"x": words, "y": first}).repeat().batch(BATCH).next()
    places = nf.Variable(np.random.default_rng(2).normal(0, 0.1, (16, 32)).astype(dtype), name="places")
    h = nf.layers.embedding(data["x"], 12, 32, name="words", dtype=dtype) + places
    for number, device in enumerate(devices):
        with nf.name_scope(f"block{number}"), nf.device(device):
            normed = nf.layers.layer_norm(h, name="n1")
            h = h + nf.layers.multi_head_attention(normed, heads=2, causal=True, name="attend")
            inner = nf.layers.dense(nf.layers.layer_norm(h, name="n2"), 64, activation=nf.nn.gelu, name="up")
            h = h + nf.layers.dense(inner, 32, name="down")
    return nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(h, 12, name="say"), data["y"]))


MODELS = {"mlp": mlp, "conv": conv, "transformer": transformer}
# Of each model: the optimizer, and what the mean loss is at most at the end of 40 steps; at first it is above 2.
BOUNDS: dict[str, tuple[Any, float]] = {
    "mlp": (nf.optim.Adam(0.005), 1.2),
    "conv": (nf.optim.Adam(0.005), 1.4),
    "transformer": (nf.optim.SGD(0.05), 0.5),
}
# The softmax over the keys does not see a bias that all of them share: what is found for its gradient, 0, is rounding.
NOISE = ("block0/attend/key/bias", "block1/attend/key/bias")


def apart(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest distance of a variable from what is expected, by the norm of that."""
    kept = [name for name in expected if name not in NOISE and np.any(expected[name])]
    return max(float(np.linalg.norm(found[n] - expected[n]) / np.linalg.norm(expected[n])) for n in kept)


def trained(
    model: Any,
    strategy: Any,
    workers: int = 1,
    ps: int = 0,
    *,
    steps: int,
    dtype: str = "float32",
    optimizer: Any = None,
    cluster: Any = None,
    **options: Any,
) -> tuple[Array, Mapping[str, Array]]:
    """The losses of `steps` steps, and all variables after them. `cluster`: one that is there, instead of one here."""
    made = InProcessCluster(workers, ps) if cluster is None else cluster
    try:
        with Graph().as_default() as graph:
            nf.set_cluster(made)
            loss = model(dtype)
            step = (optimizer or nf.optim.SGD(0.1)).minimize(loss, strategy=strategy, **options)
            run = nf.train.run(step, steps=steps, metrics={"loss": loss}, every=1, show=False)
            assert (run.status, run.step) == ("done", steps), run
            kept = [n for n in graph.nodes.values() if n.op == "variable"]
            return run.history["loss"], nf.run({n.name: nf.Variable.from_node(n).to_tensor() for n in kept})
    finally:
        nf.set_cluster(None)
        if cluster is None:
            made.close()
