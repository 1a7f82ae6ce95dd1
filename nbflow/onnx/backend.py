"""`nf.onnx.Backend`: the interface that ONNX's own test suite drives (`onnx.backend.base.Backend`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper
from onnx.backend.base import Backend as _Base
from onnx.backend.base import BackendRep, namedtupledict

from nbflow.errors import GraphError
from nbflow.graph import Graph, Tensor
from nbflow.inprocess import InProcessCluster
from nbflow.onnx.importer import Model, load
from nbflow.onnx.registry import NeedsValue, Value
from nbflow.session import Session
from nbflow.transport import Cluster

__all__ = ["Backend", "Prepared"]


class Prepared(BackendRep):
    """A model ready to run.

    Inputs that decide what the graph looks like (axes, the number of outputs) become constants: the model is imported
    anew for each of their values, as a compiler specialises.
    """

    def __init__(self, model: ModelProto, cluster: Cluster | None = None) -> None:
        self.model = model
        weights = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
        self.names = [i.name for i in model.graph.input if i.name not in weights]
        self.fixed: set[str] = set()  # inputs whose values the graph depends on
        self._cluster = cluster or _cluster()

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs, a named tuple of arrays (lists of arrays for sequences).

        `inputs`: a mapping from input name to array, or arrays in the model's order.
        """
        given = self._named(inputs)
        graph, model = self.imported(given)
        names = [o.name for o in self.model.graph.output]
        values = [model.outputs[n] for n in names]
        tensors = [t for value in values for t in _tensors(value)]
        feeds = {model.inputs[n]: v for n, v in given.items() if _is_placeholder(model.inputs.get(n))}
        with Session(self._cluster, graph) as session:
            arrays = iter(session.run(tensors, feeds))
        made = [_rebuilt(value, arrays) for value in values]
        named: tuple[Any, ...] = namedtupledict("Outputs", names)(*made)
        return named

    def imported(self, given: Mapping[str, Any]) -> tuple[Graph, Model]:
        """The model in a graph of its own, with what it needs to know of `given` fixed."""
        while True:
            graph = Graph()
            # An optional without a value is no tensor to feed.
            bound = {n: value for n, value in given.items() if n in self.fixed or value is None}
            try:
                return graph, load(self.model, name="model", inputs=bound, graph=graph)
            except NeedsValue as error:
                more = self._missing(error, given)
                if not more:
                    raise
                self.fixed |= more

    def _missing(self, error: NeedsValue, given: Mapping[str, Any]) -> set[str]:
        """The inputs to fix because of `error`, those among them that are not yet."""
        sequences = {n for n in given if not isinstance(given[n], np.ndarray)}
        found = {n.name.removeprefix("model/") for n in error.inputs} & set(given)
        return (found or sequences) - self.fixed

    def _named(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        if len(inputs) > len(self.names):
            raise GraphError(f"the model takes {len(self.names)} inputs ({', '.join(self.names)}), got {len(inputs)}")
        return dict(zip(self.names, inputs, strict=False))


class Backend(_Base):
    """nbflow as a backend of ONNX: `onnx.backend.test.runner.Runner(nf.onnx.Backend)` runs the official suite."""

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """A model that runs on inputs. Raises what `nf.onnx.load` raises, when it first runs."""
        onnx.checker.check_model(model)
        return Prepared(model)

    @classmethod
    def run_node(
        cls, node: NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """One node on arrays; `opset_version=` says which opset it is of (the newest)."""
        arrays = inputs if isinstance(inputs, Mapping) else dict(zip([n for n in node.input if n], inputs, strict=True))
        typed = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.asarray(a).dtype), np.shape(a))
            for n, a in arrays.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(n) for n in node.output if n]
        opset = helper.make_opsetid(node.domain, kwargs.get("opset_version", onnx.defs.onnx_opset_version()))
        model = helper.make_model(helper.make_graph([node], "node", typed, outputs), opset_imports=[opset])
        return Prepared(model).run(arrays)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Only CPUs: there is no other backend yet."""
        return device.split(":", maxsplit=1)[0] == "CPU"


_SHARED: list[InProcessCluster] = []


def _cluster() -> Cluster:
    """One cluster for all models of the process."""
    if not _SHARED:
        _SHARED.append(InProcessCluster())
    return _SHARED[0]


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, Tensor) and value.node.op == "placeholder"


def _tensors(value: Value) -> Sequence[Tensor]:
    if value is None:
        return ()
    return [value] if isinstance(value, Tensor) else [t for item in value for t in _tensors(item)]


def _rebuilt(value: Value, arrays: Any) -> Any:
    if value is None:
        return None
    return next(arrays) if isinstance(value, Tensor) else [_rebuilt(item, arrays) for item in value]
