"""The graph behind `graph.pb`: every kind of attribute, node and edge that a graph can have.

`python -m tests.golden.make` writes `graph.pb` and `digest.txt` anew. That is a decision: files that others saved keep
the old digest, so it belongs to a change of GRAPH_VERSION.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import nbflow as nf
from nbflow.graph import Graph, Owner
from nbflow.spec import BFLOAT16

HERE = Path(__file__).parent


def golden() -> Graph:
    """Built from ops, not from layers or optimizers: what those are made of may change."""
    graph = Graph()
    graph.seed = 2**40 + 3
    graph.generations["w"] = 2
    with graph.as_default():
        graph.owner = Owner("cell-1", "In[1]")
        x = nf.placeholder("float32", (None, 3), name="x")
        unknown = nf.placeholder("bfloat16", None, name="any rank")
        values = [np.arange(6).reshape(2, 3)[:, ::-1], np.array(-0.0), np.array([np.inf]), np.zeros((0, 2), bool)]
        constants = [nf.constant(v) for v in (*values, np.ones(2, BFLOAT16), np.array([1 - 2j]))]
        with graph.device("/job:worker/task:1"):
            w = nf.Variable(np.full((3, 2), 0.5, np.float32), name="w")
        graph.owner = Owner("cell-2", "In[2]")
        with graph.name_scope("größe"), graph.colocate_with(w):
            y = nf.add(nf.matmul(x, w), 1.5, name="y")
        parts = nf.split(y, 2, axis=1)
        with graph.control_dependencies([parts[1], constants[0]]):
            total = nf.sum(parts[0], axis=(0, 1), keepdims=True)
        graph.add("placeholder", (), {"dtype": np.dtype(np.int8), "shape": (np.int64(2), None)}, name="numpy's numbers")
        nf.astype(unknown, "float64")
        nf.random.uniform((2, 3), minval=-1.0, maxval=float(np.float32(0.1)), name="noise")
        picked = nf.cond(total[0, 0] > 0.0, lambda: x * 2.0, lambda: -x)
        nf.while_loop(lambda i, t: i < 3, lambda i, t: (i + 1, nf.tanh(t)), [nf.constant(0), picked])
        nf.scan(lambda carry, row: (carry + row, carry), nf.zeros((3,)), x)
        w.assign_add(nf.ones((3, 2)))
    return graph


def main() -> None:
    graph = golden()
    (HERE / "graph.pb").write_bytes(graph.to_proto().SerializeToString(deterministic=True))
    (HERE / "digest.txt").write_text(graph.digest() + "\n")


if __name__ == "__main__":
    main()
