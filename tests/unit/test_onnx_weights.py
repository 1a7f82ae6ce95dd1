"""Models as exporters really write them: weights as Constant nodes, -1 for free dimensions."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import nbflow as nf


def test_weights_as_constant_nodes_and_negative_dimensions() -> None:
    weights = np.arange(6, dtype="float32").reshape(2, 3)

    def constant(name: str, value: np.ndarray) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))

    nodes = [
        constant("w", weights),
        constant("two", np.array(2, "float32")),
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Mul", ["xw", "two"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [-1, size]) for n, size in (("x", 2), ("y", 3))]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    with nf.Graph().as_default():
        fixed = nf.onnx.load(model)
        assert fixed.variables == {}
        loaded = nf.onnx.load(model, name="trained", trainable=True)
        assert set(loaded.variables) == {"w"}
        x, y = loaded.inputs["x"], loaded.outputs["y"]
        assert x.shape == (None, 2)
        step = nf.optim.SGD(0.5).minimize(nf.sum(y))
        value = np.ones((1, 2), "float32")
        np.testing.assert_array_equal(nf.run(y, {x: value}), value @ weights * 2)
        nf.run(step, {x: value})
        np.testing.assert_array_equal(nf.run(y, {x: value}), value @ (weights - 1) * 2)
