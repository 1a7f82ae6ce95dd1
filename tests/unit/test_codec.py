"""Arrays, attributes, specs and graphs survive the way there and back; damage is refused, never a crash."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nbflow as nf
from nbflow import codec
from nbflow.errors import GraphError, Rejected, StaleError
from nbflow.proto import wire_pb2 as pb
from nbflow.spec import BFLOAT16, TensorSpec, as_dtype

DTYPES = [as_dtype(n) for n in codec._NAMES]
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
# hypothesis knows numpy's own dtypes: the bits of bfloat16 are drawn as integers.
arrays = hnp.arrays(st.sampled_from([d for d in DTYPES if d != BFLOAT16]), shapes) | hnp.arrays(np.uint16, shapes).map(
    lambda bits: bits.view(BFLOAT16)
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**100), 2**100)
    | st.floats()
    | st.text(st.characters(codec="utf-8"))
    | st.sampled_from(DTYPES)
)
attributes = st.recursive(scalars | arrays, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=12)


def same(a: Any, b: Any) -> bool:
    """Equal, of one type, NaN equal to itself and 0.0 not to -0.0."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return type(a) is type(b) and bool(a == b)


@given(arrays)
def test_arrays_come_back_bit_for_bit(value: np.ndarray[Any, Any]) -> None:
    assert same(codec.decode_array(codec.encode_array(value)), value)


@given(attributes)
def test_attributes_come_back(value: Any) -> None:
    data = codec.encode_attr(value).SerializeToString()
    assert same(codec.decode_attr(pb.Attr.FromString(data)), value)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(10)[::-2],
        np.arange(6, dtype=">f4"),
        np.broadcast_to(np.float64(1.5), (3, 2)),
    ],
    ids=["transposed", "reversed", "big endian", "broadcast"],
)
def test_arrays_in_any_layout(value: np.ndarray[Any, Any]) -> None:
    back = codec.decode_array(codec.encode_array(value))
    np.testing.assert_array_equal(back, value)
    assert back.dtype == value.dtype.newbyteorder("=")


def test_numpy_scalars_become_pythons() -> None:
    assert same(codec.decode_attr(codec.encode_attr(np.float32(0.5))), 0.5)
    assert same(codec.decode_attr(codec.encode_attr(np.bool_(True))), True)


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, object(), b"bytes", lambda: None, np.array(["text"]), "\ud800"])
def test_what_cannot_be_sent_is_said_so(value: Any) -> None:
    with pytest.raises(GraphError, match=r"attribut|dtype|Unicode"):
        codec.encode_attr(value)


def test_large_arrays_go_another_way_when_there_is_one() -> None:
    put: list[np.ndarray[Any, Any]] = []
    small = np.zeros(codec.INLINE_LIMIT_BYTES - 1, np.uint8)
    large = np.zeros(codec.INLINE_LIMIT_BYTES, np.uint8)
    for value in (small, large):
        codec.encode_array(value, lambda message, array: put.append(array))
    assert [a.nbytes for a in put] == [codec.INLINE_LIMIT_BYTES]


@pytest.mark.parametrize(
    "message",
    [
        pb.Tensor(dtype="float32", shape=[2], data=b"123"),
        pb.Tensor(dtype="float32", shape=[2]),
        pb.Tensor(dtype="object", shape=[1], data=b"12345678"),
        pb.Tensor(dtype="", shape=[], data=b""),
        pb.Tensor(dtype="float32", shape=[1] * 65, data=b"1234"),
        pb.Tensor(dtype="float32", shape=[2**63, 0], data=b""),
        pb.Tensor(dtype="float32", shape=[2**32, 2**32], data=b""),
        pb.Tensor(dtype="float32", shape=[2**61], data=b""),
        pb.Tensor(dtype="float32", shape=[1], blob="00"),
    ],
    ids=["short", "missing", "object", "no dtype", "rank", "zero beside huge", "overflow", "huge", "nowhere"],
)
def test_malformed_arrays_are_refused(message: pb.Tensor) -> None:
    with pytest.raises(Rejected):
        codec.decode_array(message)


def test_attributes_nested_too_deep_are_refused() -> None:
    message = pb.Attr(none=True)
    for _ in range(codec.MAX_DEPTH + 1):
        outer = pb.Attr()
        outer.items.items.append(message)
        message = outer
    with pytest.raises(Rejected, match="deeper"):
        codec.decode_attr(message)


@given(
    st.none() | st.lists(st.none() | st.integers(0, 2**40), max_size=5).map(tuple),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_specs_come_back(shape: Any, dtype: np.dtype[Any], resource: bool) -> None:
    spec = TensorSpec(shape, dtype, resource)
    assert codec.decode_spec(codec.encode_spec(spec)) == spec


# --- graphs -----------------------------------------------------------------------------------------------------------


def build() -> nf.Graph:
    graph = nf.Graph()
    graph.seed = 7
    with graph.as_default(), nf.name_scope("größe"):
        x = nf.placeholder("float32", (None, 3), name="x")
        w = nf.Variable(np.ones((3, 2), np.float32), name="w")
        with nf.device("/job:worker/task:1"):
            y = nf.nn.relu(x @ w + 1.0)
        with nf.control_dependencies([y.node]):
            nf.sum(y, axis=0, keepdims=True)
    return graph


def test_a_graph_comes_back_with_its_digest() -> None:
    graph = build()
    for message in (graph.to_proto(), graph.to_proto().SerializeToString()):
        back = nf.Graph.from_proto(message)
        assert back.digest() == graph.digest()
        assert list(back.nodes.keys()) == list(graph.nodes.keys())
        for name, node in graph.nodes.items():
            twin = back.nodes[name]
            assert [t.spec for t in twin.outputs] == [t.spec for t in node.outputs]
            assert (twin.owner, twin.line, str(twin.device)) == (node.owner, node.line, str(node.device))
        assert back.to_proto() == graph.to_proto()


def test_a_stale_graph_is_not_saved() -> None:
    graph = build()
    next(iter(graph.nodes.values())).stale = "In[2] ran again"
    with pytest.raises(StaleError, match=r"run .* again"):
        graph.to_proto()


def damage(kind: str) -> pb.GraphDef:
    message: pb.GraphDef = build().to_proto()
    last = message.nodes[-1]
    if kind == "twice":
        message.nodes.append(last)
    elif kind == "unknown op":
        last.op = "no_such_op"
    elif kind == "unknown input":
        last.inputs[0] = "nowhere"
    elif kind == "unknown output":
        last.inputs[0] += ":7"
    elif kind == "cycle":
        last.inputs[0] = last.name
    elif kind == "device":
        last.device = "/moon:1"
    elif kind == "version":
        message.version = 99
    elif kind == "outputs":
        last.outputs.append(last.outputs[0])
    elif kind == "attributes":
        last.attrs.clear()
        last.attrs["axis"].text = "sideways"
    return message


@pytest.mark.parametrize(
    "kind",
    ["twice", "unknown op", "unknown input", "unknown output", "cycle", "device", "version", "outputs", "attributes"],
)
def test_a_graph_that_does_not_hold_together_is_refused(kind: str) -> None:
    with pytest.raises(Rejected):
        nf.Graph.from_proto(damage(kind))


@given(st.data())
def test_damaged_bytes_of_a_graph_are_refused_or_another_graph(data: st.DataObject) -> None:
    raw = bytearray(build().to_proto().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Rejected):
        nf.Graph.from_proto(bytes(raw[: data.draw(st.integers(0, len(raw)))])).digest()
