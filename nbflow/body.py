"""Bodies: graphs inside a node, for the ops that run one many times or perhaps not at all (`loop`, `cond`).

A body is traced from a Python function. What the function uses of the graph around it is *captured*: it becomes one
more argument of the body and one more input of the node. So a body sees nothing but its arguments, and can be
differentiated, placed, cut and sent like any graph. Names in a body are relative to the node it belongs to: node
`add` in the body of `rnn` is `rnn/body/add` to people, and to random streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from nbflow.digest import Digested, Mark, graph_digest
from nbflow.errors import GraphError, NbflowError
from nbflow.graph import Graph, Node, Tensor, ancestors
from nbflow.op import Attrs
from nbflow.rewrite import TensorMap, copy_nodes, new_like
from nbflow.spec import TensorSpec, format_shape, merge_shapes, shape_accepts

# The op that stands for an argument of a body. Declared in `ops/control_flow.py`.
ARGUMENT = "argument"


@dataclass(frozen=True, slots=True, eq=False)
class Body(Digested):
    """A graph with arguments, in order, and outputs. Never changed once it is an attribute of a node."""

    graph: Graph
    arguments: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def __repr__(self) -> str:
        taken = ", ".join(str(t.spec) for t in self.arguments)
        given = ", ".join(str(t.spec) for t in self.outputs)
        return f"<body of {len(self.graph.nodes)} ops: {taken} → {given}>"

    def digest_into(self, mark: Mark) -> None:
        # Arguments carry their number; outputs are told by what computes them.
        nodes = list(self.graph.nodes.values())
        memo: dict[str, bytes] = {}
        mark.update(graph_digest(nodes, 0, memo).encode())
        for tensor in self.outputs:
            mark.update(memo[tensor.node.name] + str(tensor.index).encode())

    @property
    def is_stateful(self) -> bool:
        """Whether it reads or writes state, or draws random numbers."""
        return any(is_stateful(n) for n in self.graph.nodes.values())


def bodies_of(node: Node) -> dict[str, Body]:
    """The bodies among the attributes of `node`, by attribute."""
    return {key: value for key, value in node.attrs.items() if isinstance(value, Body)}


def is_stateful(node: Node) -> bool:
    """Whether `node`, or what its bodies hold, reads or writes state or draws random numbers."""
    return node.definition.stateful or any(b.is_stateful for b in bodies_of(node).values())


def leading(node: Node) -> int:
    """How many inputs of a node with bodies come before those that its bodies take as arguments."""
    body = next(iter(bodies_of(node).values()))
    return len(node.inputs) - len(body.arguments)


# What takes the handle of a variable and leaves it as it is.
_READERS = ("read_variable", "gradient_join", "sparse_join")


def writes_state(node: Node, position: int) -> bool:
    """Whether `node` may change the state whose handle is its input number `position`."""
    bodies = bodies_of(node)
    if not bodies:
        return node.op not in _READERS
    argument = position - leading(node)
    return any(
        writes_state(user, index)
        for body in bodies.values()
        for user in body.graph.nodes.values()
        for index, tensor in enumerate(user.inputs)
        if tensor.node.op == ARGUMENT and tensor.node.attrs["index"] == argument
    )


def _writes(node: Node) -> bool:
    """Whether `node` changes state that lives outside of its body."""
    return any(writes_state(node, i) for i, t in enumerate(node.inputs) if t.spec.resource)


def map_bodies(attrs: Attrs, function: Callable[[Body], Body]) -> dict[str, Any]:
    """`attrs` with `function` applied to each body."""
    return {key: function(value) if isinstance(value, Body) else value for key, value in attrs.items()}


# --- tracing ---------------------------------------------------------------------------------------------------------


class Trace:
    """One body in the making: `with` it, ops that the function makes go into its graph.

    - `outer`: the graph around it. `name`: of the node it will belong to, as it is called there. `label`: `body`,
      `condition`, `then`, `else`: the scope of the body's nodes.
    - `captured`: the tensors of `outer` that were used, in order, and what stands for each inside.
    - `awaited`: nodes of `outer` that nodes inside run after.
    """

    def __init__(self, outer: Graph, name: str, label: str) -> None:
        self.graph = new_like(outer)
        self.graph.outer = outer
        self.graph.owner = outer.owner
        self.graph.capture = self._capture
        self.label = label
        self.prefix = f"{_prefix(outer)}{name}"
        self.arguments: list[Tensor] = []
        self.captured: list[Tensor] = []
        self._inside: dict[tuple[int, int], Tensor] = {}
        self._made = 0
        _TRACES[id(self.graph)] = self

    @property
    def awaited(self) -> tuple[Node, ...]:
        return tuple(self.graph.awaited.values())

    def argument(self, spec: TensorSpec) -> Tensor:
        """One more argument."""
        number = len(self.arguments)
        self._made += 1  # a number may be dealt again (share_captures), a name not
        attrs = {"shape": spec.shape, "dtype": spec.dtype, "resource": spec.resource, "index": number}
        with self.graph.control_dependencies(None), self.graph.device(None), self.graph.absolute_scope(self.label):
            made = self.graph.add(ARGUMENT, (), attrs, name=f"argument_{self._made}").outputs[0]
        self.arguments.append(made)
        return made

    def capture(self, tensor: Tensor) -> Tensor:
        """What stands inside for `tensor`, which is of the graph around, or of one around that."""
        return tensor if tensor.node.graph is self.graph else self._capture(tensor)

    def _capture(self, tensor: Tensor) -> Tensor:
        key = (id(tensor.node), tensor.index)
        found = self._inside.get(key)
        if found is None:
            outer = self.graph.outer
            assert outer is not None  # set when this trace began
            if not outer.sees(tensor.node.graph):
                raise GraphError(
                    f"{tensor.name} is used in {self.prefix}/{self.label}, but belongs to another graph or body",
                    where=tensor.node.where,
                )
            if tensor.node.graph is outer:
                outer.check_member(tensor.node)
            found = self._inside[key] = self.argument(tensor.spec)
            self.captured.append(tensor)
        return found

    def outside(self, argument: Tensor) -> Tensor | None:
        """The tensor that a captured `argument` stands for; None for the function's own arguments."""
        own = len(self.arguments) - len(self.captured)
        index = int(argument.node.attrs["index"])
        return self.captured[index - own] if index >= own else None

    @contextmanager
    def building(self) -> Iterator[None]:
        """Ops go into the body."""
        with self.graph.as_default(), self.graph.absolute_scope(self.label):
            yield

    def close(self, outputs: Sequence[Tensor]) -> Body:
        """The body. Nothing can be added to its graph any more."""
        given = tuple(self.capture(t) for t in outputs)
        self._prune(given)
        for node in self.graph.nodes.values():
            if node.op != ARGUMENT and any(t.spec.resource for t in node.outputs):
                raise GraphError(
                    f"{node.op} {node.name!r} keeps state, and is made in the {self.label} of {self.prefix}, which may "
                    "run many times or never; make it before",
                    where=node.where,
                )
        self.graph.capture = None
        self.graph.outer = None
        del _TRACES[id(self.graph)]
        return Body(self.graph, tuple(self.arguments), given)

    def _prune(self, outputs: Sequence[Tensor]) -> None:
        """Takes out what no output needs; what writes state stays, since the function was asked to do that."""
        nodes = self.graph.nodes
        writers = [n for n in nodes.values() if _writes(n)]
        needed = {id(n) for n in ancestors([*(t.node for t in outputs), *writers])}
        for node in list(nodes.values()):
            if node.op != ARGUMENT and id(node) not in needed:
                del nodes[node.name]

    def abandon(self) -> None:
        """Forgets a trace whose function raised."""
        _TRACES.pop(id(self.graph), None)


# The traces that are open, by the identity of their graph: how a variable made in a body finds its way out.
_TRACES: dict[int, Trace] = {}


def _prefix(graph: Graph) -> str:
    trace = _TRACES.get(id(graph))
    return f"{trace.prefix}/" if trace is not None else ""


def captures(graph: Graph) -> list[tuple[Tensor, Tensor]]:
    """(what stands inside, the tensor of a graph around it) of all that a body in the making has captured so far."""
    trace = _TRACES.get(id(graph))
    return [] if trace is None else [(trace.capture(t), t) for t in trace.captured]


def share_captures(traces: Sequence[Trace]) -> list[Tensor]:
    """Makes all `traces`, whose own arguments are equally many, capture the same tensors in the same order."""
    captured: dict[tuple[int, int], Tensor] = {}
    for trace in traces:
        captured.update(((id(t.node), t.index), t) for t in trace.captured)
    for trace in traces:
        own = trace.arguments[: len(trace.arguments) - len(trace.captured)]
        trace.arguments = list(own)
        for number, (key, tensor) in enumerate(captured.items(), start=len(own)):
            inside = trace._inside.get(key)
            if inside is None:
                trace._inside[key] = trace.argument(tensor.spec)
            else:
                inside.node.attrs["index"] = number
                trace.arguments.append(inside)
        trace.captured = list(captured.values())
    return list(captured.values())


def lift(tensor: Tensor, what: str) -> Tensor:
    """`tensor` computed outside of all bodies, for what must not depend on them. Raises GraphError when it does."""
    root = tensor.node.graph.root
    if tensor.node.graph is root:
        return tensor
    made: dict[tuple[int, int], Tensor] = {}

    def outside(t: Tensor) -> Tensor:
        if t.node.graph is root:
            return t
        key = (id(t.node), t.index)
        if key not in made:
            if t.node.op == ARGUMENT:
                trace = _TRACES[id(t.node.graph)]
                found = trace.outside(t)
                if found is None:
                    raise GraphError(f"{what} depends on {t.name} of {trace.prefix}, which each run of it changes")
                made[key] = outside(found)
            else:
                node = root.add(t.node.op, [outside(i) for i in t.node.inputs], t.node.attrs)
                made.update(((id(t.node), o.index), o) for o in node.outputs)
        return made[key]

    return outside(tensor)


@contextmanager
def outside_bodies(graph: Graph) -> Iterator[Graph]:
    """The graph around all bodies, under a scope that says in which node `graph` is a body."""
    trace = _TRACES.get(id(graph))
    root = graph.root
    if trace is None:
        yield root
        return
    inner = graph.scoped("").strip("/").removeprefix(trace.label).strip("/")
    with root.absolute_scope("/".join(p for p in (trace.prefix, inner) if p)):
        yield root


# --- shapes ----------------------------------------------------------------------------------------------------------


def infer(body: Body, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The specs of the outputs when the arguments have `specs`. Raises ShapeError or DTypeError as the ops do."""
    found = dict(_all_specs(body, specs))
    return [found[(t.node.name, t.index)] for t in body.outputs]


def _all_specs(body: Body, specs: Sequence[TensorSpec]) -> Iterator[tuple[tuple[str, int], TensorSpec]]:
    found: dict[tuple[str, int], TensorSpec] = {}
    for node in body.graph.nodes.values():
        if node.op == ARGUMENT:
            given: Sequence[TensorSpec] = [specs[node.attrs["index"]]]
        else:
            try:
                given = node.definition.infer([found[(t.node.name, t.index)] for t in node.inputs], node.attrs)
            except NbflowError as error:
                raise type(error)(f"{node.op} {node.name!r}: {error.message}", where=node.where) from None
        for tensor, spec in zip(node.outputs, given, strict=True):
            found[(node.name, tensor.index)] = spec
            yield (node.name, tensor.index), spec


def narrowed(declared: TensorSpec, got: TensorSpec) -> TensorSpec:
    """What is known of a value that is `got` outside and was traced as `declared`; the latter wins a contradiction."""
    if not shape_accepts(declared.shape, got.shape):
        return declared
    return replace(declared, shape=merge_shapes(declared.shape, got.shape))


def joined(a: TensorSpec, b: TensorSpec) -> TensorSpec:
    """What holds for both: dimensions that differ are unknown."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return replace(a, shape=None)
    return replace(a, shape=tuple(x if x == y else None for x, y in zip(a.shape, b.shape, strict=True)))


def specialise(body: Body, specs: Sequence[TensorSpec]) -> Body:
    """A copy in which the arguments have `specs`, and everything else follows, bodies inside too."""
    if all(a.spec == s for a, s in zip(body.arguments, specs, strict=True)):
        known = {(n.name, t.index): t.spec for n in body.graph.nodes.values() for t in n.outputs}
        if all(known[k] == s for k, s in _all_specs(body, specs)) and not _nested(body):
            return body
    return rebuild(body, lambda old, new: _set_argument(new, specs) if new.op == ARGUMENT else None)


def _set_argument(node: Node, specs: Sequence[TensorSpec]) -> None:
    spec = specs[node.attrs["index"]]
    node.attrs.update(shape=spec.shape, dtype=spec.dtype, resource=spec.resource)
    node.outputs[0].spec = spec


def _nested(body: Body) -> bool:
    return any(bodies_of(n) for n in body.graph.nodes.values())


def rebuild(body: Body, change: Callable[[Node, Node], None] | None = None) -> Body:
    """A copy of `body`, with shapes inferred anew; `change(old, new)` may set attributes and specs of each node."""
    graph = new_like(body.graph)
    tensors: TensorMap = {}
    controls: dict[str, Node] = {}
    for node in body.graph.nodes.values():
        copy_nodes([node], graph, tensors, controls, infer=True, change=change)
        made = graph.nodes[node.name]
        inner = made.definition.specialise
        if inner is not None:
            made.attrs = inner([t.spec for t in made.inputs], made.attrs)
    return Body(
        graph,
        tuple(tensors[(t.node.name, t.index)] for t in body.arguments),
        tuple(tensors[(t.node.name, t.index)] for t in body.outputs),
    )


def specialise_bodies(graph: Graph) -> None:
    """Gives each body in `graph`, which is changed, the shapes that really come in."""
    for node in graph.nodes.values():
        inner = node.definition.specialise
        if inner is not None:
            node.attrs = inner([t.spec for t in node.inputs], node.attrs)


def describe_change(name: str, before: TensorSpec, after: TensorSpec) -> str:
    """`h enters as float32 (2,) and leaves as float32 (4,)`, for people."""
    return (
        f"{name} enters as {before.dtype} {format_shape(before.shape)} "
        f"and leaves as {after.dtype} {format_shape(after.shape)}"
    )
