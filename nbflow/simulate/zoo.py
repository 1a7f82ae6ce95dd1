"""Training steps to simulate when there is none at hand. All read random data of the right shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nbflow import layers, nn, ops, random
from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor
from nbflow.optim import SGD

# Filters in a row, one text a branch: "3x3 96/2!" is a 3 by 3 convolution to 96 channels with stride 2 without padding,
# "max" and "avg" are pools, "|" splits a branch in two. Szegedy et al., "Rethinking the Inception Architecture for
# Computer Vision" (2015), as trained at 299 x 299.
_STEM = "3x3 32/2!, 3x3 32!, 3x3 64, max, 1x1 80, 3x3 192!, max"
_A = "1x1 64; 1x1 48, 5x5 64; 1x1 64, 3x3 96, 3x3 96; avg, 1x1 {}"
_B = "3x3 384/2!; 1x1 64, 3x3 96, 3x3 96/2!; max"
_C = "1x1 192; 1x1 {0}, 1x7 {0}, 7x1 192; 1x1 {0}, 7x1 {0}, 1x7 {0}, 7x1 {0}, 1x7 192; avg, 1x1 192"
_D = "1x1 192, 3x3 320/2!; 1x1 192, 1x7 192, 7x1 192, 3x3 192/2!; max"
_E = "1x1 320; 1x1 384, 1x3 384 | 3x1 384; 1x1 448, 3x3 384, 1x3 384 | 3x1 384; avg, 1x1 192"
_INCEPTION = (
    *(_STEM, _A.format(32), _A.format(64), _A.format(64), _B),
    *(_C.format(128), _C.format(160), _C.format(160), _C.format(192), _D, _E, _E),
)


def mlp(batch: int = 128) -> Node:
    """784-512-512-10, as in docs/performance.md."""
    x = random.normal((batch, 784))
    for units in (512, 512):
        x = layers.dense(x, units, activation=nn.relu)
    return _trained(layers.dense(x, 10), batch)


def inception_v3(batch: int = 32) -> Node:
    """Inception-v3 at 299 x 299 with batch normalisation, 1,000 classes, without the auxiliary head."""
    x = random.normal((batch, 299, 299, 3))
    for text in _INCEPTION:
        x = _block(x, text)
    return _trained(layers.dense(ops.mean(x, axis=(1, 2)), 1000), batch)


def transformer(batch: int = 16) -> Node:
    """Two layers of width 128 with 4 heads over 64 positions, as in docs/performance.md."""
    x = random.normal((batch, 64, 128))
    for _ in range(2):
        x = layers.layer_norm(x + layers.multi_head_attention(x, heads=4))
        x = layers.layer_norm(x + layers.dense(layers.dense(x, 512, activation=nn.gelu), 128))
    return _trained(layers.dense(ops.mean(x, axis=1), 1000), batch)


# Name → a function of the batch on each worker.
ZOO: Mapping[str, Callable[..., Node]] = {"mlp": mlp, "inception-v3": inception_v3, "transformer": transformer}


def step_of(name: str, batch: int | None = None) -> Node:
    """The training step of a model, in a graph of its own. Raises GraphError that lists the models."""
    if name not in ZOO:
        raise GraphError(f"no model is called {name!r}; there are {', '.join(ZOO)}")
    with Graph().as_default():
        return ZOO[name]() if batch is None else ZOO[name](batch)


def _trained(logits: Tensor, batch: int) -> Node:
    labels = random.randint((batch,), 0, (logits.shape or (None,))[-1] or 1)
    loss = ops.mean(nn.softmax_cross_entropy(logits, labels))
    return SGD(0.01, momentum=0.9).minimize(loss)


def _block(x: Tensor, text: str) -> Tensor:
    return ops.concat([y for branch in text.split(";") for y in _branch(x, branch)], axis=-1)


def _branch(x: Tensor, text: str) -> list[Tensor]:
    for part in text.split(","):
        ends = [_layer(x, p.strip()) for p in part.split("|")]
        x = ends[0]
    return ends


def _layer(x: Tensor, text: str) -> Tensor:
    if text == "max":
        return nn.max_pool2d(x, 3, 2, "VALID")
    if text == "avg":
        return nn.avg_pool2d(x, 3, 1, "SAME")
    size, filters = text.rstrip("!").split(" ")
    count, _, stride = filters.partition("/")
    height, width = size.split("x")
    padding = "VALID" if text.endswith("!") else "SAME"
    kernel = (int(height), int(width))
    y = layers.conv2d(x, int(count), kernel, int(stride or 1), padding, use_bias=False)
    return nn.relu(layers.batch_norm(y, scale=False))
