"""Neural-network ops: activations, softmax and its cross entropy, normalisation, dropout, embeddings.

What numpy and cupy can do in one stable pass is an op of its own; the rest is composed of other ops, under a scope of
its name, and so has gradients of every order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nbflow import op
from nbflow.errors import DTypeError, GraphError, ShapeError
from nbflow.graph import Node, Tensor, graph_for
from nbflow.op import Attrs, Cost
from nbflow.ops._build import ArrayLike, as_tensor, build, convert, known_rank, require_kind, unary
from nbflow.ops.casting import astype
from nbflow.ops.comparison import greater, greater_equal, minimum, not_equal, where
from nbflow.ops.creation import identity, ones_like
from nbflow.ops.elementwise import erf, exp, expm1, rsqrt, square, tanh
from nbflow.ops.indexing import take
from nbflow.ops.manipulation import expand_dims
from nbflow.ops.random import uniform_like
from nbflow.ops.reduction import mean, sum
from nbflow.ops.shape import reshape
from nbflow.spec import (
    FLOAT32,
    TensorSpec,
    format_shape,
    is_half,
    kind_of,
    normalize_axes,
    normalize_axis,
    shape_accepts,
)

Grads = Sequence[Tensor | None]

# A transcendental function costs about this many multiplications on a CPU.
_TRANSCENDENTAL = 10.0


@contextmanager
def op_scope(name: str | None, default: str, like: Tensor) -> Iterator[None]:
    """Names made inside start with the user's `name`, or with `default`, numbered."""
    graph = graph_for([like])
    with graph.as_default(), graph.absolute_scope(graph.scoped(name) if name else graph.unique(default)):
        yield


def _only(grads: Grads) -> Tensor:
    (grad,) = grads
    assert grad is not None  # a gradient rule is called when some output has one, and here there is only one output
    return grad


def _cost(flops: float) -> op.CostRule:
    def cost(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], attrs: Attrs) -> Cost:
        return Cost(flops * op.size_of(inputs[0]), op.nbytes_of(inputs) + op.nbytes_of(outputs))

    return cost


# --- activations -----------------------------------------------------------------------------------------------------


def _real_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_kind(inputs[0], "iuf", "this op takes real numbers")
    return [TensorSpec(inputs[0].shape, inputs[0].dtype)]


def _float_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_kind(inputs[0], "f", "this op takes floating numbers")
    return [TensorSpec(inputs[0].shape, inputs[0].dtype)]


def _relu_gradient(node: Node, grads: Grads) -> Grads:
    return [build("relu_grad", (_only(grads), node.outputs[0]))]


def _relu_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    if inputs[0].dtype != inputs[1].dtype or not shape_accepts(inputs[0].shape, inputs[1].shape):
        raise ShapeError(f"the gradient {inputs[0]} is not like the output {inputs[1]}")
    return [TensorSpec(inputs[0].shape, inputs[0].dtype)]


def _relu_grad_gradient(node: Node, grads: Grads) -> Grads:
    return [build("relu_grad", (_only(grads), node.inputs[1])), None]


def _sigmoid_gradient(node: Node, grads: Grads) -> Grads:
    y = node.outputs[0]
    return [_only(grads) * (y * (1.0 - y))]


def _softplus_gradient(node: Node, grads: Grads) -> Grads:
    return [_only(grads) * sigmoid(node.inputs[0])]


op.define(
    "relu",
    infer=_real_infer,
    gradient=_relu_gradient,
    cost=_cost(1),
    out=True,
    elementwise=True,
    doc="max(x, 0). The gradient at 0 is 0.",
)
op.define(
    "relu_grad",
    infer=_relu_grad_infer,
    gradient=_relu_grad_gradient,
    cost=_cost(2),
    out=True,
    elementwise=True,
    doc="(dy, y = relu(x)) → dy where y > 0, else 0.",
)
op.define(
    "sigmoid",
    infer=_float_infer,
    gradient=_sigmoid_gradient,
    cost=_cost(_TRANSCENDENTAL + 3),
    out=True,
    elementwise=True,
    doc="1 / (1 + exp(-x)).",
)
op.define(
    "softplus",
    infer=_float_infer,
    gradient=_softplus_gradient,
    cost=_cost(2 * _TRANSCENDENTAL),
    out=True,
    elementwise=True,
    doc="log(1 + exp(x)), without overflow.",
)


def relu(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """max(x, 0)."""
    return unary("relu", x, name=name)


def sigmoid(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """1 / (1 + exp(-x))."""
    return unary("sigmoid", x, name=name)


def softplus(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """log(1 + exp(x))."""
    return unary("softplus", x, name=name)


def leaky_relu(x: ArrayLike, /, alpha: float = 0.2, *, name: str | None = None) -> Tensor:
    """x where positive, else alpha · x."""
    tensor = convert(x)
    with op_scope(name, "leaky_relu", tensor):
        return where(greater(tensor, 0), tensor, tensor * alpha)


def elu(x: ArrayLike, /, alpha: float = 1.0, *, name: str | None = None) -> Tensor:
    """x where positive, else alpha · (exp(x) - 1). Clevert et al., arXiv 1511.07289."""
    tensor = convert(x)
    with op_scope(name, "elu", tensor):
        # The minimum keeps exp from overflowing where it is not used; an infinity there would make a NaN gradient.
        return where(greater(tensor, 0), tensor, expm1(minimum(tensor, 0)) * alpha)


def gelu(x: ArrayLike, /, approximate: bool = False, *, name: str | None = None) -> Tensor:
    """x · Φ(x), Φ the normal distribution function, or by tanh if approximate. Hendrycks, Gimpel, arXiv 1606.08415."""
    tensor = convert(x)
    with op_scope(name, "gelu", tensor):
        if approximate:
            inner = tanh((tensor + tensor * square(tensor) * 0.044715) * math.sqrt(2 / math.pi))
        else:
            inner = erf(tensor * math.sqrt(0.5))
        return tensor * 0.5 * (inner + 1.0)


def silu(x: ArrayLike, /, *, name: str | None = None) -> Tensor:
    """x · sigmoid(x)."""
    tensor = convert(x)
    with op_scope(name, "silu", tensor):
        return tensor * sigmoid(tensor)


# --- softmax ---------------------------------------------------------------------------------------------------------


def _softmax_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    require_kind(inputs[0], "f", "softmax takes floating numbers")
    if inputs[0].rank is not None:
        normalize_axis(attrs["axis"], inputs[0].rank)
    return [TensorSpec(inputs[0].shape, inputs[0].dtype)]


def _through_softmax(g: Tensor, y: Tensor, axis: int) -> Tensor:
    """The gradient for x of y = softmax(x)."""
    return y * (g - sum(g * y, axis=axis, keepdims=True))


def _softmax_gradient(node: Node, grads: Grads) -> Grads:
    return [_through_softmax(_only(grads), node.outputs[0], node.attrs["axis"])]


def _log_softmax_gradient(node: Node, grads: Grads) -> Grads:
    g = _only(grads)
    return [g - exp(node.outputs[0]) * sum(g, axis=node.attrs["axis"], keepdims=True)]


op.define(
    "softmax",
    infer=_softmax_infer,
    gradient=_softmax_gradient,
    cost=_cost(_TRANSCENDENTAL + 4),
    out=True,
    doc="exp(x) / Σ exp(x) along an axis, without overflow. attrs: axis.",
)
op.define(
    "log_softmax",
    infer=_softmax_infer,
    gradient=_log_softmax_gradient,
    cost=_cost(_TRANSCENDENTAL + 4),
    out=True,
    doc="x - log Σ exp(x) along an axis, without overflow. attrs: axis.",
)


def softmax(x: ArrayLike, /, axis: int = -1, *, name: str | None = None) -> Tensor:
    """exp(x) / Σ exp(x) along `axis`."""
    return unary("softmax", x, {"axis": int(axis)}, name=name)


def log_softmax(x: ArrayLike, /, axis: int = -1, *, name: str | None = None) -> Tensor:
    """log(softmax(x)) along `axis`."""
    return unary("log_softmax", x, {"axis": int(axis)}, name=name)


# --- cross entropies -------------------------------------------------------------------------------------------------


def _check_ids(logits: TensorSpec, labels: TensorSpec) -> None:
    require_kind(logits, "f", "logits are floating")
    require_kind(labels, "iu", "class ids are integers")
    if logits.rank == 0:
        raise ShapeError("logits have the classes as their last dimension, and these have no dimensions")
    if logits.shape is not None and not shape_accepts(logits.shape[:-1], labels.shape):
        raise ShapeError(
            f"class ids {format_shape(labels.shape)} do not fit logits {format_shape(logits.shape)}: they have the "
            "shape of the logits without the last dimension"
        )


def _sparse_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    logits, labels = inputs
    _check_ids(logits, labels)
    return [TensorSpec(labels.shape if logits.shape is None else logits.shape[:-1], logits.dtype)]


def _sparse_gradient(node: Node, grads: Grads) -> Grads:
    return [build("sparse_softmax_cross_entropy_grad", (_only(grads), *node.inputs)), None]


def _sparse_grad_infer(inputs: Sequence[TensorSpec], attrs: Attrs) -> Sequence[TensorSpec]:
    _, logits, labels = inputs
    _check_ids(logits, labels)
    return [TensorSpec(logits.shape, logits.dtype)]


def _sparse_grad_gradient(node: Node, grads: Grads) -> Grads:
    v = _only(grads)
    dy, logits, labels = node.inputs
    unit = build("sparse_softmax_cross_entropy_grad", (ones_like(dy), logits, labels))
    second = _through_softmax(v * expand_dims(dy, axis=-1), softmax(logits), -1)
    return [sum(unit * v, axis=-1), second, None]


op.define(
    "sparse_softmax_cross_entropy",
    infer=_sparse_infer,
    gradient=_sparse_gradient,
    cost=_cost(_TRANSCENDENTAL + 4),
    out=True,
    doc="(logits, class ids) → -log softmax(logits)[id], one an example. Raises OpError for ids out of range.",
)
op.define(
    "sparse_softmax_cross_entropy_grad",
    infer=_sparse_grad_infer,
    gradient=_sparse_grad_gradient,
    cost=_cost(_TRANSCENDENTAL + 6),
    out=True,
    doc="(dy, logits, class ids) → (softmax(logits) - onehot(id)) · dy.",
)


# --- normalisation and dropout ---------------------------------------------------------------------------------------


def moments(
    x: ArrayLike, /, axis: int | Sequence[int] | None = None, *, keepdims: bool = False, name: str | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance over `axis`."""
    tensor = convert(x)
    with op_scope(name, "moments", tensor):
        # The squares of 16-bit floats leave their range, or their precision.
        wide = astype(tensor, FLOAT32) if is_half(tensor.dtype) else tensor
        middle = mean(wide, axis=axis, keepdims=True)
        spread = mean(square(wide - middle), axis=axis, keepdims=keepdims)
        first = middle if keepdims else mean(wide, axis=axis)
        return astype(first, tensor.dtype), astype(spread, tensor.dtype)


def batch_norm(
    x: ArrayLike,
    /,
    scale: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    mean: ArrayLike | None = None,
    variance: ArrayLike | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    *,
    name: str | None = None,
) -> Tensor:
    """(x - mean) / √(variance + epsilon) · scale + offset, for each channel. Ioffe and Szegedy, arXiv 1502.03167.

    - `axis`: the channels; 1 for NCHW images.
    - `scale`, `offset`, `mean`, `variance`: one number a channel. Without mean and variance, those of this batch.

    Raises GraphError when only one of mean and variance is given, ShapeError when the rank of x is unknown.
    """
    tensor = convert(x)
    if tensor.shape is None:
        raise ShapeError(f"batch_norm needs to know the rank of {tensor.name}")
    if (mean is None) != (variance is None):
        raise GraphError("batch_norm takes both mean and variance, or neither")
    rank = len(tensor.shape)
    channel = normalize_axis(axis, rank)
    with op_scope(name, "batch_norm", tensor):
        if mean is None or variance is None:
            middle, spread = moments(tensor, [a for a in range(rank) if a != channel], keepdims=True)
        else:
            middle, spread = (along(convert(v, like=tensor), channel, rank) for v in (mean, variance))
        factor = rsqrt(spread + epsilon)
        if scale is not None:
            factor = factor * along(convert(scale, like=tensor), channel, rank)
        made = (tensor - middle) * factor
        return made if offset is None else made + along(convert(offset, like=tensor), channel, rank)


def along(vector: Tensor, axis: int, rank: int) -> Tensor:
    """`vector` as a tensor of `rank` dimensions that lies along `axis`."""
    if axis == rank - 1 or vector.spec.rank == 0:
        return vector
    return reshape(vector, [-1 if a == axis else 1 for a in range(rank)])


def layer_norm(
    x: ArrayLike,
    /,
    scale: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    *,
    name: str | None = None,
) -> Tensor:
    """(x - mean) / √(variance + epsilon) · scale + offset, over `axis` of each example. Ba et al., arXiv 1607.06450.

    `scale` and `offset` broadcast against x.
    """
    tensor = convert(x)
    if tensor.spec.rank is not None:
        normalize_axes(axis, tensor.spec.rank)
    with op_scope(name, "layer_norm", tensor):
        wide = astype(tensor, FLOAT32) if is_half(tensor.dtype) else tensor  # as in moments
        centred = wide - mean(wide, axis=axis, keepdims=True)
        made = centred * rsqrt(mean(square(centred), axis=axis, keepdims=True) + epsilon)
        made = astype(made, tensor.dtype)
        if scale is not None:
            made = made * convert(scale, like=tensor)
        return made if offset is None else made + convert(offset, like=tensor)


def dropout(x: ArrayLike, /, rate: float, training: bool | Tensor = True, *, name: str | None = None) -> Tensor:
    """Each element 0 with probability `rate`, else x / (1 - rate). Srivastava et al., JMLR 15, 2014.

    - `training`: False gives x; a boolean scalar tensor decides at run time.

    The draw depends on the graph's seed, the op's name and the step. Raises GraphError unless 0 <= rate < 1.
    """
    tensor = convert(x)
    if not 0 <= rate < 1:
        raise GraphError(f"the dropout rate is at least 0 and below 1, not {rate}")
    decision = as_tensor(training)
    if rate == 0 or (decision is None and not training):
        return identity(tensor, name=name)
    with op_scope(name, "dropout", tensor):
        kept = greater_equal(uniform_like(tensor), rate)
        dropped = where(kept, tensor * (1 / (1 - rate)), 0.0)
        return dropped if decision is None else where(decision, dropped, tensor)


# --- embeddings ------------------------------------------------------------------------------------------------------


def embedding_lookup(
    table: ArrayLike, ids: ArrayLike, padding_id: int | None = None, *, name: str | None = None
) -> Tensor:
    """The rows of `table` (n, dim…) numbered `ids`: (…) → (…, dim…). Raises DTypeError unless ids are integers.

    - `padding_id`: for this id the result is zeros, whatever the row holds, and the row gets no gradient.

    Ids count from the end where negative, as in take; others out of range are an error at run time.
    """
    numbers = convert(ids)
    if kind_of(numbers.dtype) not in "iu":
        raise DTypeError(
            f"row numbers are integers, not {numbers.dtype}; use nf.astype first", where=numbers.node.where
        )
    rows = convert(table)
    if padding_id is None:
        return take(rows, numbers, axis=0, name=name)
    behind = known_rank(rows.spec, "embedding_lookup with a padding_id") - 1
    with op_scope(name, "embedding_lookup", rows):
        real = expand_dims(not_equal(numbers, int(padding_id)), axis=tuple(range(-behind, 0)))
        return where(real, take(rows, numbers, axis=0), 0)
