"""`nf.onnx.load`: names and scopes, weights that train, opsets, what is bound, and errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nbflow as nf
from nbflow.errors import DTypeError, GraphError, NbflowError

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture(autouse=True)
def graph() -> Iterator[nf.Graph]:
    with nf.Graph().as_default() as made:
        yield made


def info(name: str, kind: int = FLOAT, shape: Any = ("n", 2)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 21,
    **more: Any,
) -> onnx.ModelProto:
    given = [numpy_helper.from_array(v, n) for n, v in (weights or {}).items()]
    body = helper.make_graph(nodes, "net", inputs, outputs, initializer=given)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset), *more.pop("domains", [])], **more)


def network(opset: int = 21) -> onnx.ModelProto:
    """y = relu(x w + b)."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(2, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="/fc/MatMul"),
        helper.make_node("Add", ["h", "b"], ["s"], name="/fc/Add"),
        helper.make_node("Relu", ["s"], ["y"], name="act:0"),
    ]
    return model_of(nodes, [info("x")], [info("y", shape=("n", 3))], weights, opset)


def run(fetches: Any, feeds: Any = None) -> Any:
    with nf.Session() as session:
        return session.run(fetches, feeds)


# --- names -----------------------------------------------------------------------------------------------------------


def test_nodes_stand_under_a_scope_with_the_names_of_the_file(tmp_path: Path, graph: nf.Graph) -> None:
    path = tmp_path / "small net.onnx"
    onnx.save(network(), path)
    model = nf.onnx.load(path)
    assert model.scope == "small_net"
    assert all(n.name.startswith("small_net/") for n in graph.nodes)
    assert model.inputs["x"].name == "small_net/x"
    assert model.inputs["x"].shape == (None, 2)
    assert model.outputs["y"].shape == (None, 3)
    assert graph.node("small_net/fc/MatMul/matmul").op == "matmul"
    assert graph.node("small_net/act_0/relu").op == "relu"
    x = np.array([[1, -1]], np.float32)
    w = numpy_helper.to_array(network().graph.initializer[0])
    np.testing.assert_allclose(run(model.outputs["y"], {model.inputs["x"]: x}), np.maximum(x @ w, 0), rtol=1e-6)


def test_a_model_can_be_loaded_twice_and_inside_a_scope() -> None:
    first, second = (nf.onnx.load(network()) for _ in range(2))
    assert (first.scope, second.scope) == ("net", "net.1")
    with nf.name_scope("left"):
        third = nf.onnx.load(network(), name="tower")
    assert third.scope == "left/tower"
    assert third.outputs["y"].name.startswith("left/tower/")


def test_bytes_and_protos_are_taken_too() -> None:
    from_bytes = nf.onnx.load(network().SerializeToString(), name="a")
    from_proto = nf.onnx.load(network(), name="b")
    x = np.ones((3, 2), np.float32)
    feeds = {from_bytes.inputs["x"]: x, from_proto.inputs["x"]: x}
    a, b = run([from_bytes.outputs["y"], from_proto.outputs["y"]], feeds)
    np.testing.assert_array_equal(a, b)


# --- training --------------------------------------------------------------------------------------------------------


def test_weights_train_when_asked() -> None:
    model = nf.onnx.load(network(), trainable=True)
    assert set(model.variables) == {"w", "b"}
    assert {v.name for v in nf.trainable_variables()} == {"net/w", "net/b"}
    loss = nf.mean(nf.square(model.outputs["y"] - 1.0))
    step = nf.optim.SGD(0.1).minimize(loss)
    x = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)
    with nf.Session() as session:
        before = session.run(loss, {model.inputs["x"]: x})
        for _ in range(20):
            session.run(step, {model.inputs["x"]: x})
        assert session.run(loss, {model.inputs["x"]: x}) < 0.8 * before


def test_weights_are_constants_unless_asked_and_a_function_chooses(graph: nf.Graph) -> None:
    plain = nf.onnx.load(network())
    assert plain.variables == {}
    assert not [n for n in graph.nodes if n.op == "variable"]
    chosen = nf.onnx.load(network(), name="chosen", trainable=lambda name: name == "b")
    assert set(chosen.variables) == {"b"}


def test_averages_of_batch_norm_are_kept_but_not_trained() -> None:
    ones = np.ones(2, np.float32)
    node = helper.make_node("BatchNormalization", ["x", "scale", "offset", "mean", "var"], ["y"])
    weights = dict.fromkeys(("scale", "offset", "mean", "var"), ones)
    model = nf.onnx.load(model_of([node], [info("x")], [info("y")], weights), trainable=True)
    assert {n for n, v in model.variables.items() if v.trainable} == {"scale", "offset"}
    assert set(model.variables) == {"scale", "offset", "mean", "var"}


def test_a_weight_that_decides_shapes_does_so_as_it_is_in_the_file() -> None:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")
    weights = {"scales": np.array([1, 1, 2, 2], np.float32)}
    ends = [info("x", shape=(1, 1, 2, 2))], [info("y", shape=(1, 1, 4, 4))]
    model = nf.onnx.load(model_of([node], *ends, weights), trainable=True)
    assert model.outputs["y"].shape == (1, 1, 4, 4)


# --- opsets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", range(7, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_from_7_on(opset: int) -> None:
    """A layer, and what changed its form over the years: axes and shapes that moved from attributes to inputs."""
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "axes": np.array([1]), "shape": np.array([-1])}
    reduced = (
        helper.make_node("ReduceSum", ["h", "axes"], ["s"], keepdims=0)
        if opset >= 13
        else helper.make_node("ReduceSum", ["h"], ["s"], keepdims=0, axes=[1])
    )
    wide = (
        helper.make_node("Unsqueeze", ["s", "axes"], ["u"])
        if opset >= 13
        else helper.make_node("Unsqueeze", ["s"], ["u"], axes=[1])
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        reduced,
        wide,
        helper.make_node("Softmax", ["u"], ["p"], axis=1),
        helper.make_node("Mul", ["p", "u"], ["q"]),
        helper.make_node("Reshape", ["q", "shape"], ["y"]),
    ]
    used = weights if opset >= 13 else {k: weights[k] for k in ("w", "shape")}
    model = nf.onnx.load(model_of(nodes, [info("x")], [info("y", shape=("n",))], used, opset))
    x = np.array([[1, 2], [3, 4]], np.float32)
    np.testing.assert_allclose(run(model.outputs["y"], {model.inputs["x"]: x}), (x @ weights["w"]).sum(axis=1))


def test_an_opset_of_the_future_is_refused() -> None:
    with pytest.raises(GraphError, match=r"opset 99; the installed onnx .* install a newer onnx"):
        nf.onnx.load(network(opset=99))


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_shapes_that_a_model_computes_are_known_at_import() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["rows"]),
        helper.make_node("Concat", ["rows", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "rest": np.array([-1, 2])}
    model = nf.onnx.load(model_of(nodes, [info("x", shape=(3, 4))], [info("y", shape=(3, 2, 2))], weights))
    assert model.outputs["y"].shape == (3, 2, 2)


def test_shapes_known_only_at_run_time_stay_open() -> None:
    nodes = [helper.make_node("Reshape", ["x", "t"], ["y"])]
    model = nf.onnx.load(model_of(nodes, [info("x"), info("t", INT64, (2,))], [info("y", shape=("a", "b"))]))
    assert model.outputs["y"].shape == (None, None)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    feeds = {model.inputs["x"]: x, model.inputs["t"]: np.array([0, -1])}
    np.testing.assert_array_equal(run(model.outputs["y"], feeds), x)


def test_gradients_pass_slices_pads_and_tiles_of_unknown_size() -> None:
    nodes = [
        helper.make_node("Slice", ["x", "a", "b", "axes"], ["s"]),
        helper.make_node("Pad", ["s", "pads"], ["p"]),
        helper.make_node("Tile", ["p", "times"], ["y"]),
    ]
    ends = [info("x"), *(info(n, INT64, (k,)) for n, k in (("a", 1), ("b", 1), ("pads", 4), ("times", 2)))]
    model = nf.onnx.load(model_of(nodes, ends, [info("y", shape=("c", "d"))], {"axes": np.array([0])}))
    (grad,) = nf.gradients(model.outputs["y"], model.inputs["x"])
    feeds = {"x": np.ones((4, 2), np.float32), "a": [1], "b": [3], "pads": [1, 0, 0, 1], "times": [2, 1]}
    found = run(grad, {model.inputs[n]: np.asarray(v) for n, v in feeds.items()})
    np.testing.assert_array_equal(found, [[0, 0], [2, 2], [2, 2], [0, 0]])


# --- what is bound ---------------------------------------------------------------------------------------------------


def test_tensors_stand_for_inputs() -> None:
    x = nf.placeholder("float32", (5, 2), name="mine")
    model = nf.onnx.load(network(), inputs={"x": x * 2.0})
    assert model.outputs["y"].shape == (5, 3)
    assert run(model.outputs["y"], {x: np.ones((5, 2), np.float32)}).shape == (5, 3)
    with pytest.raises(GraphError, match=r"no input 'z'; it has x"):
        nf.onnx.load(network(), inputs={"z": x})


def test_an_input_that_decides_the_graph_must_be_bound() -> None:
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0, name="total")
    model = model_of([node], [info("x"), info("axes", INT64, (1,))], [info("y", shape=("n",))])
    with pytest.raises(GraphError, match=r"input 1 of ReduceSum 'total'.*inputs=\) arrays for net/axes"):
        nf.onnx.load(model)
    found = nf.onnx.load(model, name="bound", inputs={"axes": [1]})
    x = np.array([[1, 2], [3, 4]], np.float32)
    np.testing.assert_array_equal(run(found.outputs["y"], {found.inputs["x"]: x}), [3, 7])


# --- control flow and functions --------------------------------------------------------------------------------------


def branches() -> onnx.ModelProto:
    """y = relu(x) where the sum of x is positive, -x elsewhere."""
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "then", [], [info("t")])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [info("e")])
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    return model_of(nodes, [info("x")], [info("y")], {"zero": np.zeros((), np.float32)})


def test_branches_run_at_run_time_and_have_gradients(graph: nf.Graph) -> None:
    model = nf.onnx.load(branches())
    assert any(n.op == "cond" for n in graph.nodes)
    (grad,) = nf.gradients(model.outputs["y"], model.inputs["x"])
    for value, wanted, slope in (([[3, -1]], [[3, 0]], [[1, 0]]), ([[-3, 1]], [[3, -1]], [[-1, -1]])):
        y, g = run([model.outputs["y"], grad], {model.inputs["x"]: np.array(value, np.float32)})
        np.testing.assert_array_equal(y, wanted)
        np.testing.assert_array_equal(g, slope)


def test_functions_that_a_model_brings_are_expanded() -> None:
    body = helper.make_function(
        "mine",
        "Scaled",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["k"]),
            helper.make_node("Mul", ["a", "k"], ["b"]),
        ],
        [helper.make_opsetid("", 21)],
        ["factor"],
    )
    reference = onnx.AttributeProto(name="value_float", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT)
    body.node[0].attribute.append(reference)
    node = helper.make_node("Scaled", ["x"], ["y"], domain="mine", factor=3.0)
    model = model_of([node], [info("x")], [info("y")], domains=[helper.make_opsetid("mine", 1)], functions=[body])
    found = nf.onnx.load(model)
    x = np.array([[1, 2]], np.float32)
    np.testing.assert_array_equal(run(found.outputs["y"], {found.inputs["x"]: x}), x * 3)


def test_operators_without_a_translator_use_the_body_that_onnx_gives(graph: nf.Graph) -> None:
    node = helper.make_node("LayerNormalization", ["x", "w"], ["y"])
    found = nf.onnx.load(model_of([node], [info("x")], [info("y")], {"w": np.ones(2, np.float32)}))
    y = run(found.outputs["y"], {found.inputs["x"]: np.array([[1, 3]], np.float32)})
    np.testing.assert_allclose(y, [[-1, 1]], atol=1e-4)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_unknown_operator_is_named_with_its_domain_opset_and_node() -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="odd", domain="com.example")
    model = model_of([node], [info("x")], [info("y")], domains=[helper.make_opsetid("com.example", 3)])
    with pytest.raises(GraphError, match=r"operator Frobnicate of domain 'com.example', opset 3, used by .* 'odd'"):
        nf.onnx.load(model)


def test_errors_say_which_node_was_imported() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv1")
    model = model_of([node], [info("x", shape=(1, 3, 4, 4))], [info("y")], {"w": np.ones((2, 5, 3, 3), np.float32)})
    with pytest.raises(GraphError, match="3 channels") as caught:
        nf.onnx.load(model)
    assert "while importing the ONNX node Conv conv1" in caught.value.__notes__


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"this is not a model")
    with pytest.raises(GraphError, match=r"not an ONNX model"):
        nf.onnx.load(bad)
    with pytest.raises(GraphError, match="no opset or no outputs"):
        nf.onnx.load(b"")
    with pytest.raises(FileNotFoundError):
        nf.onnx.load(tmp_path / "missing.onnx")
    torn = network()
    del torn.graph.node[0]
    with pytest.raises(GraphError, match="uses the name 'h', which nothing before it gives"):
        nf.onnx.load(torn)


def test_strings_are_refused() -> None:
    with pytest.raises(DTypeError, match="input 'x' holds strings"):
        nf.onnx.load(model_of([], [info("x", TensorProto.STRING)], [info("x", TensorProto.STRING)]))


def test_importing_nbflow_does_not_import_onnx_and_its_absence_is_explained() -> None:
    code = (
        "import sys, nbflow as nf\n"
        "assert 'onnx' not in sys.modules\n"
        "sys.modules['onnx'] = None\n"
        "try:\n    nf.onnx.load\n"
        "except ImportError as error:\n    assert 'nbflow[onnx]' in str(error), error\n"
        "else:\n    raise AssertionError('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def with_weights_in(location: str) -> bytes:
    """A network whose matrix is said to be in another file."""
    model = network()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("location", ["../../outside", "/etc/hostname", "missing.bin"])
def test_weights_in_other_files_stay_in_the_folder(tmp_path: Path, location: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_weights_in(location))
    with pytest.raises(GraphError, match=r"not an ONNX model: .*tensor name: w"):
        nf.onnx.load(path)


def test_a_tensor_that_lies_about_its_size() -> None:
    model = network()
    model.graph.initializer[0].dims[0] = 10**12
    with pytest.raises(GraphError, match=r"damaged .*'w' of shape \[1000000000000,3\]"):
        nf.onnx.load(model)


def test_damaged_files_are_refused() -> None:
    """Cut anywhere, or with bytes changed: it loads, or it is an error of ours."""
    whole = network().SerializeToString()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole[: random.integers(len(whole))] if random.random() < 0.4 else whole)
        for _ in range(random.integers(3)):
            if damaged:
                damaged[random.integers(len(damaged))] = random.integers(256)
        with nf.Graph().as_default():
            try:
                nf.onnx.load(bytes(damaged))
            except NbflowError:
                refused += 1
    assert refused > 75
