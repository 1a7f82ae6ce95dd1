"""nbflow: a distributed dataflow runtime that lives in a notebook.

Reading order, which is the order in which data passes:

    errors spec device events            the words
    op node graph owner rewrite          ops, nodes, their scopes, whose they are, copies
    body verify                          graphs inside nodes: loops, branches; invariants
    ops linalg fft image nn random       what users build with; loops and branches too
    variable                             tensors that keep their value
    autodiff layers optim data           gradients, variables under a name, updates, datasets
    parallel optimize cost placement     which graph really runs, and where
    partition compile plan explain       one flat program a device
    transport wire backends              the door to a worker, bytes, implementations
    rendezvous step passage flow program running a program, its loops and branches
    executor functions                   threads around it; the functions of datasets
    driver loop inprocess                one step over many workers; the training loop
    prepare session current train        the pipeline in one place; `nf.run`, `nf.train.run`
    onnx                                 models from elsewhere, in and out
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from nbflow import (
    cluster,
    data,
    errors,
    events,
    fft,
    image,
    layers,
    linalg,
    nn,
    onnx,
    ops,
    optim,
    optimize,
    random,
    testing,
    train,
)
from nbflow import codec as codec  # makes Graph.to_proto work
from nbflow import functions as functions  # makes the functions of datasets run
from nbflow.autodiff import gradients, hessian_vector_product, jvp
from nbflow.current import (
    current_session,
    describe,
    drop_state,
    get_cluster,
    optimization,
    placement,
    run,
    set_cluster,
)
from nbflow.data.queues import Queue, queue
from nbflow.device import DeviceSpec
from nbflow.explain import graph_json
from nbflow.feeding import feed
from nbflow.graph import Graph, Node, Tensor, get_graph
from nbflow.notebook import load_ipython_extension, show, unload_ipython_extension
from nbflow.ops import *  # noqa: F403  # the list is `nbflow.ops.__all__`
from nbflow.ops.composed import e, inf, nan, newaxis, pi
from nbflow.ops.slices import IndexedSlices
from nbflow.ops.standard import __array_namespace_info__ as __array_namespace_info__
from nbflow.ops.standard import (
    bfloat16,
    bool,
    complex64,
    complex128,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from nbflow.optimize import set_passes
from nbflow.recompute import checkpoint
from nbflow.saved import SavedModel, export, load
from nbflow.session import Session
from nbflow.spec import TensorSpec
from nbflow.variable import Variable, trainable_variables

__version__ = "0.1.0"
__array_api_version__ = "2024.12"

__all__ = [
    "DeviceSpec",
    "Graph",
    "IndexedSlices",
    "Node",
    "Queue",
    "SavedModel",
    "Session",
    "Tensor",
    "TensorSpec",
    "Variable",
    "bfloat16",
    "bool",
    "checkpoint",
    "cluster",
    "colocate_with",
    "complex64",
    "complex128",
    "control_dependencies",
    "current_session",
    "data",
    "describe",
    "device",
    "drop_state",
    "e",
    "errors",
    "events",
    "export",
    "feed",
    "fft",
    "float16",
    "float32",
    "float64",
    "get_cluster",
    "get_graph",
    "gradients",
    "graph_json",
    "hessian_vector_product",
    "image",
    "inf",
    "int8",
    "int16",
    "int32",
    "int64",
    "jvp",
    "layers",
    "linalg",
    "load",
    "load_ipython_extension",
    "name_scope",
    "nan",
    "newaxis",
    "nn",
    "onnx",
    "optim",
    "optimization",
    "optimize",
    "pi",
    "placement",
    "queue",
    "random",
    "run",
    "set_cluster",
    "set_passes",
    "set_seed",
    "show",
    "testing",
    "train",
    "trainable_variables",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "unload_ipython_extension",
]
__all__ += ops.__all__


def name_scope(name: str) -> AbstractContextManager[str]:
    """Names of ops made inside start with `name/`."""
    return get_graph().name_scope(name)


def device(spec: str | DeviceSpec | None) -> AbstractContextManager[None]:
    """Ops made inside ask for `spec` (`/job:worker/task:1/gpu:0`, or part of it). Nested blocks merge; None resets."""
    return get_graph().device(spec)


def control_dependencies(nodes: Any) -> AbstractContextManager[None]:
    """Ops made inside run after `nodes` (a list of ops or tensors)."""
    return get_graph().control_dependencies(nodes)


def colocate_with(other: Any) -> AbstractContextManager[None]:
    """Ops made inside run on the device of `other` (an op, tensor or variable)."""
    return get_graph().colocate_with(other)


def set_seed(seed: int) -> None:
    """Sets the seed of the current graph: with an op's name and the step, it determines what random ops draw.

    Raises GraphError for one of more than 64 bits.
    """
    if not -(2**63) <= int(seed) < 2**63:
        raise errors.GraphError(f"a seed is an integer of 64 bits, from -2**63 to 2**63 - 1, not {seed}")
    get_graph().seed = int(seed)
