"""Operators that ONNX itself defines as functions of others, and functions that a model brings along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto, helper

from nbflow.graph import Tensor


def body_of(proto: NodeProto, domain: str, opset: int, inputs: Sequence[Any]) -> FunctionProto | None:
    """The body that ONNX's schema gives for the node; None when it gives none.

    Some bodies depend on the node: on its attributes, and on the types of its `inputs`.
    """
    try:
        schema: Any = onnx.defs.get_schema(proto.op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        found = schema.function_body
        return found if isinstance(found, FunctionProto) else FunctionProto.FromString(found)
    if not schema.has_context_dependent_function:
        return None
    types = [_type(value).SerializeToString() for value in inputs]
    body = schema.get_context_dependent_function(proto.SerializeToString(), types)
    return FunctionProto.FromString(body) if body else None


def _type(value: Any) -> TypeProto:
    if isinstance(value, Tensor):
        return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
    if isinstance(value, tuple) and value:
        return helper.make_sequence_type_proto(_type(value[0]))
    return TypeProto()


def instantiate(body: FunctionProto, proto: NodeProto) -> Iterator[NodeProto]:
    """The nodes of `body` with the attributes that `proto` gives, or the body's defaults, filled in."""
    given = {a.name: a for a in body.attribute_proto}
    given.update({a.name: a for a in proto.attribute})
    for node in body.node:
        yield _filled(node, given)


def _filled(node: NodeProto, given: dict[str, AttributeProto]) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    del made.attribute[:]
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            source = given.get(attribute.ref_attr_name)
            if source is None:
                continue  # an attribute that was left out stays left out
            kept = made.attribute.add()
            kept.CopyFrom(source)
            kept.name = attribute.name
            continue
        kept = made.attribute.add()
        kept.CopyFrom(attribute)
        for graph in [kept.g] if kept.type == AttributeProto.GRAPH else list(kept.graphs):
            inner = [_filled(n, given) for n in graph.node]
            del graph.node[:]
            graph.node.extend(inner)
    return made
