"""The plainest way to run a graph: node after node, no plan, no buffers, no threads.

It is what the op tests run on, and the oracle that the compiled pipeline is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nbflow.autodiff import Key
from nbflow.backends.base import Backend, Context
from nbflow.backends.numpy import NumpyBackend
from nbflow.body import ARGUMENT, Body, bodies_of
from nbflow.errors import GraphError, OpError, ShapeError
from nbflow.graph import Node, Tensor, ToTensor, ancestors, as_node
from nbflow.ops._build import as_tensor
from nbflow.spec import TensorSpec, spec_of
from nbflow.state import StateStore

Observer = Callable[[Node, list[Any], list[Any]], None]


class Evaluator:
    """Runs graphs, one step a call, keeping variables and other state from call to call.

    `observe(node, inputs, outputs)` is called after each op.
    """

    def __init__(self, backend: Backend | None = None, observe: Observer | None = None) -> None:
        self.backend = backend or NumpyBackend()
        self.state = StateStore()
        self.step = 0
        self._observe = observe

    def run(self, fetches: Any, feeds: Mapping[Any, Any] | None = None) -> Any:
        """The values of `fetches` (any nesting of lists, tuples and dicts; None for ops without output), copied.

        `feeds` are keyed by tensor or variable. Raises GraphError for an unfed placeholder, ShapeError for a feed that
        does not fit, OpError for an op that fails.
        """
        values: dict[Key, Any] = {}
        for key, value in (feeds or {}).items():
            tensor = as_tensor(key)
            if tensor is None:
                raise GraphError(f"feeds are keyed by tensors, not by {key!r}")
            values[tensor.node.name, tensor.index] = self.backend.asarray(_checked(tensor, value))
        fed = _fully_fed(values, feeds or {})
        self._run_nodes([as_node(leaf) for leaf in _leaves(fetches)], values, fed, self.step)
        self.step += 1
        return _map(fetches, lambda leaf: self._fetched(leaf, values))

    def _run_nodes(self, targets: Sequence[Node], values: dict[Key, Any], fed: set[str], step: int) -> None:
        order = ancestors(targets, stop=fed)
        handles = {t.inputs[0].node.name for t in targets if t.op == "initialize"}
        for node in order:
            if node.op == "variable" and node.name not in handles:
                self._initialise(node)
        with self.backend.scope():
            for node in order:
                self._run_node(node, values, step)

    def _initialise(self, variable: Node) -> None:
        initialiser = variable.graph.find(f"{variable.name}/initialize")
        if initialiser is not None and self.state.cell(_state_key(variable)).value is None:
            self._run_nodes([initialiser], {}, set(), 0)

    def _run_node(self, node: Node, values: dict[Key, Any], step: int) -> None:
        if node.outputs and all((node.name, t.index) in values for t in node.outputs):
            return
        if node.op == "placeholder":
            raise GraphError(f"the placeholder {node.name} is not fed", where=node.where)
        inputs = [values[t.node.name, t.index] for t in node.inputs]
        outputs = self._outputs(node, inputs, step, "", ())
        for tensor, value in zip(node.outputs, outputs, strict=True):
            values.setdefault((node.name, tensor.index), value)
        if self._observe is not None:
            self._observe(node, inputs, outputs)

    def _outputs(self, node: Node, inputs: list[Any], step: int, stream: str, frame: tuple[int, ...]) -> list[Any]:
        """What `node` gives; `stream` and `frame` say in which body it stands, and in which iterations."""
        if bodies_of(node):
            inside = f"{stream}{node.attrs['origin'] or node.name}/"
            return (self._cond if node.op == "cond" else self._loop)(node, inputs, step, inside, frame)
        try:
            implementation = self.backend.table[node.op]
        except KeyError:
            raise GraphError(
                f"the backend {self.backend.type} does not implement {node.op}", where=node.where
            ) from None
        first = (
            [Context(stream + _state_key(node), node.graph.seed, step, self.state, lambda: None, frame)]
            if node.definition.stateful
            else []
        )
        try:
            result = implementation(*first, *inputs, **node.attrs)
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
            raise OpError(f"{node.op} {node.name!r} failed: {error}", where=node.where, op=node.name) from error
        if node.op == "read_variable":
            result = result.copy()  # updates in this step change the variable in place
        # An op of as many outputs as an attribute says gives a tuple, also of one.
        return list(result) if isinstance(result, tuple) else [result] if node.outputs else []

    def _cond(self, node: Node, inputs: list[Any], step: int, stream: str, frame: tuple[int, ...]) -> list[Any]:
        body = node.attrs["then" if bool(inputs[0]) else "otherwise"]
        return self._body(body, inputs[1:], step, stream, frame)

    def _loop(self, node: Node, inputs: list[Any], step: int, stream: str, frame: tuple[int, ...]) -> list[Any]:
        attrs = node.attrs
        limit = int(inputs.pop(0)) if attrs["limited"] else None
        n, m = attrs["carried"], attrs["scanned"]
        carried, over, captured = inputs[:n], inputs[n : n + m], inputs[n + m :]
        ends = [len(r) for r in over] + ([] if limit is None else [limit])
        stacks: list[list[Any]] = [[] for _ in attrs["body"].outputs[n:]]
        count = 0
        while not ends or count < min(ends):
            inside = (*frame, count)
            test = attrs["condition"]
            if test is not None and not self._body(test, [*carried, *captured], step, stream, inside)[0]:
                break
            row = min(ends) - 1 - count if attrs["reverse"] and ends else count
            given = self._body(attrs["body"], [*carried, *[r[row] for r in over], *captured], step, stream, inside)
            # Copied: a later iteration may update in place what this one gave.
            carried = [v.copy() for v in given[:n]]
            for stack, value in zip(stacks, given[n:], strict=True):
                stack.append(np.array(self.backend.to_host(value)))
            count += 1
        whole: list[Any] = []
        for tensor, rows, padded in zip(attrs["body"].outputs[n:], stacks, attrs["padded"], strict=True):
            ordered = rows[::-1] if attrs["reverse"] else rows
            whole += [self.backend.asarray(w) for w in _stacked(ordered, tensor.spec, padded)]
        return [*carried, self.backend.asarray(np.array(count, np.int64)), *whole]

    def _body(self, body: Body, arguments: list[Any], step: int, stream: str, frame: tuple[int, ...]) -> list[Any]:
        values: dict[Key, Any] = {(a.node.name, 0): v for a, v in zip(body.arguments, arguments, strict=True)}
        for node in body.graph.nodes.values():
            if node.op != ARGUMENT:
                inputs = [values[t.node.name, t.index] for t in node.inputs]
                given = self._outputs(node, inputs, step, stream, frame)
                values.update(((node.name, i), v) for i, v in enumerate(given))
        return [values[t.node.name, t.index] for t in body.outputs]

    def _fetched(self, leaf: Any, values: Mapping[Key, Any]) -> Any:
        if isinstance(leaf, Node):
            if not leaf.outputs:
                return None
            leaf = leaf.outputs[0]
        tensor = as_tensor(leaf)
        assert tensor is not None  # _leaves holds only these
        return np.array(self.backend.to_host(values[tensor.node.name, tensor.index]))


def _stacked(rows: Sequence[Any], spec: TensorSpec, padded: bool) -> list[Any]:
    """Rows as one array; with `padded`, filled up with zeros, and their sizes."""
    if not padded:
        return [np.stack(rows) if rows else np.empty((0, *(d or 0 for d in spec.shape or ())), spec.dtype)]
    shape = tuple(max((r.shape[axis] for r in rows), default=0) for axis in range(spec.rank or 0))
    whole: Any = np.zeros((len(rows), *shape), spec.dtype)
    for number, row in enumerate(rows):
        whole[(number, *(slice(d) for d in row.shape))] = row
    return [whole, np.array([r.shape for r in rows], np.int64).reshape(len(rows), len(shape))]


def evaluate(fetches: Any, feeds: Mapping[Any, Any] | None = None, *, backend: Backend | None = None) -> Any:
    """The values of `fetches` after one step from a fresh state. See `Evaluator.run`."""
    return Evaluator(backend).run(fetches, feeds)


def _state_key(node: Node) -> str:
    return f"{node.name}:{node.graph.generations.get(node.name, 0)}"


def _checked(tensor: Tensor, value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value, tensor.dtype)
    if not tensor.spec.accepts(TensorSpec(spec_of(array).shape, tensor.dtype, tensor.spec.resource)):
        raise ShapeError(f"{tensor.name} is {tensor.spec}, but is fed {spec_of(array)}", where=tensor.node.where)
    return array


def _fully_fed(values: Mapping[Key, Any], feeds: Iterable[Any]) -> set[str]:
    nodes = [as_node(key) for key in feeds]
    return {n.name for n in nodes if all((n.name, t.index) in values for t in n.outputs)}


def _leaves(fetches: Any) -> list[Node | Tensor | ToTensor]:
    found: list[Node | Tensor | ToTensor] = []
    _map(fetches, found.append)
    return found


def _map(fetches: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(fetches, dict):
        return {k: _map(v, function) for k, v in fetches.items()}
    if isinstance(fetches, (list, tuple)):
        return type(fetches)([_map(v, function) for v in fetches])
    return function(fetches)
