"""Images: resizing against ONNX's reference, what is drawn at random, and errors."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.errors import DTypeError, GraphError, OpError, ShapeError
from nbflow.graph import Graph
from nbflow.ops._build import build
from nbflow.testing import Evaluator, evaluate

A = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)

COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
RESIZES: list[dict[str, Any]] = [
    *({"mode": "linear", "coordinate_transformation_mode": c, "antialias": a} for c, a in product(COORDINATES, (0, 1))),
    *({"mode": "cubic", "coordinate_transformation_mode": c, "exclude_outside": e, "cubic_coeff_a": -0.5}
      for c, e in product(COORDINATES, (0, 1))),
    *({"mode": "nearest", "coordinate_transformation_mode": c, "nearest_mode": r}
      for c, r in product(COORDINATES, ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))),
    {"mode": "cubic", "antialias": 1, "exclude_outside": 1},
]  # fmt: skip


@pytest.mark.parametrize("how", RESIZES, ids=lambda how: "-".join(str(v) for v in how.values()))
@pytest.mark.parametrize("scales", [(2.6, 0.6), (0.45, 1.0)])
def test_resizing_is_that_of_onnx(how: dict[str, Any], scales: tuple[float, float]) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator  # an optional dependency

    x = RNG.normal(size=(5, 6)).astype(np.float32)
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Resize", ["x", "", "s"], ["y"], **how)]
    infos = [value("x", 1, [5, 6]), value("s", 1, [2])], [value("y", 1, [None, None])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", *infos))
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x, "s": np.array(scales, np.float32)})
    with Graph().as_default():
        made = nf.image.resample(
            x,
            (0, 1),
            scales=[float(np.float32(s)) for s in scales],
            method=how["mode"],
            coordinates=how.get("coordinate_transformation_mode", "half_pixel"),
            rounding=how.get("nearest_mode", "round_prefer_floor"),
            cubic=how.get("cubic_coeff_a", -0.75),
            exclude_outside=bool(how.get("exclude_outside", 0)),
            antialias=bool(how.get("antialias", 0)),
        )
        assert made.shape == expected.shape
        np.testing.assert_allclose(evaluate(made), expected, rtol=1e-5, atol=1e-5)


def test_resizing_with_sizes_and_scales_of_the_run() -> None:
    x = RNG.normal(size=(1, 4, 6, 2))
    with Graph().as_default():
        images = nf.placeholder("float64", (None, None, None, 2))
        sizes = nf.placeholder("int64", (2,))
        scales = nf.placeholder("float32", (2,))
        made = [nf.image.resample(images, (1, 2), sizes), nf.image.resample(images, (1, 2), scales=scales)]
        assert [m.shape for m in made] == [(None, None, None, 2)] * 2
        slopes = [nf.gradients(nf.sum(m), [images])[0] for m in made]
        feeds = {images: x, sizes: np.array([2, 9]), scales: np.array([0.5, 1.5], np.float32)}
        first, second, *back = Evaluator().run([*made, *slopes], feeds)
        assert first.shape == (1, 2, 9, 2)
        np.testing.assert_allclose(first, second)
        np.testing.assert_allclose(back[0], back[1])
        np.testing.assert_allclose(back[0].sum(), first.size)  # weights add up to 1


def test_errors_of_resizing() -> None:
    with Graph().as_default():
        x = nf.placeholder("float32", (None, 4, 4, 3))
        with pytest.raises(GraphError, match="sizes or scales"):
            nf.image.resample(x, (1,))
        with pytest.raises(GraphError, match="roi"):
            nf.image.resample(x, (1,), (2,), coordinates="tf_crop_and_resize")
        with pytest.raises(GraphError, match="'bilinear'"):
            nf.image.resize(x, (2, 2), "lanczos")
        with pytest.raises(GraphError, match="sizes are positive"):
            nf.image.resize(x, (0, 2))
        with pytest.raises(GraphError, match="2 numbers"):
            nf.image.resize(x, (2, 2, 2))
        with pytest.raises(DTypeError, match="linear interpolation takes floats"):
            nf.image.resize(nf.placeholder("uint8", (None, 4, 4, 3), name="bytes"), (2, 2))
        with pytest.raises(ShapeError, match="four dimensions"):
            nf.image.resize(np.zeros((4, 4)), (2, 2))
        with pytest.raises(ShapeError, match=r"shape \(2,\)"):
            nf.image.resize(x, nf.placeholder("int64", (3,), name="size"))
        sizes = nf.placeholder("int64", (1,), name="run")
        line = nf.placeholder("float64", (None,), name="line")
        with pytest.raises(OpError, match="cannot be resized"):
            evaluate(nf.image.resample(line, (0,), sizes), {line: np.zeros(0), sizes: [2]})


def test_random_crops_differ_between_images_and_steps() -> None:
    rows, columns = np.mgrid[:20, :30]
    x = np.broadcast_to((rows * 100 + columns)[None, :, :, None], (16, 20, 30, 1)).astype(np.int64)
    with Graph().as_default():
        fed = nf.placeholder("int64", (None, None, None, 1))
        made = nf.image.random_crop(fed, (4, 5))
        assert made.shape == (None, 4, 5, 1)
        runner = Evaluator()
        first, second = runner.run(made, {fed: x}), runner.run(made, {fed: x})
        corners = first[:, 0, 0, 0]
        assert len(set(corners.tolist())) > 8
        assert (corners != second[:, 0, 0, 0]).any()
        for corner, crop in zip(corners, first, strict=True):
            top, left = divmod(int(corner), 100)
            np.testing.assert_array_equal(crop, x[0, top : top + 4, left : left + 5])


def test_random_flips_are_drawn_for_each_image() -> None:
    x = RNG.normal(size=(40, 2, 3, 1)).astype(np.float32)
    with Graph().as_default():
        found = evaluate(nf.image.random_flip_left_right(x, 0.5))
        flipped = [np.array_equal(a, b[:, ::-1]) for a, b in zip(found, x, strict=True)]
        kept = [np.array_equal(a, b) for a, b in zip(found, x, strict=True)]
        assert all(a != b for a, b in zip(flipped, kept, strict=True))
        assert 8 < sum(flipped) < 32
        with pytest.raises(GraphError, match="probability"):
            nf.image.random_flip_up_down(x, 1.5)


def test_errors_of_cutting() -> None:
    with Graph().as_default():
        x = nf.placeholder("float32", (None, 4, 5, 3))
        with pytest.raises(ShapeError, match="rows 2 to 5 are not inside"):
            nf.image.crop(x, 2, 0, 3, 3)
        with pytest.raises(ShapeError, match="do not fit"):
            nf.image.pad_to(x, (3, 9))
        with pytest.raises(ShapeError, match="crop of 5 by 5"):
            nf.image.random_crop(x, (5, 5))
        with pytest.raises(ShapeError, match="height and width"):
            nf.image.central_crop(nf.placeholder("float32", (None, None, 5, 3), name="open"), 0.5)
        with pytest.raises(GraphError, match="fraction"):
            nf.image.central_crop(x, 1.5)
        with pytest.raises(ShapeError, match="do not divide into blocks of 2"):
            nf.image.space_to_depth(x, 2)
        with pytest.raises(ShapeError, match="do not divide by 2"):
            nf.image.depth_to_space(x, 2)
        with pytest.raises(ShapeError, match="3 channels"):
            nf.image.rgb_to_hsv(np.zeros((2, 2, 4), np.float32))


def test_errors_of_boxes_grids_and_patches() -> None:
    with Graph().as_default():
        x = nf.placeholder("float32", (None, 4, 5, 3))
        boxes, ids = np.zeros((2, 4), np.float32), np.zeros(2, np.int64)
        with pytest.raises(ShapeError, match=r"boxes \(m, 4\) and scores"):
            nf.image.non_max_suppression(np.zeros((1, 2, 4), "f4"), np.zeros((2, 2), "f4"), 3)
        with pytest.raises(ShapeError, match=r"not \(2, 5, 4\) and \(2, 1, 6\)"):
            nf.image.non_max_suppression(np.zeros((2, 5, 4), "f4"), np.zeros((2, 1, 6), "f4"), 3)
        with pytest.raises(ShapeError, match=r"boxes are \(m, 4\)"):
            nf.image.roi_align(x, boxes, ids[:1], 2)
        with pytest.raises(OpError, match="there are 0 to 0"):
            evaluate(nf.image.roi_align(x, boxes, ids + 1, 2), {x: np.zeros((1, 4, 5, 3), np.float32)})
        with pytest.raises(GraphError, match="mode 'avg' only"):
            nf.gradients(nf.image.roi_align(x, boxes, ids, 2, mode="max"), [x])
        with pytest.raises(ShapeError, match="2 numbers in its last dimension"):
            nf.image.grid_sample(x, np.zeros((1, 2, 2, 3), "f4"))
        with pytest.raises(GraphError, match="outside is one of zeros"):
            nf.image.grid_sample(x, np.zeros((1, 2, 2, 2), "f4"), outside="wrap")
        with pytest.raises(ShapeError, match="affine_grid takes maps"):
            nf.image.affine_grid(np.zeros((1, 2, 3), "f4"), (2, 2, 2))
        with pytest.raises(ShapeError, match="crop_and_resize takes boxes"):
            nf.image.crop_and_resize(x, boxes[:, :3], ids, (2, 2))
        with pytest.raises(ShapeError, match="do not divide by its 4 places"):
            nf.image.fold(np.zeros((1, 3, 4, 6), "f4"), (4, 5), 2)
        with pytest.raises(ShapeError, match=r"windows \(1, 2, 2, 4\) are not those of images of \(4, 3\)"):
            nf.image.fold(np.zeros((1, 2, 2, 4), "f4"), (4, 3), 2)


def test_half_precision_finds_every_pixel() -> None:
    """Between 256 and 512 bfloat16 has only each second integer: places must not be computed in it."""
    with Graph().as_default():
        row = nf.astype(nf.constant(RNG.integers(0, 200, (1, 1, 400, 1)).astype(np.float32)), "bfloat16")
        boxes = nf.astype(nf.constant([[0.0, 0.0, 1.0, 1.0]]), "bfloat16")
        theta = nf.astype(nf.constant([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), "bfloat16")
        cut = nf.image.crop_and_resize(row, boxes, nf.constant([0]), (1, 400))
        steps = np.stack([(np.arange(400) * 2 + 1) / 400 - 1, np.zeros(400)], axis=-1)[None, None].astype(np.float32)
        sampled = nf.image.grid_sample(row, nf.constant(steps), data_format="NHWC")
        grid = nf.image.affine_grid(theta, (1, 400))
        assert {t.dtype.name for t in (cut, sampled, grid)} == {"bfloat16"}
        found = evaluate([nf.astype(t, "float32") for t in (row, cut, sampled, grid)])
    for image in found[1:3]:
        np.testing.assert_allclose(image, found[0], rtol=2**-8, atol=0.01)
    np.testing.assert_allclose(found[3][0, 0], steps[0, 0], atol=2**-8)


def test_the_gradient_of_roi_align_takes_what_roi_align_does() -> None:
    with Graph().as_default():
        attrs = {"size": (2, 2), "sampling": 1, "scale": 1.0, "half_pixel": True, "mode": "avg", "data_format": "NHWC"}
        boxes, ids = nf.constant(np.zeros((1, 4), np.float32)), nf.constant([0])
        dy = nf.constant(np.zeros((1, 2, 2, 3), np.complex64))
        with pytest.raises(DTypeError, match="images are floating, not complex64"):
            build("roi_align_grad", (dy, boxes, ids), {**attrs, "shape": (1, 4, 4, 3)})


def test_boxes_of_no_number_and_half_precision() -> None:
    with Graph().as_default():
        x = nf.constant(RNG.normal(size=(1, 4, 4, 2)).astype(np.float16))
        none = nf.image.roi_align(x, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 3)
        assert evaluate(none).shape == (0, 3, 3, 2)
        one = nf.image.roi_align(x, np.array([[0, 0, 4, 4]], np.float32), np.zeros(1, np.int64), 1)
        assert one.dtype == np.float16
        whole = evaluate(nf.mean(nf.astype(x, "float32"), axis=(0, 1, 2)))
        np.testing.assert_allclose(evaluate(one).ravel(), whole, rtol=5e-3, atol=2e-3)
        kept = nf.image.non_max_suppression(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 5)
        assert evaluate(kept).shape == (0,)
