"""`nf.onnx.save`: a part of the graph, with the variables' values, as an ONNX file.

The nodes between inputs and outputs are translated one by one by the rules in `exporting/`; runtimes fuse and fold what
belongs together. Variables become constants of the file. Control inputs are left out: what they wait for changes
state, and a file has none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

from nbflow.body import ARGUMENT, bodies_of
from nbflow.current import current_session
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph, Node, Tensor, ancestors
from nbflow.onnx.exporting import REASONS, RULES, UPDATES
from nbflow.onnx.exporting.writer import Array, Inner, Key, Writer, Written, all_nodes, key_of, needed
from nbflow.ops._build import as_tensor
from nbflow.session import Session
from nbflow.spec import as_dtype, format_shape, kind_of, shape_accepts
from nbflow.variable import Variable

Named = Mapping[str, Any] | Sequence[Any]

# Understood by every onnxruntime since 1.18 (2024); newer ones add nothing that the rules need.
DEFAULT_OPSET = 21
# Before it, axes of reductions were attributes.
OLDEST_OPSET = 18
# Protobuf messages end at 2 GiB; what is not weights takes some of it.
LARGEST_FILE_BYTES = (2 << 30) - (64 << 20)
# Weights from this size on go to the second file of a large model, and are not looked at by shape inference.
_LARGE_BYTES = 1024
# None where a long double is a double, as on Windows.
_LONG = np.dtype(np.longdouble) if np.dtype(np.longdouble).itemsize > 8 else None


def save(
    path: str | os.PathLike[str],
    inputs: Named,
    outputs: Named,
    *,
    feeds: Mapping[Any, Any] | None = None,
    opset: int = DEFAULT_OPSET,
    session: Session | None = None,
    external_data_over_bytes: int = LARGEST_FILE_BYTES,
) -> None:
    """Writes what computes `outputs` from `inputs` as an ONNX model to `path`.

    - `inputs`, `outputs`: the model's names and the tensors behind them; of a list, the names are the tensors'. Any
      tensor can be an input: what computes it is left out. Unknown dimensions of inputs stay free, under the names
      `<input>_<axis>`.
    - `feeds`: values for tensors that are no inputs; they become constants, such as `{training: False}`.
    - `opset`: the version of ONNX's operators, 18 or newer.
    - `session`: whose values variables have; the one that `nf.run` uses when left out. Variables without a value are
      initialised.
    - `external_data_over_bytes`: a model with more weights than this becomes two files, the weights in
      `<path>.data`. Never above 2 GiB, where protobuf ends.

    Updates that outputs only wait for (control dependencies) are left out. Random ops draw other numbers than
    nbflow's, of the same distribution. Raises GraphError that names the op, its node and its cell for what ONNX cannot
    say; DTypeError for complex and long double tensors.
    """
    if not OLDEST_OPSET <= opset <= onnx.defs.onnx_opset_version():
        newest = onnx.defs.onnx_opset_version()
        raise GraphError(f"opset is {OLDEST_OPSET} to {newest} with the installed package onnx, not {opset}")
    file = Path(path)
    asked = Asked.of(inputs, outputs, feeds or {})
    written = _write(asked, opset, session)
    model = _model(asked, written, opset)
    _store(model, file, sum(a.nbytes for a in written.constants.values()) > external_data_over_bytes)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the model is: its inputs and outputs, and tensors that are fixed."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    fixed: dict[Key, Array]

    @classmethod
    def of(cls, inputs: Named, outputs: Named, feeds: Mapping[Any, Any]) -> Asked:
        """Checked. Raises GraphError for what is no tensor, names used twice, tensors of several graphs."""
        made = cls(_named(inputs, "inputs"), _named(outputs, "outputs"), {})
        if not made.outputs:
            raise GraphError("a model needs at least one output")
        both = made.inputs.keys() & made.outputs.keys()
        if both:
            raise GraphError(f"the name {sorted(both)[0]!r} is that of an input and of an output; rename one of them")
        graph = made.graph
        for tensor in (*made.inputs.values(), *made.outputs.values()):
            graph.check_member(tensor.node)
        for given, value in feeds.items():
            tensor = _tensor(given, "feeds")
            graph.check_member(tensor.node)
            made.fixed[key_of(tensor)] = _fixed(tensor, value)
        return made

    @property
    def graph(self) -> Graph:
        return next(iter(self.outputs.values())).graph


def _tensor(value: Any, what: str) -> Tensor:
    found = as_tensor(value)
    if found is None:
        raise GraphError(f"{what} are tensors, not {type(value).__name__} {value!r:.80}")
    return found


def _named(values: Named, what: str) -> dict[str, Tensor]:
    if isinstance(values, Mapping):
        return {str(name): _tensor(value, what) for name, value in values.items()}
    if isinstance(values, (Tensor, Variable, str)):
        raise GraphError(f"{what} are a dict of names and tensors, or a list of tensors, not {values!r:.80}")
    found: dict[str, Tensor] = {}
    for tensor in [_tensor(value, what) for value in values]:
        if tensor.name in found:
            raise GraphError(f"{what} hold {tensor.name!r} twice; give a dict with a name for each")
        found[tensor.name] = tensor
    return found


def _fixed(tensor: Tensor, value: Any) -> Array:
    array = np.asarray(value)
    if hasattr(value, "dtype") and array.dtype != tensor.dtype:
        raise DTypeError(f"{tensor.name} is {tensor.dtype}, its value in feeds {array.dtype}", where=tensor.node.where)
    if not shape_accepts(tensor.shape, array.shape):
        shapes = f"{format_shape(tensor.shape)}, its value in feeds {format_shape(array.shape)}"
        raise ShapeError(f"{tensor.name} has shape {shapes}", where=tensor.node.where)
    return array.astype(tensor.dtype)


# --- nodes to records ------------------------------------------------------------------------------------------------


def _check(nodes: Sequence[Node]) -> None:
    """Raises GraphError for the first node that has no rule, DTypeError for the first with a dtype beyond ONNX's."""
    everything = list(_with_bodies(nodes))
    refused = [n for n in everything if n.op not in RULES and n.op not in ("variable", ARGUMENT)]
    for node in refused[:1]:
        why = REASONS.get(node.op, "nbflow has no export rule for this op")
        also = f" (nor can {len(refused) - 1} other ops)" if len(refused) > 1 else ""
        raise GraphError(f"{node.op} {node.name!r} cannot be written as ONNX: {why}{also}", where=node.where)
    for node in everything:
        if node.op == "read_variable":
            _check_read(node)
        for tensor in node.outputs:
            if kind_of(tensor.dtype) == "c" or tensor.dtype == _LONG:
                raise DTypeError(
                    f"{node.op} {node.name!r} gives {tensor.dtype}, which ONNX's operators do not take; "
                    "use nf.astype before it",
                    where=node.where,
                )


def _with_bodies(nodes: Iterable[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        for body in bodies_of(node).values():
            yield from _with_bodies(needed(body.outputs))


def _check_read(node: Node) -> None:
    changed = next((n for n in ancestors(node.control_inputs) if n.op in UPDATES), None)
    if changed is not None:
        raise GraphError(
            f"{node.name!r} reads variable {node.attrs['variable']!r} after {changed.op} {changed.name!r} changed it, "
            "and an ONNX file keeps no state; save an output that reads it as it is",
            where=node.where,
        )


def _values(nodes: Sequence[Node], graph: Graph, session: Session | None) -> dict[str, Array]:
    """The values of the variables among `nodes`, by name."""
    handles = {n.name: n for n in nodes if n.op == "variable"}
    if not handles:
        return {}
    if session is None:
        with graph.as_default():
            session = current_session()
    found: dict[str, Array] = session.run(
        {name: Variable.from_node(node).to_tensor() for name, node in handles.items()}
    )
    return found


def _write(asked: Asked, opset: int, session: Session | None) -> Writer:
    writer = Writer(opset, RULES, [*asked.inputs, *asked.outputs])
    names = {key_of(tensor): name for name, tensor in asked.inputs.items()}
    for key, value in asked.fixed.items():
        names[key] = writer.constant(value, name=key[0])
    nodes = needed(asked.outputs.values(), names)
    _check(nodes)
    for name, value in _values(nodes, asked.graph, session).items():
        names[name, 0] = writer.constant(value, name=name)
    writer.translate((n for n in nodes if n.op != "variable"), names)
    _name_outputs(asked, nodes, writer, names)
    return writer


def _name_outputs(asked: Asked, nodes: Sequence[Node], writer: Writer, names: Mapping[Key, str]) -> None:
    """Values take their tensors' names, outputs those of the model; one value for two outputs is passed on."""
    computed = {name for n in writer.nodes for name in n.outputs}
    renamed: dict[str, str] = {}
    for name, tensor in asked.outputs.items():
        value = names[key_of(tensor)]
        if value in computed and value not in renamed:
            renamed[value] = name
        else:
            writer.nodes.append(Written("Identity", writer.unique(f"{name}/Identity"), [value], [name], {}))
    for tensor in (t for node in nodes for t in node.outputs):
        value = names.get(key_of(tensor), "")
        if value in computed and value not in renamed:
            renamed[value] = writer.unique(tensor.name)
    used = set()
    for record in all_nodes(writer.nodes):
        record.inputs = [renamed.get(n, n) for n in record.inputs]
        record.outputs = [renamed.get(n, n) for n in record.outputs]
        used.update(record.inputs)
    writer.constants = {name: value for name, value in writer.constants.items() if name in used}


# --- records to a file -----------------------------------------------------------------------------------------------


def _attribute(name: str, value: Any, opset: int) -> AttributeProto:
    if isinstance(value, Inner):
        inputs, outputs = (
            [_value_info(n, spec.dtype, spec.shape) for n, spec in end] for end in (value.inputs, value.outputs)
        )
        value = helper.make_graph([_node(record, opset) for record in value.nodes], name, inputs, outputs)
    elif isinstance(value, np.dtype):
        value = helper.np_dtype_to_tensor_dtype(value)
    elif isinstance(value, np.ndarray):
        value = numpy_helper.from_array(value)
    kind = AttributeProto.INTS if value == [] else None
    return helper.make_attribute(name, value, attr_type=kind)


def _node(record: Written, opset: int) -> onnx.NodeProto:
    try:
        onnx.defs.get_schema(record.op, opset, "")
    except onnx.defs.SchemaError:
        newer = onnx.defs.get_schema(record.op).since_version
        raise GraphError(
            f"{record.name!r} needs ONNX's operator {record.op}, which opset {opset} lacks; save with opset={newer}"
        ) from None
    made = helper.make_node(record.op, record.inputs, record.outputs, name=record.name)
    made.attribute.extend(_attribute(name, value, opset) for name, value in record.attrs.items())
    return made


def _value_info(name: str, dtype: np.dtype[Any], shape: Sequence[Any] | None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(as_dtype(dtype)), shape)


def _free(name: str, shape: Sequence[int | None] | None) -> list[int | str] | None:
    """The shape with a name for each unknown dimension."""
    return None if shape is None else [f"{name}_{axis}" if d is None else d for axis, d in enumerate(shape)]


def _model(asked: Asked, writer: Writer, opset: int) -> ModelProto:
    nodes = [_node(record, opset) for record in writer.nodes]
    inputs = [_value_info(name, t.dtype, _free(name, t.shape)) for name, t in asked.inputs.items()]
    imports = [helper.make_opsetid("", opset)]

    def model(
        ins: Sequence[ValueInfoProto], outs: Sequence[ValueInfoProto], weights: Sequence[TensorProto]
    ) -> ModelProto:
        graph = helper.make_graph(nodes, "nbflow", ins, outs, weights)
        made: ModelProto = helper.make_model(
            graph,
            opset_imports=imports,
            producer_name="nbflow",
            ir_version=helper.find_min_ir_version_for(imports),
        )
        return made

    # ONNX's shape inference knows which free dimensions of the outputs are those of the inputs. Large weights stand
    # as inputs there: only their shapes matter, and a copy of them would not fit into one message.
    small = {n: v for n, v in writer.constants.items() if v.nbytes < _LARGE_BYTES}
    large = [_value_info(n, v.dtype, v.shape) for n, v in writer.constants.items() if n not in small]
    open_outputs = [_value_info(name, t.dtype, None) for name, t in asked.outputs.items()]
    sketch = model([*inputs, *large], open_outputs, [numpy_helper.from_array(v, n) for n, v in small.items()])
    found = {v.name: _inferred(v) for v in _with_shapes(sketch).graph.output}
    outputs = [_value_info(n, t.dtype, _output_shape(n, t, found[n])) for n, t in asked.outputs.items()]
    return model(inputs, outputs, [numpy_helper.from_array(v, n) for n, v in writer.constants.items()])


def _with_shapes(model: ModelProto) -> ModelProto:
    """With inferred shapes. Raises GraphError when ONNX's operators do not take the types or shapes they get."""
    try:
        return shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError:
        # Following the values of shapes takes some vectors for shapes that are none, and then refuses their product.
        try:
            return shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        except shape_inference.InferenceError as error:
            raise GraphError(f"ONNX refuses the model, in opset {model.opset_import[0].version}: {error}") from None


def _inferred(value: ValueInfoProto) -> list[int | str | None] | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
    return [None if isinstance(d, str) and d.startswith("unk__") else d for d in dims]


def _output_shape(name: str, tensor: Tensor, inferred: list[int | str | None] | None) -> list[Any] | None:
    """What nbflow knows, else what ONNX does, else a name."""
    if tensor.shape is None or (inferred is not None and len(inferred) != len(tensor.shape)):
        known: list[Any] | None = inferred
    else:
        known = [d if d is not None or inferred is None else inferred[a] for a, d in enumerate(tensor.shape)]
    return None if known is None else [f"{name}_{axis}" if d is None else d for axis, d in enumerate(known)]


def _store(model: ModelProto, file: Path, external: bool) -> None:
    """One file, checked before it is written; or two, checked after, since the checker takes no larger messages."""
    if not external:
        onnx.checker.check_model(model)
        onnx.save_model(model, file)
        return
    beside = file.with_name(f"{file.name}.data")
    beside.unlink(missing_ok=True)  # onnx would append to it
    onnx.save_model(
        model,
        file,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=beside.name,
        size_threshold=_LARGE_BYTES,
    )
    onnx.checker.check_model(file)
