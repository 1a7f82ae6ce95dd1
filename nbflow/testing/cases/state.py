"""Rows of `nf.random`, variables, optimizer updates and datasets; see `case.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import nbflow as nf
from nbflow.backends.base import Context
from nbflow.backends.numpy.random import normals, uniforms, words
from nbflow.graph import Node, Tensor
from nbflow.ops._build import build, build_node
from nbflow.state import StateStore
from nbflow.testing.cases.case import Case, f, i
from nbflow.variable import Variable

A = np.ndarray[Any, Any]

OPS: list[Case] = []


def row(op: str, make: Callable[..., Any], inputs: Any, expect: Callable[..., Any] | None, **more: Any) -> None:
    OPS.append(Case(op, make, tuple(inputs), expect, **more))


# --- random ----------------------------------------------------------------------------------------------------------


def _drawn(name: str) -> Context:
    """The context of the op called `name` in the first step of a graph with seed 0."""
    return Context(f"{name}:0", 0, 0, StateStore(), lambda: None)


_F4, _F8 = np.dtype("float32"), np.dtype("float64")
row(
    "random_uniform",
    lambda: nf.random.uniform((2, 3), -1.0, 3.0, "float64"),
    [],
    lambda: uniforms(_drawn("random_uniform"), 6, _F8).reshape(2, 3) * 4 - 1,
)
row(
    "random_uniform_like",
    nf.random.uniform_like,
    [f(2, 3, dtype="float32")],
    lambda x: uniforms(_drawn("random_uniform_like"), 6, _F4).reshape(2, 3),
)
row(
    "random_normal",
    lambda: nf.random.normal((3,), 2.0, 0.5, "float64"),
    [],
    lambda: normals(_drawn("random_normal"), 3, _F8) * 0.5 + 2,
)
row(
    "random_normal_like",
    lambda x: nf.random.normal_like(x, 2.0, 0.5, "float64"),
    [f(2, 3, dtype="float32")],
    lambda x: normals(_drawn("random_normal_like"), 6, _F8).reshape(2, 3) * 0.5 + 2,
)
row(
    "random_truncated_normal",
    lambda: nf.random.truncated_normal((50,)),
    [],
    None,
    note="distribution in test_random_ops.py",
)
row("random_gamma", lambda: nf.random.gamma((50,), 2.0), [], None, note="distribution in test_random_bits.py")
row(
    "random_integers",
    lambda: nf.random.randint((4,), -2, 5, "int32"),
    [],
    lambda: (words(_drawn("random_integers"), 4) % 7).astype("int32") - np.int32(2),
)
row(
    "random_bernoulli",
    lambda: nf.random.bernoulli((2, 4), 0.3),
    [],
    lambda: (uniforms(_drawn("random_bernoulli"), 8, _F8) < 0.3).reshape(2, 4),
)
row(
    "random_permutation",
    lambda: nf.random.permutation(6),
    [],
    lambda: np.argsort(words(_drawn("random_permutation"), 6)),
)
row(
    "random_uniform_like",
    lambda x: nf.nn.dropout(x, 0.5),
    [f(2, 3)],
    lambda x: np.where(uniforms(_drawn("dropout/random_uniform_like"), 6, _F8).reshape(2, 3) >= 0.5, x * 2, 0),
)

# --- variables and the updates of optimizers -------------------------------------------------------------------------

_W, _G = f(3, 4, dtype="float32"), f(3, 4, dtype="float32", seed=1)
_M, _V = f(3, 4, dtype="float32", seed=2), f(3, 4, low=0.1, dtype="float32", seed=3)
_LR = np.float32(0.1)


def _after(node: Node, *variables: Variable) -> list[Tensor]:
    """The variables' values after `node`."""
    with nf.control_dependencies([node]):
        return [v.read() for v in variables]


def _assigned(method: str) -> Callable[[], list[Tensor]]:
    def make() -> list[Tensor]:
        v = Variable(_W, name="v")
        result = getattr(v, method)(_G)
        return [result, *_after(result.node, v)]

    return make


def _updated(op: str, slots: tuple[A, ...], scalars: tuple[Any, ...], **attrs: Any) -> Callable[[], list[Tensor]]:
    def make() -> list[Tensor]:
        variables = [Variable(value, name=f"v{n}") for n, value in enumerate((_W, *slots))]
        inputs = [v.handle for v in variables] + [nf.constant(s) for s in (*scalars, _LR, _G)]
        return _after(build_node(op, inputs, {"variable": "v0", **attrs}), *variables)

    return make


row("variable", lambda: nf.Variable(_W, name="v").read(), [], lambda: _W)
row("initialize", lambda: nf.Variable(nf.constant(_W) * 2.0, name="v").read(), [], lambda: _W * 2)
row("read_variable", lambda: nf.Variable(_W, name="v").to_tensor(), [], lambda: _W)
row("assign", _assigned("assign"), [], lambda: [_G, _G])
row("assign_add", _assigned("assign_add"), [], lambda: [_W + _G] * 2)
row("assign_sub", _assigned("assign_sub"), [], lambda: [_W - _G] * 2)
row("apply_sgd", _updated("apply_sgd", (), (), weight_decay=0.0), [], lambda: _W - _LR * _G)
row(
    "apply_sgd",
    _updated("apply_sgd", (), (), weight_decay=0.5),
    [],
    lambda: _W - _LR * (_G + np.float32(0.5) * _W),
)


def _momentum(nesterov: bool) -> list[A]:
    m = np.float32(0.9) * _M + _G
    return [_W - _LR * (np.float32(0.9) * m + _G if nesterov else m), m]


for _nesterov in (False, True):
    row(
        "apply_momentum",
        _updated("apply_momentum", (_M,), (), momentum=0.9, nesterov=_nesterov, weight_decay=0.0),
        [],
        lambda n=_nesterov: _momentum(n),
    )


def _adam(t: int, decay: float) -> list[A]:
    m = 0.9 * _M.astype("f8") + 0.1 * _G
    v = 0.99 * _V.astype("f8") + 0.01 * _G.astype("f8") ** 2
    step = 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    return [a.astype("f4") for a in (_W * (1 - 0.1 * decay) - step, m, v)]


for _decay in (0.0, 0.3):
    row(
        "apply_adam",
        _updated("apply_adam", (_M, _V), (np.int64(6),), beta1=0.9, beta2=0.99, epsilon=1e-8, weight_decay=_decay),
        [],
        lambda d=_decay: _adam(7, d),
    )


def _rmsprop() -> list[A]:
    v = 0.9 * _V.astype("f8") + 0.1 * _G.astype("f8") ** 2
    return [a.astype("f4") for a in (_W - 0.1 * _G / (np.sqrt(v) + 1e-7), v)]


def _adagrad() -> list[A]:
    total = _V.astype("f8") + _G.astype("f8") ** 2
    return [a.astype("f4") for a in (_W - 0.1 * _G / (np.sqrt(total) + 1e-7), total)]


row("apply_rmsprop", _updated("apply_rmsprop", (_V,), (), rho=0.9, epsilon=1e-7), [], _rmsprop)
row("apply_adagrad", _updated("apply_adagrad", (_V,), (), epsilon=1e-7), [], _adagrad)


def _rmsprop_variant(centered: bool) -> list[A]:
    v = 0.9 * _V.astype("f8") + 0.1 * _G.astype("f8") ** 2
    mean = 0.9 * _SMALL.astype("f8") + 0.1 * _G
    root = np.sqrt(np.maximum(v - mean**2, 0) + 1e-2) if centered else np.sqrt(v) + 1e-2
    m = 0.5 * _M + 0.1 * _G / root
    return [a.astype("f4") for a in ([_W - m, v, mean, m] if centered else [_W - m, v, m])]


def _lion() -> list[A]:
    m = 0.99 * _M.astype("f8") + 0.01 * _G
    return [a.astype("f4") for a in (_W - 0.1 * (np.sign(0.9 * _M + 0.1 * _G) + 0.2 * _W), m)]


def _lars() -> list[A]:
    size, slope = (float(np.linalg.norm(a.astype("f8"))) for a in (_W, _G))
    m = 0.9 * _M + 0.1 * 0.5 * size / (slope + 0.2 * size + 1e-9) * (_G + 0.2 * _W)
    return [a.astype("f4") for a in (_W - m, m)]


def _lamb(t: int) -> list[A]:
    m = 0.9 * _M.astype("f8") + 0.1 * _G
    v = 0.99 * _V.astype("f8") + 0.01 * _G.astype("f8") ** 2
    u = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-6) + 0.3 * _W
    return [a.astype("f4") for a in (_W - 0.1 * np.linalg.norm(_W) / np.linalg.norm(u) * u, m, v)]


_SMALL = f(3, 4, low=-0.1, high=0.1, dtype="float32", seed=4)
_RMS = {"rho": 0.9, "momentum": 0.5, "epsilon": 1e-2}
row(
    "apply_rmsprop_momentum",
    _updated("apply_rmsprop_momentum", (_V, _M), (), **_RMS),
    [],
    lambda: _rmsprop_variant(False),
)
row(
    "apply_rmsprop_centered",
    _updated("apply_rmsprop_centered", (_V, _SMALL, _M), (), **_RMS),
    [],
    lambda: _rmsprop_variant(True),
)
row("apply_lion", _updated("apply_lion", (_M,), (), beta1=0.9, beta2=0.99, weight_decay=0.2), [], _lion)
row(
    "apply_lars",
    _updated("apply_lars", (_M,), (), momentum=0.9, trust=0.5, epsilon=1e-9, weight_decay=0.2),
    [],
    _lars,
)
row(
    "apply_lamb",
    _updated("apply_lamb", (_M, _V), (np.int64(6),), beta1=0.9, beta2=0.99, epsilon=1e-6, weight_decay=0.3),
    [],
    lambda: _lamb(7),
)
row(
    "gradient_join",
    lambda: build("gradient_join", (nf.constant(_G), nf.Variable(_W, name="v").handle), {"variable": "v"}),
    [],
    lambda: _G,
)

# --- datasets --------------------------------------------------------------------------------------------------------

_ROWS = {"x": f(5, 2, dtype="float32"), "y": i(5)}
row(
    "iterator_next",
    lambda: list(nf.data.from_arrays(_ROWS).batch(3).next()["x"].node.outputs),
    [],
    lambda: [_ROWS["x"][:3], _ROWS["y"][:3], np.float64(1.0)],
)


def _place(op: str) -> Any:
    """`op` on the iterator of a dataset that has not run."""
    batch = nf.data.from_arrays(_ROWS).batch(3).next()
    if op == "position":
        return nf.data.position(batch["x"])
    saved = nf.data.save_state(batch["x"])
    return saved if op == "save" else nf.data.restore_state(batch["y"], saved).outputs


row("iterator", lambda: _place("position"), [], lambda: np.array(0))
row("iterator_position", lambda: _place("position"), [], lambda: np.array(0))
row("iterator_state", lambda: _place("save"), [], None, note="test_data_state.py")
row("iterator_restore", lambda: list(_place("restore")), [], None, note="test_data_state.py")


def _queue(op: str, *arguments: Any) -> Any:
    """What `op` gives on a queue that holds 1, 2 and 3."""
    q = nf.queue(8, ("int64", ()))
    with nf.control_dependencies([q.enqueue(1)]), nf.control_dependencies([q.enqueue_many([2, 3])]):
        if op == "close":
            with nf.control_dependencies([q.close()]):
                return q.is_closed()
        return getattr(q, op)(*arguments)


for _op in ("queue", "queue_enqueue", "queue_enqueue_many", "queue_size"):
    row(_op, lambda: _queue("size"), [], lambda: np.array(3))
row("queue_dequeue", lambda: _queue("dequeue"), [], lambda: np.array(1))
row("queue_dequeue_many", lambda: _queue("dequeue_many", 2), [], lambda: np.array([1, 2]))
row("queue_dequeue_up_to", lambda: _queue("dequeue_up_to", 3), [], lambda: np.array([1, 2, 3]))
row("queue_is_closed", lambda: _queue("is_closed"), [], lambda: np.array(False))
row("queue_close", lambda: _queue("close"), [], lambda: np.array(True))
