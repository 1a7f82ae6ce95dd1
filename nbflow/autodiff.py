"""Gradients as nodes: one reverse sweep over the graph, calling each op's gradient rule once.

Reverse accumulation as in Griewank and Walther, "Evaluating Derivatives", chapter 3. The rules build ordinary ops, so
gradients have gradients. A gradient node runs on the device of the op it belongs to.

The gradient of looking up rows is sparse (`IndexedSlices`). It stays so while it is added to others like it and passes
ops that only rename or cast; every other rule gets a dense one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Literal, overload

from nbflow.body import captures
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Graph, Node, Tensor, ToTensor, ancestors
from nbflow.ops import add_n, astype, ones_like, zeros_like
from nbflow.ops._build import ArrayLike, as_tensor, convert
from nbflow.ops.control_gradients import SWEEP
from nbflow.ops.slices import Gradient, IndexedSlices, dense, joined
from nbflow.spec import Shape, format_shape, kind_of, shape_accepts

# (node name, output index)
Key = tuple[str, int]


Values = Tensor | ToTensor | Sequence[Tensor | ToTensor]

# Ops with one input of the output's shape through which slices pass as they are, perhaps in another dtype.
_PASS_SLICES = frozenset({"identity", "positive", "astype"})


@overload
def gradients(
    ys: Values,
    xs: Values,
    grad_ys: ArrayLike | Sequence[ArrayLike | None] | None = None,
    *,
    sparse: Literal[False] = False,
) -> list[Tensor | None]: ...


@overload
def gradients(
    ys: Values,
    xs: Values,
    grad_ys: ArrayLike | Sequence[ArrayLike | None] | None = None,
    *,
    sparse: Literal[True],
) -> list[Gradient | None]: ...


def gradients(
    ys: Values,
    xs: Values,
    grad_ys: ArrayLike | Sequence[ArrayLike | None] | None = None,
    *,
    sparse: bool = False,
) -> Sequence[Gradient | None]:
    """The gradients of the sum of `ys` for each of `xs` (tensors or variables), as new tensors.

    `grad_ys`: what flows into each of `ys`, of its shape and dtype; ones where None or left out. None stands for an x
    that no y depends on, or only through ops without a gradient (comparisons, rounding, integers, stop_gradient).
    `sparse`: an x of which only rows are looked up (`nf.take` and `nf.nn.embedding_lookup` along the first dimension)
    has `nf.IndexedSlices` for a gradient, not a tensor as large as x.
    A variable's gradient counts all its reads (`w` and `w.read()`) outside of loops and branches; a tensor that
    `w.read()` gave is that one read.

    Of a complex y the real part counts. The gradient for a complex x = a + ib is (gradient for a) + i (gradient for b),
    as in PyTorch and TensorFlow: x - rate * gradient descends, and a holomorphic f passes g on as g * conj(f').

    Raises DTypeError when a y is not floating, ShapeError when an entry of `grad_ys` does not fit.
    """
    targets, sources = _tensors(ys, "ys"), _tensors(xs, "xs")
    if not targets:
        raise GraphError("gradients of nothing: ys is empty")
    return _swept(targets, sources, grad_ys, sparse=sparse)


def gradients_within(ys: Sequence[Tensor], xs: Sequence[Tensor], grad_ys: Sequence[Tensor]) -> list[Gradient | None]:
    """What `gradients` gives where nothing before `xs` is asked for, and it need not look there: for rules of ops that
    stand for a part of the graph. Sparse ones stay sparse."""
    return _swept(ys, xs, grad_ys, sparse=True, stop=frozenset(x.node.name for x in xs))


def _swept(
    targets: Sequence[Tensor],
    sources: Sequence[Tensor],
    grad_ys: ArrayLike | Sequence[ArrayLike | None] | None,
    *,
    sparse: bool,
    stop: frozenset[str] = frozenset(),
) -> list[Gradient | None]:
    graph = targets[0].graph
    if graph.capture is not None:
        sources = [graph.capture(x) if x.graph is not graph and graph.sees(x.graph) else x for x in sources]
    for tensor in (*targets, *sources):
        if tensor.graph is not graph:
            raise GraphError(
                f"gradients of {targets[0].name} for {tensor.name}, which belongs to another graph or body; "
                "make all ys in one, and the xs there or around it",
                where=tensor.node.where,
            )
    _check_captured(graph, targets, sources)
    order = ancestors((t.node for t in targets), stop)
    graph.read(order)
    reads = [n.outputs[0] for n in order if n.op == "read_variable"]
    wanted = [r for x in sources for r in (x, *_reads_beside(x, reads))]
    reached = _reached(order, {_key(x) for x in wanted})
    made = _Made(graph)
    sweep = _Sweep(reached)
    with graph.device(None), graph.colocate_with(None):
        sweep.start(targets, _seeds(targets, grad_ys))
        for node in reversed(order):
            sweep.visit(node)
        found = [sweep.gradient([x, *_reads_beside(x, reads)], sparse=sparse) for x in sources]
    made.drop_unused(found)
    return found


def jvp(ys: Values, xs: Values, tangents: ArrayLike | Sequence[ArrayLike | None]) -> list[Tensor | None]:
    """How `ys` change when `xs` change by `tangents`: the Jacobian times them, a tensor for each y.

    `tangents`: one for each of `xs`, of its shape and dtype; None: that x stays. None in the result stands for a y that
    depends on no x that moves. The cost is that of some gradients: this is the gradient, for u, of the gradient of `ys`
    with u flowing into them, which is linear in u (Townsend, "A new trick for calculating Jacobian vector products",
    2017). So every op that has a gradient has this, and the values of u are never computed.
    Raises DTypeError and ShapeError as `gradients` does.
    """
    targets, sources = _tensors(ys, "ys"), _tensors(xs, "xs")
    if not targets or not sources:
        raise GraphError("jvp of nothing: ys or xs are empty")
    moves = _given(sources, tangents, "tangents")
    moving = [(x, t) for x, t in zip(sources, moves, strict=True) if t is not None]
    if not moving:
        raise GraphError("jvp takes at least one tangent")
    made = _Made(targets[0].graph)
    duals = []
    for y in targets:
        with _beside(y.node):
            duals.append(zeros_like(y))
    backwards = gradients(targets, [x for x, _ in moving], duals)
    reached = [(g, _seed(x, t)) for (x, t), g in zip(moving, backwards, strict=True) if g is not None]
    found: list[Tensor | None] = [None] * len(targets)
    if reached:
        found = gradients([g for g, _ in reached], duals, [t for _, t in reached])
    made.drop_unused(found)
    return found


def hessian_vector_product(y: Values, xs: Values, vs: ArrayLike | Sequence[ArrayLike | None]) -> list[Tensor | None]:
    """The Hessian of the scalar `y` (of the sum of its elements) for `xs` together, times `vs`: a tensor for each x.

    `vs`: one for each of `xs`, of its shape and dtype; None: zeros. None in the result stands for an x on which the
    product does not depend. The gradient of a gradient: it costs a small multiple of y, and no Hessian is made
    (Pearlmutter, "Fast exact multiplication by the Hessian", 1994). Raises as `gradients` does.
    """
    sources = _tensors(xs, "xs")
    if not sources:
        raise GraphError("hessian_vector_product of nothing: xs are empty")
    directions = _given(sources, vs, "vs")
    made = _Made(sources[0].graph)
    targets = _tensors(y, "y")
    if not targets:
        raise GraphError("hessian_vector_product of nothing: y is empty")
    # Where y is, though a body asks: the second sweep then passes over the first one too.
    with targets[0].graph.as_default():
        first = gradients(targets, sources)
    pairs = [
        (g, _seed(x, v)) for x, g, v in zip(sources, first, directions, strict=True) if g is not None and v is not None
    ]
    found: list[Tensor | None] = [None] * len(sources)
    if pairs:
        found = gradients([g for g, _ in pairs], sources, [v for _, v in pairs])
    made.drop_unused(found)
    return found


def _given(xs: Sequence[Tensor], values: ArrayLike | Sequence[ArrayLike | None], what: str) -> list[ArrayLike | None]:
    """A value, or None, for each of `xs`."""
    items = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(items) != len(xs):
        raise GraphError(f"{what} has {len(items)} entries for {len(xs)} xs")
    return items


def _seed(x: Tensor, value: ArrayLike) -> Tensor:
    """What changes `x` by `value`. Raises DTypeError or ShapeError unless it fits."""
    if not differentiable(x):
        raise DTypeError(f"{x.name} is {x.dtype}: only floating tensors change a little", where=x.node.where)
    tangent = convert(value, like=x)
    if tangent.dtype != x.dtype or not shape_accepts(x.shape, tangent.shape):
        raise ShapeError(f"the tangent given for {x.name} is {tangent.spec}; it must be {x.spec}", where=x.node.where)
    return tangent


def differentiable(tensor: Tensor) -> bool:
    """Whether a tensor of this dtype has gradients: real and complex floating point numbers do."""
    return kind_of(tensor.dtype) in "fc" and not tensor.spec.resource


def _tensors(values: Values, what: str) -> list[Tensor]:
    items = list(values) if isinstance(values, (list, tuple)) else [values]
    found = []
    for item in items:
        tensor = as_tensor(item)
        if tensor is None:
            raise GraphError(f"{what} are tensors or variables, not {item!r}")
        found.append(tensor)
    return found


def _key(tensor: Tensor) -> Key:
    return tensor.node.name, tensor.index


def _check_captured(graph: Graph, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Raises GraphError where a source that a body captured reaches `targets` around the body too: gradients inside do
    not see that way."""
    captured = captures(graph)
    inside = {_key(t) for t in sources}
    outer = [o for i, o in captured if _key(i) in inside]
    order = ancestors(t.node for t in targets) if outer else []
    for argument, tensor in captured:
        found = next((x for x in outer if _depends(tensor, x)), None)
        if found is None or _key(argument) in inside:
            continue
        reached = _reached(order, {_key(argument)})
        if any(_key(t) in reached for t in targets):
            raise GraphError(
                f"the gradient for {found.name} is asked for in a loop or branch, but {tensor.name}, which is computed "
                "outside of it, depends on it too; compute that inside, or pass it through nf.stop_gradient",
                where=tensor.node.where,
            )


def _depends(y: Tensor, x: Tensor) -> bool:
    """Whether `y` depends on `x`, which is of the same graph or one around it, so that gradients pass."""
    around = {_key(i) for i, o in captures(y.graph) if y.graph is not x.graph and (o is x or _depends(o, x))}
    return _key(y) in _reached(ancestors([y.node]), around | {_key(x)} if y.graph is x.graph else around)


def _reads_beside(x: Tensor, reads: Sequence[Tensor]) -> list[Tensor]:
    """Where `x` is a variable: its other reads among `reads` (`w.read()`), which depend on the variable as `x` does."""
    node = x.node
    if node.op != "read_variable" or node.name != f"{node.inputs[0].node.name}/read":
        return []
    return [r for r in reads if r.node is not node and r.node.inputs[0] is node.inputs[0]]


def _reached(order: Iterable[Node], sources: set[Key]) -> set[Key]:
    """The floating tensors that depend on `sources` through differentiable ops only; `order` is topological."""
    reached: set[Key] = set()
    for node in order:
        inputs = any(_key(t) in reached for t in node.inputs) and node.definition.gradient is not None
        for tensor in node.outputs:
            if differentiable(tensor) and (inputs or _key(tensor) in sources):
                reached.add(_key(tensor))
    return reached


def _seeds(targets: Sequence[Tensor], grad_ys: ArrayLike | Sequence[ArrayLike | None] | None) -> list[Tensor | None]:
    """What flows into each target; None: ones."""
    if grad_ys is None:
        given: list[ArrayLike | None] = [None] * len(targets)
    elif isinstance(grad_ys, (list, tuple)):
        given = list(grad_ys)
    else:
        given = [grad_ys]
    if len(given) != len(targets):
        raise GraphError(f"grad_ys has {len(given)} entries for {len(targets)} ys")
    seeds: list[Tensor | None] = []
    for y, value in zip(targets, given, strict=True):
        if not differentiable(y):
            raise DTypeError(f"{y.name} is {y.dtype}: only floating tensors have gradients", where=y.node.where)
        seed = None if value is None else convert(value, like=y)
        if seed is not None and (seed.dtype != y.dtype or not shape_accepts(y.shape, seed.shape)):
            raise ShapeError(f"the gradient given for {y.name} is {seed.spec}; it must be {y.spec}", where=y.node.where)
        seeds.append(seed)
    return seeds


class _Sweep:
    """The reverse sweep: the parts of gradients that have arrived, and whole ones, once their node was visited."""

    def __init__(self, reached: set[Key]) -> None:
        self._reached = reached
        self._parts: dict[Key, list[Gradient]] = {}
        self._whole: dict[Key, Gradient] = {}

    def start(self, targets: Sequence[Tensor], seeds: Sequence[Tensor | None]) -> None:
        for y, seed in zip(targets, seeds, strict=True):
            if _key(y) in self._reached:
                with _beside(y.node):
                    self._add(y, ones_like(y) if seed is None else seed)

    def visit(self, node: Node) -> None:
        """Sends the gradients of the outputs of `node` on to its inputs. All its consumers have been visited."""
        arrived = [t for t in node.outputs if _key(t) in self._parts]
        if not arrived:
            return
        with _beside(node):
            for tensor in arrived:
                self._whole[_key(tensor)] = _total(self._parts.pop(_key(tensor)))
            if node.definition.gradient is None or not any(_key(t) in self._reached for t in node.inputs):
                return
            node.graph.read([node])
            found = self._passed(node)
        if len(found) != len(node.inputs):
            raise GraphError(
                f"the gradient rule of {node.op} gives {len(found)} gradients for {len(node.inputs)} inputs",
                where=node.where,
            )
        for tensor, grad in zip(node.inputs, found, strict=True):
            if grad is not None and _key(tensor) in self._reached:
                # A rule may have found slices for what stands for the input.
                found_for = replace(grad, like=tensor) if isinstance(grad, IndexedSlices) else grad
                _check(node, tensor, found_for)
                self._add(tensor, found_for)

    def _passed(self, node: Node) -> Sequence[Gradient | None]:
        whole = self._whole.get(_key(node.outputs[0]))
        if isinstance(whole, IndexedSlices) and node.op in _PASS_SLICES:
            x = node.inputs[0]
            if kind_of(x.dtype) == kind_of(whole.dtype):
                return [IndexedSlices(astype(whole.values, x.dtype), whole.indices, x)]
        rule = node.definition.gradient
        assert rule is not None  # asked before
        return rule(node, [self._dense(t) for t in node.outputs])

    def _dense(self, tensor: Tensor) -> Tensor | None:
        """The whole gradient of `tensor`, made dense for good if it is not: whoever asks next gets the same node."""
        whole = self._whole.get(_key(tensor))
        if whole is None:
            return None
        self._whole[_key(tensor)] = made = dense(whole)
        return made

    def gradient(self, parts: Sequence[Tensor], *, sparse: bool) -> Gradient | None:
        """The gradient for what `parts` are reads of: the sum of theirs."""
        x = parts[0]
        with _beside(x.node):
            found = [
                g for g in (self._whole.get(_key(p)) if sparse else self._dense(p) for p in parts) if g is not None
            ]
            if len(found) < 2:
                return found[0] if found else None
            return _total([replace(g, like=x) if isinstance(g, IndexedSlices) else g for g in found])

    def _add(self, tensor: Tensor, grad: Gradient) -> None:
        self._parts.setdefault(_key(tensor), []).append(grad)


def _total(parts: Sequence[Gradient]) -> Gradient:
    """The sum. Slices stay slices among themselves, and are added into what is dense."""
    tensors = [p for p in parts if isinstance(p, Tensor)]
    slices = [p for p in parts if isinstance(p, IndexedSlices)]
    if not tensors:
        return joined(slices)
    total = tensors[0] if len(tensors) == 1 else add_n(tensors)
    return joined(slices).added_to(total) if slices else total


def _check(node: Node, tensor: Tensor, grad: Gradient) -> None:
    shape = _lookup_shape(tensor, grad) if isinstance(grad, IndexedSlices) else tensor.shape
    got = grad.values.shape if isinstance(grad, IndexedSlices) else grad.shape
    if grad.dtype != tensor.dtype or not shape_accepts(shape, got):
        raise GraphError(
            f"the gradient rule of {node.op} gives {grad.dtype}{format_shape(got)} for its input {tensor.name}, "
            f"which is {tensor.spec}",
            where=node.where,
        )


def _lookup_shape(tensor: Tensor, grad: IndexedSlices) -> Shape:
    """What the values of a sparse gradient of `tensor` look like."""
    if tensor.shape is None or grad.indices.shape is None:
        return None
    return (*grad.indices.shape, *tensor.shape[1:])


@contextmanager
def _beside(node: Node) -> Iterator[None]:
    """New nodes go under `gradients/<name of the node>` and on its device."""
    with node.graph.absolute_scope(f"gradients/{node.name}"), node.graph.colocate_with(node):
        yield


class _Made:
    """The nodes made from now on. Rules compute gradients for all inputs; those nobody asked for are taken out again,
    so that they neither crowd the graph view nor count as ops of the cell."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes = graph.nodes if graph.pending is None else graph.pending
        self._before = len(self._nodes)

    def drop_unused(self, results: Iterable[Gradient | None]) -> None:
        new = list(islice(self._nodes.values(), self._before, None))
        wanted: set[int] = set()
        for found in results:
            if found is not None:
                parts = (found.values, found.indices) if isinstance(found, IndexedSlices) else (found,)
                wanted.update(id(t.node) for t in parts)
                wanted.update(self._captured(parts[0].graph))
        for node in reversed(new):  # consumers come after what they consume
            if id(node) in wanted:
                wanted.update(id(t.node) for t in node.inputs)
                wanted.update(id(n) for n in node.control_inputs)
            else:
                del self._nodes[node.name]

    def _captured(self, inside: Graph | None) -> Iterator[int]:
        """What bodies from that of a result outwards have captured, where they lie within the graph."""
        while inside is not None and inside is not self._graph:
            yield from (id(outside.node) for _, outside in captures(inside))
            inside = inside.outer


# The rules of loops and branches differentiate bodies.
SWEEP["gradients"] = gradients
