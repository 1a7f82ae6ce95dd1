"""Worker processes whose devices compute nothing: everything around the ops is real."""

from __future__ import annotations

import time

import psutil
import pytest

import nbflow as nf
import nbflow_workers
from nbflow.errors import WorkerError

pytestmark = pytest.mark.cluster


def test_processes_coordinate_and_nothing_is_computed() -> None:
    size = 2**28  # 1 GiB of float32 a variable
    with nbflow_workers.local(workers=2, ps=1, devices="null@link=1e11") as cluster, nf.Graph().as_default():
        assert {str(d.spec) for d in cluster.devices()} == {
            "/job:ps/task:0/null:0",
            "/job:worker/task:0/null:0",
            "/job:worker/task:1/null:0",
        }
        weights = nf.Variable(nf.random.normal((size,)), name="weights")
        count = nf.Variable(nf.constant(0, dtype="int64"), name="count", trainable=False)
        loss = nf.sum(weights * nf.random.normal((1,)))
        step = nf.optim.SGD(0.1).minimize(loss, strategy=nf.train.DataParallel())
        with nf.Session(cluster) as session:
            session.run(step)
            start = time.perf_counter()
            value, _, number = session.run([loss, step, count.assign_add(1)])
            took = time.perf_counter() - start
            used = [psutil.Process(r.pid).memory_info().rss for r in cluster.workers() if r.pid is not None]
    assert (value.shape, int(number)) == ((), 1)
    assert took >= 4 * 4 * size / 1e11
    assert max(used) < 2**30


def test_a_machine_that_is_none_is_an_error_of_the_worker() -> None:
    with pytest.raises(WorkerError, match="not a machine: 'abacus'"):
        nbflow_workers.local(workers=1, devices="null@abacus")
    with pytest.raises(WorkerError, match="one null device"):
        nbflow_workers.local(workers=1, devices="null:1")
