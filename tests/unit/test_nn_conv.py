"""Convolution and pooling against definitions in loops, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbflow import nn
from nbflow.autodiff import gradients
from nbflow.errors import GraphError, OpError, ShapeError
from nbflow.graph import Graph
from nbflow.ops import constant, placeholder, square, sum
from nbflow.ops.windows import output_size, pads
from nbflow.testing import check_gradients, evaluate

A = np.ndarray[Any, Any]
RNG = np.random.default_rng(7)


def plain_conv(x: A, w: A, strides: Any, padding: Any, dilation: Any, groups: int) -> A:
    """The definition, one output at a time."""
    n, h, width, _ = x.shape
    kh, kw, depth, outputs = w.shape
    before = [pads(padding, a, s, k, strides[a], dilation[a]) for a, (s, k) in enumerate(((h, kh), (width, kw)))]
    padded = np.pad(x, ((0, 0), *before, (0, 0)))
    oh, ow = (
        output_size(padding, a, s, k, strides[a], dilation[a]) or 0 for a, (s, k) in enumerate(((h, kh), (width, kw)))
    )
    y = np.zeros((n, oh, ow, outputs), x.dtype)
    for i, j, o in np.ndindex(oh, ow, outputs):
        first = (o // (outputs // groups)) * depth
        for a, b in np.ndindex(kh, kw):
            pixel = padded[:, i * strides[0] + a * dilation[0], j * strides[1] + b * dilation[1], first : first + depth]
            y[:, i, j, o] += pixel @ w[a, b, :, o]
    return y


CONVOLUTIONS = [
    ((2, 5, 6, 3), (3, 3, 3, 4), (1, 1), "SAME", (1, 1), 1),
    ((2, 5, 6, 3), (3, 2, 3, 4), (1, 1), "VALID", (1, 1), 1),
    ((2, 7, 6, 2), (3, 3, 2, 2), (2, 2), "SAME", (1, 1), 1),
    ((1, 8, 7, 2), (2, 3, 2, 3), (3, 2), "VALID", (1, 1), 1),
    ((1, 8, 7, 2), (3, 2, 2, 3), (1, 1), "SAME", (2, 3), 1),
    ((1, 6, 6, 2), (3, 3, 2, 3), (2, 1), ((1, 2), (0, 1)), (1, 1), 1),
    ((2, 4, 4, 4), (1, 1, 4, 3), (1, 1), "VALID", (1, 1), 1),
    ((2, 5, 5, 4), (3, 3, 2, 6), (1, 1), "SAME", (1, 1), 2),
    ((2, 5, 5, 3), (3, 3, 1, 6), (2, 2), "SAME", (1, 1), 3),
]


@pytest.mark.parametrize(("image", "filters", "strides", "padding", "dilation", "groups"), CONVOLUTIONS)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_conv2d(image: Any, filters: Any, strides: Any, padding: Any, dilation: Any, groups: int, layout: str) -> None:
    x, w = RNG.normal(size=image), RNG.normal(size=filters)
    expected = plain_conv(x, w, strides, padding, dilation, groups)
    order = (0, 3, 1, 2) if layout == "NCHW" else (0, 1, 2, 3)
    with Graph().as_default():
        made = nn.conv2d(x.transpose(order), w, strides, padding, layout, dilation, groups)
        assert made.shape == expected.transpose(order).shape
        np.testing.assert_allclose(evaluate(made), expected.transpose(order), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("image", "filters", "strides", "padding", "dilation", "groups", "layout"),
    [
        ((1, 3, 3, 2), (2, 2, 2, 2), 1, "SAME", 1, 1, "NHWC"),
        ((1, 4, 3, 1), (2, 2, 1, 2), 2, "VALID", 1, 1, "NHWC"),
        ((1, 1, 4, 4), (2, 2, 1, 1), 1, ((1, 0), (0, 1)), 2, 1, "NCHW"),
        ((1, 3, 3, 2), (2, 2, 1, 2), 1, "SAME", 1, 2, "NHWC"),
        ((1, 3, 2, 4), (2, 1, 2, 2), 1, "SAME", 1, 2, "NHWC"),
    ],
)
def test_conv2d_gradients(
    image: Any, filters: Any, strides: Any, padding: Any, dilation: Any, groups: int, layout: str
) -> None:
    x, w = RNG.normal(size=image), RNG.normal(size=filters)
    check_gradients(lambda a, b: square(nn.conv2d(a, b, strides, padding, layout, dilation, groups)), x, w)


def test_conv2d_gradients_of_third_order() -> None:
    """The three ops are closed under differentiation."""
    x, w = RNG.normal(size=(1, 2, 2, 1)), RNG.normal(size=(2, 1, 1, 1))
    check_gradients(lambda a, b: nn.conv2d(a, b) * square(a), x, w, order=3, rtol=1e-4)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_conv2d_blocks_of_images_agree_with_the_whole(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = RNG.normal(size=(5, 6, 6, 2) if layout == "NHWC" else (5, 2, 6, 6)), RNG.normal(size=(3, 3, 2, 3))
    with Graph().as_default():
        a, b = constant(x), constant(w)
        from_images = nn.conv2d(a, b, data_format=layout)
        grads = gradients(sum(square(from_images)), [a, b])
        whole = evaluate([from_images, *grads])
        monkeypatch.setattr("nbflow.backends.numpy.conv._BLOCK_BYTES", 1)
        for one, other in zip(whole, evaluate([from_images, *grads]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_conv2d_with_unknown_dimensions() -> None:
    x, w = RNG.normal(size=(3, 5, 5, 2)), RNG.normal(size=(3, 3, 2, 4))
    with Graph().as_default():
        a = placeholder("float64", (None, None, None, 2))
        y = nn.conv2d(a, w, strides=2)
        assert y.shape == (None, None, None, 4)
        (grad,) = gradients(sum(y), [a])
        found, slope = evaluate([y, grad], {a: x})
        np.testing.assert_allclose(found, plain_conv(x, w, (2, 2), "SAME", (1, 1), 1))
        assert slope.shape == x.shape


def test_conv2d_of_no_images() -> None:
    with Graph().as_default():
        a = placeholder("float32", (None, 4, 4, 1))
        w = constant(np.ones((3, 3, 1, 2), np.float32))
        y = nn.conv2d(a, w)
        (grad,) = gradients(sum(y), [w])
        found, slope = evaluate([y, grad], {a: np.zeros((0, 4, 4, 1), np.float32)})
        assert found.shape == (0, 4, 4, 2)
        np.testing.assert_array_equal(slope, np.zeros((3, 3, 1, 2)))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4)])
def test_gradients_of_conv1d_over_nothing(shape: tuple[int, ...], groups: int) -> None:
    with Graph().as_default():
        a = placeholder("float32", (None, None, 4))
        w = constant(np.ones((3, 4 // groups, 8), np.float32))
        y = nn.conv1d(a, w, groups=groups)
        found, *slopes = evaluate([y, *gradients(sum(y), [a, w])], {a: np.zeros(shape, np.float32)})
        assert found.shape == (*shape[:2], 8)
        assert slopes[0].shape == shape
        np.testing.assert_array_equal(slopes[1], np.zeros(w.shape))


def test_conv2d_errors() -> None:
    with Graph().as_default():
        x = placeholder("float32", (None, 8, 8, 3))
        with pytest.raises(ShapeError, match=r"have 3 channels.*take 4"):
            nn.conv2d(x, np.zeros((3, 3, 4, 8), np.float32))
        with pytest.raises(ShapeError, match="four dimensions"):
            nn.conv2d(np.zeros((8, 8), np.float32), np.zeros((3, 3, 1, 8), np.float32))
        with pytest.raises(ShapeError, match="window of 9"):
            nn.conv2d(x, np.zeros((9, 9, 3, 8), np.float32), padding="VALID")
        with pytest.raises(GraphError, match="padding is"):
            nn.conv2d(x, np.zeros((3, 3, 3, 8), np.float32), padding="same-ish")
        with pytest.raises(GraphError, match="data_format"):
            nn.conv2d(x, np.zeros((3, 3, 3, 8), np.float32), data_format="CHWN")
        unknown = placeholder("float32", (None, 8, 8, None))
        y = nn.conv2d(unknown, np.zeros((3, 3, 4, 8), np.float32))
        with pytest.raises(OpError, match="3 channels"):
            evaluate(y, {unknown: np.zeros((1, 8, 8, 3), np.float32)})


def plain_pool(x: A, window: Any, strides: Any, padding: Any, reduce: Any) -> A:
    n, h, width, c = x.shape
    before = [pads(padding, a, s, window[a], strides[a], 1) for a, s in enumerate((h, width))]
    padded = np.pad(x, ((0, 0), *before, (0, 0)), constant_values=np.nan)
    oh, ow = (output_size(padding, a, s, window[a], strides[a], 1) or 0 for a, s in enumerate((h, width)))
    y = np.zeros((n, oh, ow, c))
    for i, j in np.ndindex(oh, ow):
        top, left = i * strides[0], j * strides[1]
        y[:, i, j] = reduce(padded[:, top : top + window[0], left : left + window[1]], axis=(1, 2))
    return y


@pytest.mark.parametrize(
    ("shape", "window", "strides", "padding"),
    [
        ((2, 4, 6, 3), (2, 2), (2, 2), "VALID"),
        ((2, 5, 5, 2), (3, 2), (2, 1), "SAME"),
        ((1, 5, 4, 2), (3, 3), (1, 1), "VALID"),
        ((1, 5, 4, 2), (2, 3), (2, 2), ((1, 0), (1, 2))),
    ],
)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pooling(shape: Any, window: Any, strides: Any, padding: Any, layout: str) -> None:
    x = RNG.normal(size=shape)
    order = (0, 3, 1, 2) if layout == "NCHW" else (0, 1, 2, 3)
    with Graph().as_default():
        for function, reduce in ((nn.max_pool2d, np.nanmax), (nn.avg_pool2d, np.nanmean)):
            made = function(x.transpose(order), window, strides, padding, layout)
            expected = plain_pool(x, window, strides, padding, reduce).transpose(order)
            assert made.shape == expected.shape
            np.testing.assert_allclose(evaluate(made), expected, rtol=1e-12)
    small = x[:1, :, :, :1].transpose(order)
    check_gradients(lambda a: square(nn.max_pool2d(a, window, strides, padding, layout)), small)
    check_gradients(lambda a: square(nn.avg_pool2d(a, window, strides, padding, layout)), small)


def test_the_first_of_equal_maxima_gets_the_gradient() -> None:
    with Graph().as_default():
        x = constant(np.ones((1, 2, 2, 1)))
        (grad,) = gradients(sum(nn.max_pool2d(x, 2)), [x])
        np.testing.assert_array_equal(evaluate(grad).ravel(), [1, 0, 0, 0])


def test_max_pooling_of_integers_does_not_see_the_border() -> None:
    x = np.full((1, 3, 3, 1), -5, np.int32)
    with Graph().as_default():
        np.testing.assert_array_equal(evaluate(nn.max_pool2d(x, 2, 2, "SAME")), np.full((1, 2, 2, 1), -5))


def test_padding_as_large_as_a_pool_is_refused() -> None:
    with Graph().as_default(), pytest.raises(GraphError, match="hold no place"):
        nn.max_pool2d(np.zeros((1, 4, 4, 1)), 2, padding=((2, 0), (0, 0)))


def test_the_number_of_dimensions_comes_from_the_layout_or_the_tensors() -> None:
    with Graph().as_default():
        unknown = placeholder("float32", None)
        assert nn.max_pool(unknown, 2, data_format="NCW").shape == (None, None, None)
        assert nn.conv(unknown, np.zeros((2, 2, 2, 1, 3), np.float32)).shape == (None, None, None, None, 3)
        with pytest.raises(GraphError, match="not an unknown number of"):
            nn.max_pool(unknown, 2)
        with pytest.raises(GraphError, match="dimensions, not 2"):
            nn.avg_pool(np.zeros((2, 2), np.float32), 2)
        with pytest.raises(GraphError, match="one of NWC"):
            nn.avg_pool(unknown, 2, data_format="NC")
        with pytest.raises(GraphError, match="count is"):
            nn.avg_pool(unknown, 2, data_format="NWC", count="all")
        with pytest.raises(GraphError, match="output_padding goes with"):
            nn.conv_transpose1d(np.zeros((1, 3, 1), "f4"), np.zeros((2, 1, 1), "f4"), output_padding=1)
