"""Arrays, attributes, specs and graphs as protobuf messages, and back.

Decoding trusts nothing: whatever does not hold together raises Rejected, and nothing is ever unpickled. Bytes of 64 KiB
and more stay outside protobuf when the caller gives a place for them (`Put`, `Get`): `wire.py` uses content-addressed
blobs for plans, `nbflow_workers` shared memory or raw frames for steps.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from nbflow import graph as graphs
from nbflow import op as ops
from nbflow.body import ARGUMENT, Body
from nbflow.device import parse_device
from nbflow.errors import GraphError, NbflowError, Rejected, StaleError
from nbflow.graph import Graph, Node, Owner, Tensor
from nbflow.proto import wire_pb2 as pb
from nbflow.spec import NARROW, Shape, TensorSpec, as_dtype

HostArray = np.ndarray[Any, Any]
# Stores an array's bytes somewhere else and notes in the message where.
Put = Callable[[pb.Tensor, HostArray], None]
# Finds the array that a message only refers to. Raises Rejected when it is not there.
Get = Callable[[pb.Tensor], HostArray]

# Below this, copying inside protobuf costs less than another message (measured: PERFORMANCE figures, point 5).
INLINE_LIMIT_BYTES = 64 * 1024
# numpy allows 64 dimensions; more is an attack or a damaged message.
MAX_RANK = 64
# Deep nesting of attributes would exhaust the interpreter's stack before it means anything.
MAX_DEPTH = 32
GRAPH_VERSION = 1

_NAMES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
)
_DTYPES: dict[str, np.dtype[Any]] = {name: as_dtype(name) for name in _NAMES} | {n: d for d, n in NARROW.items()}
# numpy works the name of a dtype out anew each time it is asked, which takes longer than sending a scalar should.
_NAMES_OF: dict[np.dtype[Any], str] = {dtype: name for name, dtype in _DTYPES.items()}
_INT64 = range(-(2**63), 2**63)


# --- arrays -----------------------------------------------------------------------------------------------------------


def encode_dtype(dtype: np.dtype[Any]) -> str:
    """The name of `dtype` on the wire. Raises GraphError for what no device computes with."""
    found = _NAMES_OF.get(dtype)
    if found is not None:
        return found
    if dtype.name not in _DTYPES:
        raise GraphError(f"dtype {dtype} cannot be sent; dtypes on the wire are {', '.join(_DTYPES)}")
    return dtype.name


def decode_dtype(name: str) -> np.dtype[Any]:
    """The dtype called `name`. Raises Rejected for an unknown one."""
    found = _DTYPES.get(name)
    if found is None:
        raise Rejected(f"not a dtype on the wire: {name[:40]!r}; known are {', '.join(_DTYPES)}")
    return found


def encode_array(value: HostArray, put: Put | None = None, *, to: pb.Tensor | None = None) -> pb.Tensor:
    """`value` as a message; its bytes go through `put` from 64 KiB on, when given."""
    message = pb.Tensor() if to is None else to
    message.dtype = encode_dtype(value.dtype)
    message.shape.extend(value.shape)
    if put is not None and value.nbytes >= INLINE_LIMIT_BYTES:
        put(message, value)
    else:
        message.data = _little_endian(value).tobytes()
    return message


def _little_endian(value: HostArray) -> HostArray:
    if value.dtype.byteorder == ">" or (value.dtype.byteorder == "=" and sys.byteorder == "big"):
        return value.astype(value.dtype.newbyteorder("<"))
    return value


def array_layout(message: pb.Tensor) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """(dtype, shape, bytes) of the array that `message` describes. Raises Rejected for nonsense."""
    dtype = decode_dtype(message.dtype)
    shape = tuple(message.shape)
    if len(shape) > MAX_RANK:
        raise Rejected(f"an array of {len(shape)} dimensions was sent; at most {MAX_RANK} are allowed")
    nbytes = math.prod(shape) * dtype.itemsize
    # A zero dimension beside huge ones is legal for numpy only while the others fit its index type.
    if any(d >= 2**62 for d in shape) or math.prod(d for d in shape if d) * dtype.itemsize >= 2**62:
        raise Rejected(f"an array of shape {shape} was sent; that is no memory's size")
    return dtype, shape, nbytes


def array_from(message: pb.Tensor, data: bytes | bytearray | memoryview) -> HostArray:
    """The array over `data` (no copy: read-only when `data` is). Raises Rejected when the sizes do not fit."""
    dtype, shape, nbytes = array_layout(message)
    if len(data) != nbytes:
        raise Rejected(f"an array {dtype}{list(shape)} needs {nbytes} bytes, {len(data)} were sent")
    flat = np.frombuffer(data, dtype=dtype.newbyteorder("<")) if nbytes else np.empty(0, dtype)
    return flat.astype(dtype, copy=False).reshape(shape)


def decode_array(message: pb.Tensor, get: Get | None = None) -> HostArray:
    """The array of `message`. Raises Rejected when it is malformed or refers to bytes that are not there."""
    kind = message.WhichOneof("content")
    if kind == "data":
        # Memory of its own: what arrives may become a variable's value, which is updated in place.
        return array_from(message, bytearray(message.data))
    if kind is None or get is None:
        raise Rejected(f"an array without bytes was sent (its content is {kind or 'missing'})")
    dtype, shape, _ = array_layout(message)
    value = get(message)
    if value.dtype != dtype or value.shape != shape:
        raise Rejected(f"an array {dtype}{list(shape)} was announced, {value.dtype}{list(value.shape)} came")
    return value


# --- specs ------------------------------------------------------------------------------------------------------------


def encode_spec(spec: TensorSpec) -> pb.TensorSpec:
    """A TensorSpec as a message."""
    shape = [] if spec.shape is None else [-1 if d is None else d for d in spec.shape]
    return pb.TensorSpec(
        dtype=encode_dtype(spec.dtype), known_rank=spec.shape is not None, shape=shape, resource=spec.resource
    )


def decode_spec(message: pb.TensorSpec) -> TensorSpec:
    """A TensorSpec from a message. Raises Rejected."""
    if any(d < -1 for d in message.shape) or len(message.shape) > MAX_RANK:
        raise Rejected(f"not a shape: {list(message.shape)[:8]}")
    shape: Shape = tuple(None if d == -1 else d for d in message.shape) if message.known_rank else None
    return TensorSpec(shape, decode_dtype(message.dtype), message.resource)


# --- attributes -------------------------------------------------------------------------------------------------------


def encode_attr(value: Any, put: Put | None = None, *, to: pb.Attr | None = None) -> pb.Attr:
    """An attribute as a message. Raises GraphError for anything but None, bool, int, float, str, dtype, ndarray, bodies
    and tuples of these. numpy's scalars become Python's."""
    message = pb.Attr() if to is None else to
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        message.none = True
    elif isinstance(value, bool | int | float):
        _encode_number(value, message)
    elif isinstance(value, str):
        message.text = _text(value)
    elif isinstance(value, np.dtype):
        message.dtype = encode_dtype(value)
    elif isinstance(value, np.ndarray):
        encode_array(value, put, to=message.array)
    elif isinstance(value, Body):
        message.body.SetInParent()
        _encode_body(value, message.body)
    elif isinstance(value, tuple):
        message.items.SetInParent()
        for item in value:
            encode_attr(item, put, to=message.items.items.add())
    else:
        raise GraphError(
            f"an attribute cannot be a {type(value).__name__} ({value!r:.80}); "
            "attributes are None, bool, int, float, str, dtype, ndarray, bodies and tuples of these"
        )
    return message


def _encode_number(value: bool | int | float, message: pb.Attr) -> None:
    if isinstance(value, bool):
        message.boolean = value
    elif isinstance(value, float):
        message.real = value
    elif value in _INT64:
        message.integer = value
    else:
        message.big = f"{value:x}"


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise GraphError(f"the text {value!r:.80} is not Unicode and cannot be sent: {error.reason}") from None
    return value


def decode_attr(message: pb.Attr, get: Get | None = None, *, depth: int = 0) -> Any:
    """An attribute from a message. Raises Rejected."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise Rejected("an attribute without a value was sent")
    if kind == "none":
        return None
    if kind == "big":
        return _big(message.big)
    if kind == "dtype":
        return decode_dtype(message.dtype)
    if kind == "array":
        return decode_array(message.array, get)
    if kind == "body":
        return _decode_body(message.body)
    if kind == "items":
        if depth >= MAX_DEPTH:
            raise Rejected(f"attributes nested deeper than {MAX_DEPTH} were sent")
        return tuple(decode_attr(item, get, depth=depth + 1) for item in message.items.items)
    return getattr(message, kind)


def _big(text: str) -> int:
    try:
        # 4096 hex digits are far beyond any seed, and cheap to parse.
        if len(text) > 4096:
            raise ValueError
        return int(text, 16)
    except ValueError:
        raise Rejected(f"not a large integer: {text[:40]!r}") from None


def encode_attrs(attrs: Mapping[str, Any], target: Any, put: Put | None = None) -> None:
    """Fills a `map<string, Attr>` field."""
    for key, value in attrs.items():
        encode_attr(value, put, to=target[key])


def decode_attrs(source: Mapping[str, pb.Attr], get: Get | None = None) -> dict[str, Any]:
    """A dict from a `map<string, Attr>` field, by sorted name. Raises Rejected."""
    return {key: decode_attr(source[key], get) for key in sorted(source)}


# --- graphs -----------------------------------------------------------------------------------------------------------


def graph_to_proto(graph: Graph, put: Put | None = None) -> pb.GraphDef:
    """The whole graph; values of variables are not in it. Large constants go through `put`, when given.

    Raises StaleError when an op must be made anew first.
    """
    message = pb.GraphDef(version=GRAPH_VERSION, seed=graph.seed, generations=graph.generations)
    for node in graph.nodes.values():
        if node.stale:
            raise StaleError(f"{node.name!r} is stale: {node.stale}; run {node.cell} again", where=node.where)
        _encode_node(node, message.nodes.add(), put)
    return message


def _encode_node(node: Node, message: pb.NodeDef, put: Put | None = None) -> None:
    message.name = _text(node.name)
    message.op = node.op
    message.inputs.extend(t.name for t in node.inputs)
    message.control_inputs.extend(c.name for c in node.control_inputs)
    message.outputs.extend(encode_spec(t.spec) for t in node.outputs)
    message.device = str(node.device)
    message.colocate.extend(node.colocate)
    message.owner_id = node.owner.id
    message.owner_label = node.owner.label
    message.line = node.line
    message.auto_named = node.auto_named
    encode_attrs(node.attrs, message.attrs, put)


def _encode_body(body: Body, message: pb.BodyDef) -> None:
    for node in body.graph.nodes.values():
        _encode_node(node, message.nodes.add())
    message.arguments.extend(t.name for t in body.arguments)
    message.outputs.extend(t.name for t in body.outputs)


def _decode_body(message: pb.BodyDef) -> Body:
    graph = Graph()
    _decode_nodes(message.nodes, graph)
    arguments = tuple(_tensor(graph, name) for name in message.arguments)
    for number, tensor in enumerate(arguments):
        if tensor.node.op != ARGUMENT or tensor.node.attrs.get("index") != number:
            raise Rejected(f"argument {number} of a body is {tensor.name!r}, which is not its argument {number}")
    return Body(graph, arguments, tuple(_tensor(graph, name) for name in message.outputs))


def graph_from_proto(message: pb.GraphDef | bytes, get: Get | None = None) -> Graph:
    """A graph from its message or the message's bytes; `get` finds what `put` took.

    Raises Rejected for a graph that does not hold together.
    """
    if isinstance(message, bytes):
        data, message = message, pb.GraphDef()
        try:
            message.ParseFromString(data)
        except DecodeError as error:
            raise Rejected(f"not a graph: {error}") from None
    if message.version != GRAPH_VERSION:
        raise Rejected(f"a graph of version {message.version} was given; this nbflow reads version {GRAPH_VERSION}")
    graph = Graph()
    graph.seed = message.seed
    graph.generations.update(message.generations)
    try:
        _decode_nodes(message.nodes, graph, get)
    except Rejected:
        raise
    except NbflowError as error:
        raise Rejected(f"the graph does not hold together: {error.message}") from error
    graph.version += 1
    return graph


def _decode_nodes(messages: Iterable[pb.NodeDef], graph: Graph, get: Get | None = None) -> None:
    items = list(messages)
    for item in items:
        if not item.name or item.name in graph.nodes:
            raise Rejected(f"the graph has two nodes called {item.name!r}, or one without a name")
        graph.nodes[item.name] = _node_from(graph, item, get)
    for item in items:
        node = graph.nodes[item.name]
        # Only now: a consumer that outlived its cell's edits can stand before its input.
        node.inputs = tuple(_tensor(graph, name) for name in item.inputs)
        node.control_inputs = tuple(_member(graph, name) for name in item.control_inputs)
    for node in graphs.topological(graph.nodes.values()):
        _check_outputs(node)


def _node_from(graph: Graph, item: pb.NodeDef, get: Get | None) -> Node:
    ops.get(item.op)
    return Node(
        graph,
        item.name,
        item.op,
        (),
        (),
        decode_attrs(item.attrs, get),
        [decode_spec(s) for s in item.outputs],
        device=parse_device(item.device),
        colocate=tuple(item.colocate),
        owner=Owner(item.owner_id, item.owner_label),
        line=item.line,
        auto_named=item.auto_named,
    )


def _member(graph: Graph, name: str) -> Node:
    node = graph.nodes.get(name)
    if node is None:
        raise Rejected(f"the graph uses {name!r}, which is not in it")
    return node


def _tensor(graph: Graph, name: str) -> Tensor:
    base, _, index = name.partition(":")
    outputs: Sequence[Tensor] = _member(graph, base).outputs
    number = int(index) if index.isdecimal() and len(index) < 6 else (0 if not index else len(outputs))
    if number >= len(outputs):
        raise Rejected(f"the graph uses {name!r}, but {base!r} has {len(outputs)} outputs")
    return outputs[number]


def _check_outputs(node: Node) -> None:
    """An op's recorded outputs must be what its shape rule gives: nothing later would notice."""
    try:
        inferred: Iterable[TensorSpec] = node.definition.infer([t.spec for t in node.inputs], node.attrs)
    except NbflowError:
        raise
    except Exception as error:  # a shape rule may fail in any way on attributes it never made
        raise Rejected(f"{node.op} {node.name!r} does not fit its attributes: {error}") from error
    if len(tuple(inferred)) != len(node.outputs):
        raise Rejected(f"{node.op} {node.name!r} is recorded with {len(node.outputs)} outputs, which is not its number")


graphs.PROTO.update(encode=graph_to_proto, decode=graph_from_proto)
