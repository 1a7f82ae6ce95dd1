"""Small models for tests that compare devices: each builds a graph and gives (train, loss, feeds)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import nbflow as nf

Built = tuple[nf.Node, nf.Tensor, dict[nf.Tensor, Any]]


def mlp() -> Built:
    rng = np.random.default_rng(0)
    x, y = nf.placeholder("float32", (64, 20), name="x"), nf.placeholder("int64", (64,), name="y")
    h = nf.layers.dense(x, 32, activation=nf.nn.relu, name="hidden")
    loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(h, 5, name="out"), y))
    feeds = {x: rng.normal(size=(64, 20)).astype("float32"), y: rng.integers(0, 5, 64)}
    return nf.optim.Adam(0.01).minimize(loss), loss, feeds


def conv() -> Built:
    rng = np.random.default_rng(1)
    x, y = nf.placeholder("float32", (16, 12, 12, 3), name="x"), nf.placeholder("int64", (16,), name="y")
    h = nf.layers.conv2d(x, 8, 3, activation=nf.nn.relu, name="first")
    h = nf.nn.max_pool2d(nf.layers.batch_norm(h, training=True, name="norm"), 2)
    h = nf.layers.conv2d(h, 8, 3, strides=2, activation=nf.nn.relu, name="second")
    logits = nf.layers.dense(nf.nn.global_avg_pool(h), 4, name="out")
    loss = nf.mean(nf.nn.softmax_cross_entropy(logits, y))
    feeds = {x: rng.normal(size=(16, 12, 12, 3)).astype("float32"), y: rng.integers(0, 4, 16)}
    return nf.optim.SGD(0.1, momentum=0.9).minimize(loss), loss, feeds


def transformer() -> Built:
    rng = np.random.default_rng(2)
    words, y = nf.placeholder("int64", (8, 16), name="words"), nf.placeholder("int64", (8, 16), name="y")
    h = nf.layers.embedding(words, 50, 32, name="words_table")
    for block in range(2):
        a = nf.layers.layer_norm(h, name=f"norm_a{block}")
        h = h + nf.layers.multi_head_attention(a, 4, causal=True, name=f"attention{block}")
        b = nf.layers.layer_norm(h, name=f"norm_b{block}")
        wide = nf.layers.dense(b, 64, activation=nf.nn.gelu, name=f"wide{block}")
        h = h + nf.layers.dense(nf.nn.dropout(wide, 0.1), 32, name=f"narrow{block}")
    loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(h, 50, name="out"), y))
    feeds = {words: rng.integers(0, 50, (8, 16)), y: rng.integers(0, 50, (8, 16))}
    return nf.optim.AdamW(3e-3).minimize(loss), loss, feeds


MODELS: dict[str, Callable[[], Built]] = {"mlp": mlp, "conv": conv, "transformer": transformer}


def losses(make: Callable[[], Built], device: str, steps: int, cluster: Any = None) -> list[float]:
    """What the model's loss is before each of `steps` steps, with all of it on `device`."""
    with nf.Graph().as_default() as graph:
        with nf.device(device):
            train, loss, feeds = make()
        with nf.Session(cluster, graph=graph) as session:
            return [float(session.run([loss, train], feeds)[0]) for _ in range(steps)]
