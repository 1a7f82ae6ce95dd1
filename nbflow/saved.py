"""Models for others: a graph, cut to what its signatures need, and its weights, in a folder a version.

    path/1/manifest.json                    the signatures, every file with its SHA-256, every tensor with its shape
    path/1/model-…-graph.pb                 the graph, a protobuf message (`nbflow.wire.v1.GraphDef`)
    path/1/model-…-00001.safetensors        values of variables, and large constants by content

What is loaded needs none of the code that built it. Devices that the code asked for are left out: they were elsewhere.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from nbflow.codec import encode_dtype, graph_from_proto, graph_to_proto
from nbflow.current import current_session
from nbflow.device import DeviceSpec
from nbflow.errors import CheckpointError, GraphError, NbflowError, Rejected, StaleError
from nbflow.graph import Graph, Node, Tensor, topological
from nbflow.ops._build import as_tensor
from nbflow.proto import wire_pb2 as pb
from nbflow.rewrite import TensorMap, add_placeholder, copy_nodes
from nbflow.session import Session
from nbflow.spec import TensorSpec
from nbflow.structure import Leaf
from nbflow.variable import Variable, global_variables
from nbflow.weights import MANIFEST, SHARD_BYTES, Folder, FolderWriter, in_shards

FORMAT = "nbflow.model"
VERSION = 1

Array = np.ndarray[Any, np.dtype[Any]]
# Names of arguments -> tensors; tensors to compute, under names or one alone.
Inputs = Mapping[str, Any]
Outputs = Any


@dataclass(frozen=True, slots=True)
class Signature:
    """A function of a model: what it takes and what it gives, by name. `single`: it gives one array and no dict."""

    name: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    single: bool = False

    def __str__(self) -> str:
        takes = ", ".join(f"{name}: {tensor.spec}" for name, tensor in self.inputs.items())
        gives = ", ".join(f"{name}: {tensor.spec}" for name, tensor in self.outputs.items())
        return f"{self.name}({takes}) -> {gives}"


def export(
    path: str | Path,
    signatures: Mapping[str, tuple[Inputs, Outputs]],
    version: int = 1,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes what `signatures` need of the current graph, and its variables' values, to the folder `path/version`.

    `signatures`: name -> (inputs, outputs), as in `{"predict": ({"x": x}, {"y": y})}`. Any tensor can be an input, such
    as one of a dataset's batch; what computes it is then left out. Outputs are a dict of tensors, or one tensor: then
    the loaded function gives one array. A version that is there already is replaced in one moment.

    Raises GraphError for names that are no Python names, outputs that need a placeholder or a dataset which is no
    input; StaleError; CheckpointError when the folder cannot be written.
    """
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise GraphError(f"a version is a positive integer, not {version!r}")
    if not signatures:
        raise GraphError("export needs a signature, such as signatures={'predict': ({'x': x}, {'y': y})}")
    given = [_signature(name, *_pair(name, signature)) for name, signature in signatures.items()]
    session = current_session()
    graph, cut = _cut(session.graph, given)
    names = sorted(node.name for node in graph.nodes.values() if node.op == "variable")
    sizes = {name: graph.nodes[name].outputs[0].spec.nbytes or 0 for name in names}
    folder = Path(path) / str(version)
    with FolderWriter(folder, "model") as writer:
        for group in in_shards(sizes, shard_bytes):
            leaves: list[Leaf] = [Variable.from_node(session.graph.node(name)).to_tensor() for name in group]
            writer.add(dict(zip(group, session.look(session.prepare(leaves, {})), strict=True)))
        large: dict[str, Array] = {}
        message = graph_to_proto(graph, lambda tensor, value: _put(tensor, value, large))
        for group in in_shards({name: value.nbytes for name, value in large.items()}, shard_bytes):
            writer.add({name: large[name] for name in group})
        entry = writer.add_file("graph.pb", message.SerializeToString(deterministic=True))
        writer.commit(
            {
                "format": FORMAT,
                "version": VERSION,
                "nbflow": importlib.metadata.version("nbflow"),
                "time_s": time.time(),
                "graph": {"file": entry["file"], "digest": graph.digest()},
                "variables": names,
                "signatures": {s.name: _described(s) for s in cut},
            }
        )
    return folder


def _pair(name: str, signature: Any) -> tuple[Any, Any]:
    if not isinstance(signature, tuple) or len(signature) != 2 or not isinstance(signature[0], Mapping):
        raise GraphError(f"signature {name!r} is ({{'x': x}}, {{'y': y}}), inputs and outputs, not {signature!r:.80}")
    return signature


def _signature(name: str, inputs: Inputs, outputs: Outputs) -> Signature:
    single = not isinstance(outputs, Mapping)
    results = {"output": outputs} if single else outputs
    for word in (name, *inputs):
        if not isinstance(word, str) or not word.isidentifier() or word.startswith("_"):
            raise GraphError(f"signature {name!r}: {word!r} is not a name that a Python function can have")
    if not results:
        raise GraphError(f"signature {name!r} has no outputs")
    return Signature(name, _tensors(name, inputs), _tensors(name, results), single)


def _tensors(signature: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
    found = {}
    for name, value in values.items():
        tensor = as_tensor(value)
        if tensor is None:
            raise GraphError(f"signature {signature!r}: {name!r} is not a tensor: {value!r:.80}")
        if tensor.spec.resource:
            raise GraphError(f"signature {signature!r}: {name!r} is the handle of state, not a value; read it first")
        found[name] = tensor
    return found


# --- cutting ---------------------------------------------------------------------------------------------------------


def _cut(graph: Graph, signatures: list[Signature]) -> tuple[Graph, list[Signature]]:
    """A copy of what the signatures need, and the signatures in it. An input that nobody needs computed becomes a
    placeholder; one that another signature computes stays, and is fed."""
    needed: dict[str, Node] = {}
    for signature in signatures:
        for tensor in (*signature.inputs.values(), *signature.outputs.values()):
            graph.check_member(tensor.node)
        for node in _behind(signature):
            needed[node.name] = node
    into = Graph()
    into.seed = graph.seed
    tensors: TensorMap = {}
    for signature in signatures:
        for tensor in signature.inputs.values():
            key = (tensor.node.name, tensor.index)
            if key not in tensors and (tensor.node.name not in needed or tensor.node.op == "placeholder"):
                tensors[key] = add_placeholder(into, tensor, tensor.spec)
    with_reads = [*needed.values(), *_reads(graph, needed)]
    order = {name: i for i, name in enumerate(graph.nodes.keys())}
    kept = sorted((n for n in with_reads if n.op != "placeholder"), key=lambda n: order.get(n.name, len(order)))
    copy_nodes(topological(kept), into, tensors, {})
    for node in into.nodes.values():
        node.device = DeviceSpec()
        node.colocate = tuple(name for name in node.colocate if name in into.nodes)
    into.generations.clear()  # values start anew where it is loaded

    def inside(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensors[(t.node.name, t.index)] for name, t in found.items()}

    return into, [Signature(s.name, inside(s.inputs), inside(s.outputs), s.single) for s in signatures]


def _behind(signature: Signature) -> Iterator[Node]:
    """What computes the outputs from the inputs. Raises GraphError when that needs what nobody gives."""
    given = {(t.node.name, t.index) for t in signature.inputs.values()}
    seen: set[str] = set()
    todo = [t.node for t in signature.outputs.values() if (t.node.name, t.index) not in given]
    while todo:
        node = todo.pop()
        if node.name in seen:
            continue
        seen.add(node.name)
        if node.stale:
            raise StaleError(f"{node.name!r} is stale: {node.stale}; run {node.cell} again", where=node.where)
        if node.op == "placeholder":
            what = f"a value for {node.name!r} ({node.outputs[0].spec})"
            raise GraphError(f"signature {signature.name!r} needs {what}; add it to its inputs", where=node.where)
        if node.op in ("iterator", "queue"):
            raise GraphError(
                f"signature {signature.name!r} reads from the {node.op} {node.name!r}; make the tensors of the batch "
                "its inputs",
                where=node.where,
            )
        yield node
        todo.extend(t.node for t in node.inputs if (t.node.name, t.index) not in given)
        todo.extend(node.control_inputs)


def _reads(graph: Graph, needed: Mapping[str, Node]) -> list[Node]:
    """The ops by which a `Variable` is known, where an output reads the variable in another way."""
    reads = [graph.find(f"{name}/read") for name, node in needed.items() if node.op == "variable"]
    return [node for node in reads if node is not None and node.name not in needed]


def _put(message: pb.Tensor, value: Array, large: dict[str, Array]) -> None:
    """A `Put` for constants: kept by content, under a name that no node can have."""
    message.blob = hashlib.sha256(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data).hexdigest()
    large[_constant_name(message)] = value


def _constant_name(message: pb.Tensor) -> str:
    # The same bytes may be constants of several dtypes and shapes.
    return f"constant:{message.blob}:{message.dtype}:{','.join(map(str, message.shape))}"


def _described(signature: Signature) -> dict[str, Any]:
    def table(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            name: {
                "tensor": t.name,
                "dtype": encode_dtype(t.dtype),
                "shape": None if t.shape is None else list(t.shape),
            }
            for name, t in tensors.items()
        }

    return {"inputs": table(signature.inputs), "outputs": table(signature.outputs), "single": signature.single}


# --- loading ---------------------------------------------------------------------------------------------------------


class SavedModel:
    """A model that was loaded: a method for each signature, and the graph behind them.

    `model.predict(x=array)` takes arrays by name and gives a dict of arrays, or one array where one was exported.
    Methods run on the current cluster. `graph`, `signatures` and `variables` are for building on: within
    `with model.graph.as_default():` losses and steps can be added, and what is trained is what the methods use.
    """

    def __init__(self, graph: Graph, signatures: Mapping[str, Signature], folder: Folder, version: int | None) -> None:
        self.graph = graph
        self.signatures = MappingProxyType(dict(signatures))
        self.path = folder.path
        self.version = version
        self._folder = folder
        self._session: Session | None = None

    @property
    def variables(self) -> list[Variable]:
        """All of the graph, sorted by name."""
        return global_variables(self.graph)

    def __getattr__(self, name: str) -> Function:
        found = self.__dict__.get("signatures", {}).get(name)
        if found is None:
            known = ", ".join(self.__dict__.get("signatures", ())) or "none"
            raise AttributeError(f"the model has no signature {name!r}; it has: {known}")
        return Function(self, found)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.signatures]

    def __repr__(self) -> str:
        return "\n".join([f"<SavedModel {self.path}", *(f"  {s}" for s in self.signatures.values())]) + ">"

    def session(self) -> Session:
        """The session of the model's graph on the current cluster. Variables have the values of the folder when it is
        first asked for, on each cluster: their own, from then on."""
        with self.graph.as_default():
            session = current_session()
        if session is not self._session:
            names = self._folder.manifest["variables"]
            for part in self._folder.read(names):
                session.assign(part)
            self._session = session
        return session


@dataclass(frozen=True, slots=True)
class Function:
    """A signature of a model, to call."""

    model: SavedModel
    signature: Signature

    def __call__(self, **inputs: Any) -> Any:
        """Computes the outputs. Raises GraphError for arguments that are missing or unknown; ShapeError and DTypeError
        for values that do not fit; the errors of a run."""
        wanted = self.signature.inputs
        missing, unknown = wanted.keys() - inputs.keys(), inputs.keys() - wanted.keys()
        if missing or unknown:
            parts = [f"{what} {', '.join(sorted(x))}" for what, x in (("without", missing), ("with", unknown)) if x]
            raise GraphError(f"{self.signature} was called {' and '.join(parts)}")
        feeds = {wanted[name]: value for name, value in inputs.items()}
        found: dict[str, Array] = self.model.session().run(dict(self.signature.outputs), feeds)
        return found["output"] if self.signature.single else found

    def __repr__(self) -> str:
        return f"<{self.signature}>"


def load(path: str | Path, version: int | None = None) -> SavedModel:
    """A model that `export` wrote: `version` of it, or the highest when left out. `path` may be a version's folder.

    All files are compared with the digests that they were written with. Raises CheckpointError for a folder that is
    missing, damaged, or written by a newer nbflow.
    """
    root = Path(path)
    found = versions(root)
    if version is None and not found and (root / MANIFEST).exists():
        place = root
    elif version is None and found:
        version = max(found)
        place = found[version]
    elif version in found:
        place = found[version]
    else:
        have = ", ".join(map(str, sorted(found))) or "none"
        wanted = "" if version is None else f" of version {version}"
        raise CheckpointError(f"{root} holds no model{wanted}; versions there: {have}")
    folder = Folder(place)
    folder.expect(FORMAT, VERSION)
    for entry in folder.files:
        folder.verify(entry["file"])
    try:
        graph = _read_graph(folder)
        signatures = {n: _read_signature(graph, n, d) for n, d in folder.manifest["signatures"].items()}
    except (NbflowError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = error.message if isinstance(error, NbflowError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{place} does not hold together: {reason}") from error
    model = SavedModel(graph, signatures, folder, version)
    model.session()
    return model


def versions(path: Path) -> dict[int, Path]:
    """The versions of a model in `path`: number -> folder. One whose writing was cut off does not count."""
    if not path.is_dir():
        return {}
    found = {entry.name: entry for entry in path.iterdir() if entry.name.isdecimal() and entry.name[0] != "0"}
    return {int(name): entry for name, entry in found.items() if (entry / MANIFEST).exists()}


def _read_graph(folder: Folder) -> Graph:
    constants: dict[str, Array] = {}
    for part in folder.read(name for name in folder.tensors if name.startswith("constant:")):
        constants.update(part)

    def get(message: pb.Tensor) -> Array:
        found = constants.get(_constant_name(message))
        if found is None:
            raise Rejected("the graph has a constant that is not in the folder")
        return found

    graph = graph_from_proto((folder.path / folder.manifest["graph"]["file"]).read_bytes(), get)
    for name in folder.manifest["variables"]:
        node, stored = graph.node(name), folder.tensors[name]
        if node.op != "variable" or node.outputs[0].spec != TensorSpec(stored.shape, stored.dtype, resource=True):
            raise CheckpointError(f"{folder.path}: variable {name!r} is {node.outputs[0].spec}, its value {stored}")
    if graph.digest() != folder.manifest["graph"]["digest"]:
        raise CheckpointError(f"{folder.path}: the graph has another digest than when it was written")
    return graph


def _read_signature(graph: Graph, name: str, described: Mapping[str, Any]) -> Signature:
    def tensors(table: Mapping[str, Any]) -> dict[str, Tensor]:
        return {key: _named(graph, str(entry["tensor"])) for key, entry in table.items()}

    single = bool(described["single"])
    return Signature(name, tensors(described["inputs"]), tensors(described["outputs"]), single)


def _named(graph: Graph, name: str) -> Tensor:
    node, _, index = name.partition(":")
    return graph.node(node).outputs[int(index or 0)]
