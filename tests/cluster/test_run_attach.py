"""The client of a run goes away, in several ways, and another one takes the run up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow.errors import GraphError
from nbflow.graph import Graph
from tests.cluster.test_training import PATIENCE_S, wait_for

pytestmark = pytest.mark.cluster

# Starts a run from the cluster file argv[1], with argv[2] steps, says so, and waits to be ended.
CLIENT = textwrap.dedent("""
    import sys, time
    import numpy as np
    import nbflow as nf
    cluster = nf.cluster.attach(spec=sys.argv[1])
    nf.set_cluster(cluster)
    w = nf.Variable(np.zeros(3, "float32"), name="w")
    loss = nf.sum((w - 1.0) ** 2)
    options = eval(sys.argv[3])
    step = nf.optim.SGD(1e-3).minimize(loss, strategy=nf.train.DataParallel(**options))
    run = nf.train.run(
        step, int(sys.argv[2]), {"loss": loss}, every=10, show=False, background=True, name="far",
        evaluate={"total": nf.sum(w)}, eval_every=50,
    )
    while not len(run.history["loss"]):
        time.sleep(0.01)
    print("running", flush=True)
    if sys.stdin.readline().strip() == "detach":
        cluster.detach()
""")


@pytest.fixture
def spec(tmp_path: Path) -> Iterator[Path]:
    with nw.local(workers=2, ps=1) as cluster:
        cluster.save(tmp_path / "cluster.json")
        yield tmp_path / "cluster.json"


def client(spec: Path, steps: int, options: str = "{}") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CLIENT, str(spec), str(steps), options]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "running\n"
    return started


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(PATIENCE_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def undisturbed(steps: int) -> np.ndarray:
    nf.set_cluster(None)
    with Graph().as_default():
        w = nf.Variable(np.zeros(3, "float32"), name="w")
        loss = nf.sum((w - 1.0) ** 2)
        step = nf.optim.SGD(1e-3).minimize(loss)
        return nf.train.run(step, steps, {"loss": loss}, every=10, show=False).history["loss"]


def test_another_process_takes_up_the_run_of_a_client_that_was_killed(spec: Path) -> None:
    steps = 1500
    started = client(spec, steps)
    try:
        started.send_signal(signal.SIGKILL)
        started.wait(PATIENCE_S)
        with nw.attach(spec=spec) as cluster:
            (record,) = cluster.runs()
            assert (record.name, record.steps) == ("far", steps)
            run = nf.train.attach(cluster, "far")
            run.wait(PATIENCE_S)
            assert run.status == "done"
            assert run.step == steps
            np.testing.assert_array_equal(run.history["step"], np.arange(10, steps + 1, 10))
            np.testing.assert_allclose(run.history["loss"], undisturbed(steps), rtol=1e-5)
            # What was evaluated before and after the client was lost is there too.
            evaluated = ~np.isnan(run.history["total"])
            np.testing.assert_array_equal(run.history["step"][evaluated], np.arange(50, steps + 1, 50))
            moved = 3.0 * (1.0 - 0.998 ** np.arange(50, steps + 1, 50))
            np.testing.assert_allclose(run.history["total"][evaluated], moved, rtol=1e-4)
            # It is over, and can still be read.
            again = nf.train.attach(cluster)
            assert again.status == "done"
            np.testing.assert_array_equal(again.history["loss"], run.history["loss"])
    finally:
        end(started)


def test_a_client_that_detaches_leaves_its_run_and_another_one_stops_it(spec: Path) -> None:
    started = client(spec, 10**7)
    try:
        assert started.stdin is not None
        started.stdin.write("detach\n")
        started.stdin.flush()
        assert started.wait(PATIENCE_S) == 0
        with nw.attach(spec=spec) as cluster:
            run = nf.train.attach(cluster)
            at = run.step
            wait_for(run, lambda r: r.step > at)
            run.pause()
            wait_for(run, lambda r: r.status == "paused")
            run.resume()
            wait_for(run, lambda r: r.status == "running")
            run.stop(PATIENCE_S)
            assert run.status == "stopped"
            assert run.history["step"][0] == 10
    finally:
        end(started)


def test_two_clients_hear_the_same_while_one_of_them_is_frozen(spec: Path) -> None:
    started = client(spec, 3000, '{"sync": False}')
    try:
        os.kill(started.pid, signal.SIGSTOP)
        with nw.attach(spec=spec) as cluster:
            run = nf.train.attach(cluster, "far")
            run.wait(PATIENCE_S)
            assert (run.status, run.step) == ("done", 3000)
        os.kill(started.pid, signal.SIGCONT)
    finally:
        end(started)


def test_no_run_is_said_so(spec: Path) -> None:
    with nw.attach(spec=spec) as cluster, pytest.raises(GraphError, match=r"no run 'far'.*known: none"):
        nf.train.attach(cluster, "far")


def test_in_one_process() -> None:
    with Graph().as_default():
        w = nf.Variable(np.zeros(3, "float32"), name="w")
        loss = nf.sum((w - 1.0) ** 2)
        step = nf.optim.SGD(1e-3).minimize(loss)
        first = nf.train.run(step, 10**7, {"loss": loss}, every=10, show=False, background=True)
        wait_for(first, lambda r: len(r.history["loss"]) > 1)
        second = nf.train.attach()
        assert second.id == first.id
        threads = threading.active_count()
        second.stop(PATIENCE_S)
        first.wait(PATIENCE_S)
        assert first.status == second.status == "stopped"
        np.testing.assert_array_equal(first.history["loss"], second.history["loss"])
        assert threading.active_count() <= threads
