"""Random numbers, and the ops that stand in no file, with the reason why.

A variable's value is a constant of the file: `export.save` reads it. ONNX has random operators; the numbers that they
draw are others than nbflow's, of the same distribution.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbflow.onnx.exporting.writer import Rules, Site
from nbflow.ops.rows import LAZY, SCATTER_UPDATES
from nbflow.ops.state import GRADIENT_INPUT

RULES = Rules()
FLOAT = np.dtype(np.float32)

_STATE = (
    "an ONNX file keeps no state: it changes a variable. Save the outputs of inference, which depend on no update "
    "(training=False)"
)
_GRADIENT = "it is part of a gradient, and ONNX has no such operator"
_COMPLEX = "ONNX's operators take no complex numbers"
_FACTORS = "ONNX has no operator for systems and decompositions of matrices"

_JOINS = ("gradient_join", "sparse_join")

UPDATES = frozenset(
    {
        "initialize",
        "assign",
        "assign_add",
        "assign_sub",
        *(name for name in GRADIENT_INPUT if name not in _JOINS),
        *(f"{name}_sparse" for name in LAZY),
        *(f"variable_scatter_{how}" for how in SCATTER_UPDATES),
    }
)

REASONS: dict[str, str] = {
    **dict.fromkeys(UPDATES, _STATE),
    "group": "it has no output",
    **dict.fromkeys((*_JOINS, "deduplicate"), _GRADIENT),
    **dict.fromkeys(
        (
            "conv_filter_grad", "resize_grad", "max_pool_grad", "max_pool_pick", "avg_pool_grad", "pad_crop",
            "roi_align_grad",
            "prod_others", "prod_others_grad",
        ),
        _GRADIENT,
    ),
    **dict.fromkeys(("real", "imag", "conj", "fftn", "ifftn", "rfftn", "irfftn"), _COMPLEX),
    **dict.fromkeys(("solve", "inv", "pinv", "cholesky", "qr", "eigh", "svd", "slogdet"), _FACTORS),
    "placeholder": "it is fed, but is none of the inputs; add it to them, or give its value in feeds=",
    "variable": "a handle to a variable is no value; save what reads it",
    **dict.fromkeys(
        (
            "queue", "queue_close", "queue_dequeue", "queue_dequeue_many", "queue_dequeue_up_to", "queue_enqueue",
            "queue_enqueue_many", "queue_is_closed", "queue_size",
        ),
        "an ONNX file holds no queue; make the tensors that come out of it inputs of the model",
    ),
    **dict.fromkeys(
        ("iterator", "iterator_next", "iterator_position", "iterator_state", "iterator_restore"),
        "an ONNX file holds no data set; make the tensors of the batch inputs of the model",
    ),
    **dict.fromkeys(
        (
            "accumulator", "accumulator_apply", "accumulator_take", "coordinator", "coordinator_advance",
            "coordinator_begin", "coordinator_close", "coordinator_leave", "coordinator_open", "coordinator_pace",
            "coordinator_report", "coordinator_tick", "coordinator_wait",
        ),
        "it is where replicas meet in training, which no model does",
    ),
    "argument": "it belongs to the body of an op, and is given by that op",
    "nextafter": "ONNX has no operator that looks at the bits of a number",
    "random_permutation": "ONNX has no operator that draws integers",
    "random_integers": "ONNX has no operator that draws integers",
    "fold": "ONNX's Col2Im is not used by nbflow yet",
    "ngram_counts": "ONNX's TfIdfVectorizer is not used by nbflow yet",
    "random_gamma": "ONNX has no operator that draws from a gamma distribution",
    "random_truncated_normal": "ONNX has no operator that draws from a truncated distribution",
    "send": "it is no op of a graph, but of its parts",
    "recv": "it is no op of a graph, but of its parts",
}  # fmt: skip


# --- variables -------------------------------------------------------------------------------------------------------


@RULES.writes("read_variable")
def _read(s: Site, handle: str) -> str:
    """A handle goes by the name of the constant that has the variable's value."""
    return handle


# --- random numbers --------------------------------------------------------------------------------------------------


def _drawn(s: Site, op: str, shape: tuple[int, ...], **attrs: Any) -> str:
    """Drawn in single precision, which every runtime does."""
    return s.cast(s.add(op, shape=list(shape), dtype=FLOAT, **attrs), FLOAT, s.out.dtype)


@RULES.writes("random_uniform")
def _uniform(s: Site) -> str:
    low, high = float(s.attrs["minval"]), float(s.attrs["maxval"])
    return _drawn(s, "RandomUniform", s.attrs["shape"], low=low, high=high)


@RULES.writes("random_normal")
def _normal(s: Site) -> str:
    return _drawn(s, "RandomNormal", s.attrs["shape"], mean=float(s.attrs["mean"]), scale=float(s.attrs["stddev"]))


@RULES.writes("random_bernoulli")
def _bernoulli(s: Site) -> str:
    drawn = s.add("RandomUniform", shape=list(s.attrs["shape"]), dtype=FLOAT, low=0.0, high=1.0)
    below = s.add("Less", drawn, s.const(s.attrs["p"], FLOAT))
    return s.cast(below, np.dtype(np.bool_), s.out.dtype)


@RULES.writes("random_uniform_like")
def _uniform_like(s: Site, x: str) -> str:
    return _drawn_like(s, "RandomUniformLike", x)


@RULES.writes("random_normal_like")
def _normal_like(s: Site, x: str) -> str:
    return _drawn_like(s, "RandomNormalLike", x, mean=float(s.attrs["mean"]), scale=float(s.attrs["stddev"]))


def _drawn_like(s: Site, op: str, x: str, **attrs: Any) -> str:
    drawn = s.add(op, s.add("ConstantOfShape", s.shape(x), value=np.zeros(1, FLOAT)), dtype=FLOAT, **attrs)
    return s.cast(drawn, FLOAT, s.out.dtype)
