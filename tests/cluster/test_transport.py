"""The conformance suite of `Transport`, over workers in this process and real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

import nbflow_workers
from nbflow.inprocess import InProcessCluster
from nbflow.testing.transport import check_transport
from nbflow.transport import Cluster


@contextmanager
def in_process() -> Iterator[Cluster]:
    cluster = InProcessCluster(workers=2, ps=1)
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def over_grpc() -> Iterator[Cluster]:
    with nbflow_workers.local(workers=2, ps=1) as cluster:
        yield cluster


@pytest.mark.cluster
@pytest.mark.parametrize("make", [in_process, over_grpc])
def test_transport(make: Callable[[], AbstractContextManager[Cluster]]) -> None:
    check_transport(make)
