"""The client of a run is cut off from its workers, or frozen, or they are, and the run goes on by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbflow as nf
import nbflow_workers as nw
from nbflow import errors
from nbflow.events import RunState
from nbflow.graph import Graph
from nbflow.train import returning
from tests.cluster.test_attach import TOKEN, worker
from tests.cluster.test_training import PATIENCE_S, wait_for
from tests.proxies import Proxy

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as made:
        yield made
    nf.set_cluster(None)


def start(steps: int, **options: Any) -> Any:
    w = nf.Variable(np.zeros(3), name="w")
    loss = nf.sum((w - 1.0) ** 2)
    strategy = nf.train.DataParallel(sync=options.pop("sync", True))
    step = nf.optim.SGD(1e-4).minimize(loss, strategy=strategy)
    return nf.train.run(step, steps, {"loss": loss}, every=10, show=False, background=True, **options)


def expected(steps: int) -> Any:
    return 3.0 * (1.0 - 2e-4) ** (2.0 * (np.arange(10, steps + 1, 10) - 1))


def behind_proxies(stack: ExitStack, jobs: dict[str, int]) -> tuple[Any, dict[str, Proxy]]:
    """A cluster whose client goes through proxies; its workers reach each other without them."""
    tasks = [(job, n) for job, count in jobs.items() for n in range(count)]
    straight = {(j, n): stack.enter_context(worker("--job", j, "--task", str(n))) for j, n in tasks}
    proxies = {key: stack.enter_context(Proxy(address)) for key, address in straight.items()}
    cluster = stack.enter_context(nw.attach([p.address for p in proxies.values()], token=TOKEN))
    for known in cluster._workers.values():
        known.link.address = straight[(known.info.job, known.info.task)]  # what peers are told
    return cluster, {f"/job:{j}/task:{n}": p for (j, n), p in proxies.items()}


def break_and_heal(run: Any, proxies: list[Proxy], how: str) -> None:
    wait_for(run, lambda r: r.step > 50)
    for proxy in proxies:
        getattr(proxy, how)()
    wait_for(run, lambda r: "recovering" in [e.status for e in r.events if isinstance(e, RunState)])
    for proxy in proxies:
        proxy.heal()


def check(run: Any) -> None:
    """It goes on, and nothing that was said meanwhile is missing."""
    at = run.step
    wait_for(run, lambda r: not r._absent._missed and r.status == "running" and r.step > at)
    run.stop(PATIENCE_S)
    assert run.status == "stopped"
    steps = np.arange(10, run.step + 1, 10)
    np.testing.assert_array_equal(run.history["step"], steps)
    np.testing.assert_allclose(run.history["loss"], expected(run.step), rtol=1e-6)


@pytest.mark.parametrize(
    ("who", "how"),
    [("/job:worker/task:0", "cut"), ("/job:worker/task:1", "freeze"), ("all", "cut")],
)
def test_a_link_breaks_and_comes_back(who: str, how: str) -> None:
    with ExitStack() as stack:
        cluster, proxies = behind_proxies(stack, {"worker": 2, "ps": 1})
        nf.set_cluster(cluster)
        run = start(10**7)
        break_and_heal(run, list(proxies.values()) if who == "all" else [proxies[who]], how)
        check(run)
        nf.set_cluster(None)


def test_asynchronous_replicas_and_whoever_attached() -> None:
    with ExitStack() as stack:
        cluster, proxies = behind_proxies(stack, {"worker": 2, "ps": 1})
        nf.set_cluster(cluster)
        run = start(10**7, sync=False)
        other = nf.train.attach(cluster)
        break_and_heal(run, [proxies["/job:worker/task:1"]], "cut")
        at = run.step
        for handle in (run, other):
            wait_for(handle, lambda r: not r._absent._missed and r.step > at)
        run.stop(PATIENCE_S)
        other.wait(PATIENCE_S)
        assert (run.status, run.step) == (other.status, other.step)
        np.testing.assert_array_equal(run.history["loss"], other.history["loss"])
        nf.set_cluster(None)


def test_what_was_asked_meanwhile_is_asked_again() -> None:
    with ExitStack() as stack:
        cluster, proxies = behind_proxies(stack, {"worker": 1})
        nf.set_cluster(cluster)
        run = start(10**7)
        wait_for(run, lambda r: r.step > 50)
        (proxy,) = proxies.values()
        proxy.cut()
        wait_for(run, lambda r: r.status == "recovering")
        run.stop(0.1)
        assert run.status == "recovering"
        proxy.heal()
        run.wait(PATIENCE_S)
        assert run.status == "stopped"
        nf.set_cluster(None)


def test_a_link_that_stays_away_ends_the_wait_and_another_handle_takes_the_run_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(returning, "RETURN_S", 0.5)
    with ExitStack() as stack:
        cluster, proxies = behind_proxies(stack, {"worker": 1})
        nf.set_cluster(cluster)
        run = start(10**7)
        wait_for(run, lambda r: r.step > 50)
        (proxy,) = proxies.values()
        proxy.cut()
        with pytest.raises(errors.WorkerLost, match=rf"nf.train.attach\(cluster, '{run.id}'\)"):
            run.wait(PATIENCE_S)
        assert run.status == "failed"
        proxy.heal()
        deadline = time.monotonic() + PATIENCE_S
        while not cluster.devices() and time.monotonic() < deadline:
            time.sleep(0.05)
        again = nf.train.attach(cluster, run.id)
        assert again.step > run.step
        again.stop(PATIENCE_S)
        assert again.status == "stopped"
        nf.set_cluster(None)


def test_another_worker_in_the_place_of_the_one_that_was_cut_off() -> None:
    with worker() as first, worker() as second, Proxy(first) as proxy:
        with nw.attach([proxy.address], token=TOKEN) as cluster:
            nf.set_cluster(cluster)
            run = start(10**7)
            wait_for(run, lambda r: r.step > 50)
            proxy.cut()
            wait_for(run, lambda r: r.status == "recovering")
            host, _, port = second.rpartition(":")
            proxy._target = (host, int(port))
            proxy.heal()
            with pytest.raises(errors.WorkerLost, match="has forgotten the run"):
                run.wait(PATIENCE_S)
            nf.set_cluster(None)


def test_a_worker_that_is_frozen_for_a_while() -> None:
    with nw.local(workers=1) as cluster:
        nf.set_cluster(cluster)
        run = start(10**7)
        wait_for(run, lambda r: r.step > 50)
        pid = cluster.workers()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        wait_for(run, lambda r: r.status == "recovering")
        os.kill(pid, signal.SIGCONT)
        check(run)
        nf.set_cluster(None)


def test_a_worker_that_is_killed_is_not_waited_for() -> None:
    with nw.local(workers=1) as cluster:
        nf.set_cluster(cluster)
        run = start(10**7)
        wait_for(run, lambda r: r.step > 50)
        pid = cluster.workers()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(errors.WorkerLost, match="killed by SIGKILL"):
            run.wait(PATIENCE_S)
        assert time.monotonic() - began < returning.RETURN_S / 2
        nf.set_cluster(None)


# Trains on the workers of file argv[1] and says when, then how it ended.
CLIENT = textwrap.dedent("""
    import sys, time
    import numpy as np
    import nbflow as nf
    nf.set_cluster(nf.cluster.attach(spec=sys.argv[1]))
    w = nf.Variable(np.zeros(3, "float32"), name="w")
    loss = nf.sum((w - 1.0) ** 2)
    step = nf.optim.SGD(1e-4).minimize(loss, strategy=nf.train.DataParallel())
    run = nf.train.run(step, 6000, {"loss": loss}, every=10, show=False, background=True)
    while run.step < 50:
        time.sleep(0.01)
    print("running", flush=True)
    run.wait()
    print(run.status, len(run.history["loss"]), flush=True)
""")


def test_a_client_that_is_frozen_for_a_while(tmp_path: Path) -> None:
    with nw.local(workers=1, ps=1) as cluster:
        cluster.save(tmp_path / "cluster.json")
        command = [sys.executable, "-c", CLIENT, str(tmp_path / "cluster.json")]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "running\n"
            os.kill(client.pid, signal.SIGSTOP)
            time.sleep(6.0)  # longer than a silence may be
            os.kill(client.pid, signal.SIGCONT)
            assert client.stdout.readline() == "done 600\n"
            assert client.wait(PATIENCE_S) == 0
        finally:
            client.kill()
            client.wait(PATIENCE_S)
            client.stdout.close()
