"""The suite with every node of a model on another worker process than the one before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

import nbflow_workers
from nbflow.device import parse_device
from nbflow.graph import Graph
from nbflow.onnx.backend import Prepared
from nbflow.onnx.importer import Model
from nbflow.transport import Cluster
from tests.onnx_suite.cases import SuiteCase
from tests.onnx_suite.run import Outcome, run_case


class Spread(Prepared):
    """A model whose nodes take turns on the tasks of a cluster."""

    def __init__(self, model: Any, cluster: Cluster, workers: int) -> None:
        super().__init__(model, cluster)
        self._workers = workers

    def imported(self, given: Mapping[str, Any]) -> tuple[Graph, Model]:
        graph, model = super().imported(given)
        places = cycle([parse_device(f"/job:worker/task:{n}") for n in range(self._workers)])
        for node in graph.nodes.values():
            node.device = next(places)
            node.colocate = ()
        return graph, model


class Both:
    """Runs here and on the cluster. Raises AssertionError unless all outputs are the same, bit for bit."""

    def __init__(self, model: Any, cluster: Cluster, workers: int) -> None:
        self._here = Prepared(model)
        self._there = Spread(model, cluster, workers)

    def run(self, inputs: Sequence[Any]) -> Any:
        here, there = self._here.run(inputs), self._there.run(inputs)
        _same(list(here), list(there), "outputs")
        return there


def _same(here: Any, there: Any, what: str) -> None:
    if isinstance(here, list):
        assert isinstance(there, list), what
        assert len(here) == len(there), what
        for n, pair in enumerate(zip(here, there, strict=True)):
            _same(*pair, f"{what}[{n}]")
        return
    if here is None:
        assert there is None, what
        return
    assert here.dtype == there.dtype, what
    assert here.shape == there.shape, what
    assert np.ascontiguousarray(here).tobytes() == np.ascontiguousarray(there).tobytes(), f"{what} differ in bits"


def run_all(cases: Sequence[SuiteCase], workers: int = 2) -> list[Outcome]:
    """Every case, on one cluster that lives as long as it takes."""
    with nbflow_workers.local(workers=workers, ps=0) as cluster:
        return [run_case(case, lambda model: Both(model, cluster, workers)) for case in cases]
