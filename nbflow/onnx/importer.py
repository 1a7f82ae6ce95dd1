"""`nf.onnx.load`: the graph of an ONNX model as ordinary nodes.

A model is walked in its own order, which is topological; each node is handed to the translator of its operator
(`registry.py`, `translators/`), or, where there is none, replaced by the body that ONNX gives for it as a function of
other operators (`functions.py`). Names of values live in an environment a graph level: bodies of If and Loop see the
names outside.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from nbflow.errors import DTypeError, GraphError, NbflowError
from nbflow.graph import Graph, Tensor, get_graph
from nbflow.onnx import functions, translators
from nbflow.onnx.registry import MAIN, Call, NeedsValue, Value, find
from nbflow.onnx.statics import Statics
from nbflow.ops._build import as_tensor, build, convert
from nbflow.spec import as_dtype, kind_of
from nbflow.variable import Variable

__all__ = ["Model", "load"]

translators.register_all()

_FLOATING = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
Source = str | os.PathLike[str] | bytes | ModelProto
Trainable = bool | Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Model:
    """An imported model: its tensors by the names that the file gives them.

    `inputs` are placeholders, or what was bound to them; `outputs` are tensors to fetch, or to build on (a tuple of
    them for a sequence, None for an optional without a value). `variables` holds the weights when they are trainable.
    `scope` is the name scope of all its nodes.
    """

    scope: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    variables: dict[str, Variable] = field(default_factory=dict)


def load(
    source: Source,
    *,
    name: str | None = None,
    trainable: Trainable = False,
    inputs: Mapping[str, Any] | None = None,
    graph: Graph | None = None,
) -> Model:
    """The model in `source` (a file, its bytes, or a ModelProto) as nodes of `graph` (the current one).

    - `name`: the name scope of its nodes; the file's or the model's name when left out, numbered when taken.
    - `trainable`: whether weights become variables that optimizers change: floating initializers, and Constant nodes,
      with at least one dimension; running means and variances of batch normalisation become variables that optimizers
      leave alone. A function of a weight's name chooses.
    - `inputs`: tensors to stand for inputs of the model, or arrays to fix them. Others become placeholders. An input
      that decides what the graph looks like, such as the axes of a sum, must be an array.

    Raises GraphError for what is no model, for operators that are not known (it names operator, domain, opset and
    node), and for inputs that the model lacks; DTypeError for types that tensors do not have, such as strings.
    """
    model, origin = _read(source)
    opsets = _opsets(model, origin)
    into = graph or get_graph()
    with into.as_default():
        scope = into.unique(_clean(name or origin) or "model")
        # Absolute: `unique` has looked at the scopes around already.
        with into.absolute_scope(scope):
            return _Import(model, opsets, scope, trainable, dict(inputs or {})).run()


def _read(source: Source) -> tuple[ModelProto, str]:
    """The model, and a name for it."""
    if isinstance(source, ModelProto):
        model, origin = source, source.graph.name
    else:
        try:
            if isinstance(source, bytes):
                model = onnx.load_model_from_string(source)
                origin = model.graph.name
            else:
                model = onnx.load(os.fspath(source))
                origin = os.path.splitext(os.path.basename(os.fspath(source)))[0]
        except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
            what = "the bytes given" if isinstance(source, bytes) else os.fspath(source)
            raise GraphError(f"not an ONNX model: {what}: {error}") from None
    if not model.opset_import or not model.graph.output:
        raise GraphError(f"not an ONNX model, or a damaged one: {origin!r} has no opset or no outputs")
    _check_text(model, origin)
    return model, origin


def _check_text(message: Message, origin: str) -> None:
    """Raises GraphError for text that is not UTF-8; protobuf gives it as bytes."""
    for entry, value in message.ListFields():
        values = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
        if entry.type == entry.TYPE_MESSAGE:
            for one in values:
                _check_text(one, origin)
        elif entry.type == entry.TYPE_STRING and any(isinstance(one, bytes) for one in values):
            raise GraphError(f"a damaged ONNX model: {origin!r} has a {entry.name} that is not UTF-8: {values}")


def _array(proto: TensorProto) -> np.ndarray[Any, Any]:
    """The value of a tensor in the file. Raises GraphError when it is damaged."""
    try:
        return numpy_helper.to_array(proto)
    except (KeyError, TypeError, ValueError) as error:
        shape = ",".join(map(str, proto.dims))
        raise GraphError(f"a damaged ONNX model: the tensor {proto.name!r} of shape [{shape}]: {error}") from None


def _opsets(model: ModelProto, origin: str) -> dict[str, int]:
    """Domain -> version; "" is ONNX's own domain."""
    opsets = {_domain(o.domain): o.version for o in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    if opsets.get(MAIN, 1) > newest:
        raise GraphError(
            f"{origin!r} is of opset {opsets[MAIN]}; the installed onnx {onnx.__version__} knows up to {newest}: "
            "install a newer onnx, or convert the model with onnx.version_converter"
        )
    return opsets


def _domain(name: str) -> str:
    return MAIN if name == "ai.onnx" else name


def _clean(name: str) -> str:
    """`name` as a part of a node's name."""
    plain = "".join("_" if c in ":;^\n\t " else c for c in name)
    return "/".join(part for part in plain.split("/") if part)


class _Import:
    """One model on its way into a graph."""

    def __init__(
        self, model: ModelProto, opsets: dict[str, int], scope: str, trainable: Trainable, bound: dict[str, Any]
    ) -> None:
        self.model = model
        self.opsets = opsets
        self.scope = scope
        self.bound = bound
        self.statics = Statics()
        self.variables: dict[str, Variable] = {}
        self.functions = {(_domain(f.domain), f.name, f.overload): f for f in model.functions}
        self._wanted: Callable[[str], bool] = trainable if callable(trainable) else lambda name: bool(trainable)
        self._averages = {
            n for node in model.graph.node if node.op_type == "BatchNormalization" for n in node.input[3:]
        }

    def run(self) -> Model:
        proto = self.model.graph
        env: dict[str, Value] = {}
        for tensor in proto.initializer:
            env[tensor.name] = self.initializer(tensor, _array(tensor))
        nodes = []
        for node in proto.node:
            weight = _weight(node)
            if weight is None:
                nodes.append(node)
            else:
                env[weight.name] = self.initializer(weight, _array(weight))
        for sparse in proto.sparse_initializer:
            env[sparse.values.name] = self.initializer(sparse.values, _dense(sparse))
        inputs: dict[str, Value] = {}
        for info in proto.input:
            if info.name in self.bound:
                env[info.name] = inputs[info.name] = _bound(self.bound[info.name], info)
            elif info.name not in env:
                env[info.name] = inputs[info.name] = _placeholder(info)
        unknown = sorted(set(self.bound) - set(inputs))
        if unknown:
            raise GraphError(f"the model has no input {unknown[0]!r}; it has {', '.join(i.name for i in proto.input)}")
        made = Builder(self, env, self.opsets).nodes(nodes, [o.name for o in proto.output])
        outputs = {o.name: value for o, value in zip(proto.output, made, strict=True)}
        return Model(self.scope, inputs, outputs, self.variables)

    def initializer(self, proto: TensorProto, value: np.ndarray[Any, Any]) -> Tensor:
        """The constant or variable of an initializer."""
        if value.dtype.kind in "OUS":
            raise DTypeError(f"the initializer {proto.name!r} holds strings; tensors hold numbers and booleans")
        name = _clean(proto.name) or None
        if kind_of(value.dtype) != "f" or value.ndim == 0 or not self._wanted(proto.name):
            return constant(value, name)
        variable = Variable(value, name=name, trainable=proto.name not in self._averages)
        self.variables[proto.name] = variable
        read = variable.to_tensor()
        # Where a weight decides what the graph looks like (the scales of a Resize), it does so as it is in the file.
        self.statics.give(read, value)
        return read


def constant(value: np.ndarray[Any, Any], name: str | None = None) -> Tensor:
    """A constant of exactly the array's dtype, numbered where its name is taken."""
    graph = get_graph()
    if name is not None and graph.find(graph.scoped(name)) is not None:
        name = None
    array = np.array(value, dtype=as_dtype(value.dtype), order="C")
    array.flags.writeable = False
    return build("constant", (), {"value": array}, name=name)


def _weight(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node that stands for an initializer: some exporters write weights so."""
    if node.op_type != "Constant" or _domain(node.domain) != MAIN:
        return None
    tensor = TensorProto()
    tensor.CopyFrom(next((a.t for a in node.attribute if a.name == "value"), tensor))
    tensor.name = node.output[0]
    return tensor if tensor.dims and tensor.data_type in _FLOATING else None


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray[Any, Any]:
    values, indices = _array(sparse.values), _array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _placeholder(info: ValueInfoProto) -> Tensor:
    """What must be fed for an input."""
    if info.type.WhichOneof("value") == "optional_type":
        info = helper.make_value_info(info.name, info.type.optional_type.elem_type)
    if info.type.WhichOneof("value") != "tensor_type":
        raise NeedsValue(
            f"the input {info.name!r} is no tensor but a {info.type.WhichOneof('value')}; bind it: inputs= takes a "
            "list of tensors or arrays for a sequence, None for an empty optional",
            [],
        )
    kind = info.type.tensor_type
    dtype = _dtype(kind.elem_type, f"input {info.name!r}")
    shape = None
    if kind.HasField("shape"):
        # Some exporters write -1 for a free dimension.
        sizes = [d.dim_value if d.WhichOneof("value") == "dim_value" else -1 for d in kind.shape.dim]
        shape = tuple(None if size < 0 else size for size in sizes)
    attrs = {"dtype": dtype, "shape": shape}
    return build("placeholder", (), attrs, name=_clean(info.name))


def _dtype(code: int, what: str) -> np.dtype[Any]:
    if code == TensorProto.STRING:
        raise DTypeError(f"{what} holds strings; tensors hold numbers and booleans")
    try:
        return as_dtype(helper.tensor_dtype_to_np_dtype(code))
    except KeyError:
        raise DTypeError(f"{what} has the unknown element type {code}") from None


def _bound(value: Any, info: ValueInfoProto) -> Value:
    """What was given for an input, as a value of the environment."""
    if isinstance(value, (list, tuple)) and info.type.WhichOneof("value") != "tensor_type":
        return tuple(_bound(item, info) for item in value)
    tensor = as_tensor(value)
    if tensor is not None or value is None:
        return tensor
    kind = info.type.tensor_type
    if info.type.WhichOneof("value") == "tensor_type" and kind.elem_type != TensorProto.STRING:
        return convert(np.asarray(value, _dtype(kind.elem_type, f"input {info.name!r}")))
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        raise DTypeError(f"input {info.name!r} holds strings; tensors hold numbers and booleans")
    return constant(array)


class Builder:
    """One graph level: the names that are known in it, and the opsets that hold in it."""

    def __init__(self, owner: _Import, env: MutableMapping[str, Value], opsets: Mapping[str, int]) -> None:
        self._owner = owner
        self._env = env
        self._opsets = opsets

    def nodes(self, protos: Iterable[NodeProto], results: Sequence[str]) -> list[Value]:
        """Translates nodes in order and returns the values of the names `results`."""
        for proto in protos:
            self._node(proto)
        return [self._lookup(name, "an output of the graph") for name in results]

    def graph(self, proto: GraphProto, inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a body (of If, Loop, Scan, SequenceMap) on `inputs`; it sees the names of this level."""
        inner: ChainMap[str, Value] = ChainMap({}, self._env)
        for tensor in proto.initializer:
            inner[tensor.name] = constant(_array(tensor), _clean(tensor.name) or None)
        inner.update({info.name: value for info, value in zip(proto.input, inputs, strict=False)})
        return Builder(self._owner, inner, self._opsets).nodes(proto.node, [o.name for o in proto.output])

    def function(self, body: FunctionProto, proto: NodeProto, inputs: Sequence[Value]) -> list[Value]:
        """The outputs of `body` in the place of the node `proto`."""
        env: dict[str, Value] = dict.fromkeys(body.input)
        env.update(zip(body.input, inputs, strict=False))
        opsets = {**self._opsets, **{_domain(o.domain): o.version for o in body.opset_import}}
        Builder(self._owner, env, opsets).nodes(functions.instantiate(body, proto), [])
        # A body made for a node leaves out what the node does not use.
        return [env.get(name) for name in body.output]

    def _lookup(self, name: str, where: str) -> Value:
        if not name:
            return None
        try:
            return self._env[name]
        except KeyError:
            raise GraphError(f"{where} uses the name {name!r}, which nothing before it gives") from None

    def _node(self, proto: NodeProto) -> None:
        inputs = tuple(self._lookup(n, f"{proto.op_type} {proto.name!r}") for n in proto.input)
        with get_graph().name_scope(_clean(proto.name) or proto.op_type):
            try:
                outputs = self._outputs(proto, inputs)
            except NbflowError as error:
                error.add_note(f"while importing the ONNX node {proto.op_type} {proto.name or list(proto.output)}")
                raise
        if not isinstance(outputs, (list, tuple)):
            outputs = (outputs,)
        for n, name in enumerate(proto.output):
            if not name:
                continue
            if n >= len(outputs):
                raise GraphError(f"{proto.op_type} {proto.name!r} has no output {n} ({name!r}) in nf.onnx")
            self._env[name] = outputs[n]

    def _outputs(self, proto: NodeProto, inputs: tuple[Value, ...]) -> Value:
        domain = _domain(proto.domain)
        local = self._owner.functions.get((domain, proto.op_type, proto.overload))
        if local is not None:
            return self.function(local, proto, inputs)
        opset = self._opsets.get(domain, 1)
        translator = find(domain, proto.op_type, opset)
        if translator is not None:
            call = Call(proto, inputs, attributes(proto, domain, opset), opset, self._owner.statics, self)
            return translator(call)
        body = functions.body_of(proto, domain, opset, inputs)
        if body is not None:
            return self.function(body, proto, inputs)
        raise GraphError(
            f"nf.onnx does not know the operator {proto.op_type} of domain {domain or 'ai.onnx'!r}, opset {opset}, "
            f"used by the node {proto.name or ', '.join(proto.output)!r}"
        )


def attributes(proto: NodeProto, domain: str, opset: int) -> dict[str, Any]:
    """The node's attributes as Python values, with the defaults of its schema."""
    found: dict[str, Any] = {}
    try:
        schema = onnx.defs.get_schema(proto.op_type, opset, domain)
    except onnx.defs.SchemaError:
        schema = None
    if schema is not None:
        for name, declared in schema.attributes.items():
            if declared.default_value.type != AttributeProto.UNDEFINED:
                found[name] = _attribute(declared.default_value)
    found.update({a.name: _attribute(a) for a in proto.attribute})
    return found


def _attribute(proto: AttributeProto) -> Any:
    value = helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if proto.type == AttributeProto.TENSOR:
        return _array(value)
    if proto.type == AttributeProto.SPARSE_TENSOR:
        return _dense(value)
    if proto.type == AttributeProto.STRINGS:
        return [v.decode("utf-8", "replace") for v in value]
    return list(value) if proto.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value
