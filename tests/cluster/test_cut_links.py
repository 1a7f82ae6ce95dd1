"""A link breaks, or goes silent, and comes back: steps fail in time, and what the worker holds is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

import nbflow as nf
import nbflow_workers
from nbflow.errors import NbflowError, PlacementError, RunError, WorkerError
from nbflow.testing.transport import add_bundle, command
from nbflow_workers.channel import Link
from nbflow_workers.client import GrpcTransport
from nbflow_workers.security import Token
from nbflow_workers.session import Session
from tests.cluster.test_attach import TOKEN, worker
from tests.proxies import Proxy

pytestmark = pytest.mark.cluster

# What is promised for a worker that is gone or silent is 5 s; machines that are busy may be slower.
FAILS_WITHIN_S = 40.0
BACK_WITHIN_S = 40.0


def eventually(run: Callable[[], object]) -> object:
    """What `run` returns once the link is there again; a worker that cannot be reached yet is told of."""
    end = time.monotonic() + BACK_WITHIN_S
    while True:
        try:
            return run()
        except (WorkerError, RunError, PlacementError) as error:
            # What is still there must not be told of as lost: whoever believes it starts anew.
            if "were lost" in error.message or time.monotonic() > end:
                raise
            time.sleep(0.2)


def counter(graph: nf.Graph) -> tuple[nf.Variable, nf.Tensor]:
    with graph.as_default():
        kept = nf.Variable(np.float32(1.0), name="kept")
        return kept, kept.assign_add(1.0)


@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_between_steps(how: str) -> None:
    with worker() as address, Proxy(address) as proxy:
        cluster = nbflow_workers.attach([proxy.address], token=TOKEN)
        graph = nf.Graph()
        kept, step = counter(graph)
        with cluster, nf.Session(cluster, graph) as session:
            for _ in range(3):
                session.run(step)
            getattr(proxy, how)()
            with pytest.raises(NbflowError):
                session.run(step, deadline_s=2.0)
            proxy.heal()
            # 4, or 5: of a step that went out before the link broke nobody knows whether it was done.
            assert eventually(lambda: session.run(kept)) in (4.0, 5.0)
            before = session.run(kept)
            assert session.run(step) == before + 1


@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_within_a_step(how: str) -> None:
    with worker() as address, Proxy(address) as proxy:
        cluster = nbflow_workers.attach([proxy.address], token=TOKEN)
        graph = nf.Graph()
        kept, step = counter(graph)
        with graph.as_default():
            (endless,) = nf.while_loop(lambda n: n > 0, lambda n: (n + 1,), (nf.constant(1),))
        with cluster, nf.Session(cluster, graph) as session:
            session.run(step)
            failed: list[BaseException] = []

            def run() -> None:
                try:
                    session.run(endless)
                except NbflowError as error:
                    failed.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            time.sleep(0.5)  # it runs by now, or will when the link is cut: both must fail
            getattr(proxy, how)()
            thread.join(FAILS_WITHIN_S)
            assert not thread.is_alive()
            assert isinstance(failed[0], WorkerError)
            assert "/job:worker/task:0" in str(failed[0])
            proxy.heal()
            assert eventually(lambda: session.run(kept)) == 2.0
            assert session.run(step) == 3.0


def test_a_worker_started_anew_has_lost_its_values() -> None:
    graph = nf.Graph()
    kept, step = counter(graph)
    with worker() as first, Proxy(first) as proxy:
        cluster = nbflow_workers.attach([proxy.address], token=TOKEN)
        with cluster, nf.Session(cluster, graph) as session, worker() as second:
            session.run(step)
            proxy.cut()
            host, _, port = second.rpartition(":")
            proxy._target = (host, int(port))
            proxy.heal()
            said = []
            end = time.monotonic() + BACK_WITHIN_S
            while "kept" not in "".join(said) and time.monotonic() < end:
                try:
                    session.run(kept)
                except NbflowError as error:
                    said.append(str(error))
                    time.sleep(0.2)
            assert "kept" in "".join(said), said[-3:]
            assert session.run(step) == 2.0  # initialised anew, once that was said


def test_what_a_lost_worker_holds_is_found_again_after_steps_without_it() -> None:
    graph = nf.Graph()
    with graph.as_default():
        with nf.device("/job:worker/task:1"):
            kept = nf.Variable(np.float32(1.0), name="kept")
            step = kept.assign_add(1.0)
        with nf.device("/job:worker/task:0"):
            other = nf.Variable(np.float32(5.0), name="other")
            beside = other.assign_add(1.0)
    with worker("--task", "0") as near, worker("--task", "1") as far, Proxy(far) as proxy:
        cluster = nbflow_workers.attach([near, proxy.address], token=TOKEN)
        with cluster, nf.Session(cluster, graph) as session:
            session.run([step, beside])
            proxy.cut()
            end = time.monotonic() + FAILS_WITHIN_S
            while len(cluster.devices()) == 2 and time.monotonic() < end:
                time.sleep(0.1)
            assert len(cluster.devices()) == 1, "the worker that is cut off is lost by now"
            assert session.run(beside) == 7.0
            proxy.heal()
            assert eventually(lambda: session.run(kept)) == 2.0
            assert session.run([step, beside]) == [3.0, 8.0]


def test_a_connection_to_a_peer_that_died_unseen_is_made_anew() -> None:
    with worker() as address, Proxy(address) as proxy:
        cluster = nbflow_workers.attach([address], token=TOKEN)
        with cluster:
            info = cluster.workers()[0]
            cluster.connect("shared")

            def connect(task: str) -> GrpcTransport:
                link = Link(proxy.address, Token(TOKEN), name=task)
                return GrpcTransport(link, info, "shared", driver="a peer", owns_session=False, owns_link=True)

            session = Session("shared", b"x" * 16, connect)
            first = session.peer(info.task_name)
            bundle = add_bundle(info.task_name, (2,))
            x = np.zeros(2, np.float32)
            first.register(bundle)
            first.start(command(bundle, {"x": x})).result(30)
            assert session.peer(info.task_name) is first, "a connection that answers is used again"
            proxy.freeze()
            assert first.usable, "nothing shows yet that it is dead"
            second = session.peer(info.task_name)
            assert second is not first
            assert not first.usable
            proxy.heal()
            second.register(bundle)
            eventually(lambda: second.start(command(bundle, {"x": x})).result(30))
            session.forget_peers()


def test_a_handshake_that_takes_its_time_is_waited_for() -> None:
    with worker() as address, Proxy(address) as proxy:
        proxy.freeze()
        link = Link(proxy.address, Token(TOKEN))
        late = threading.Timer(0.7, proxy.thaw)  # as when a packet was lost, and is sent again
        late.start()
        try:
            assert link.describe(timeout_s=30).job == "worker"
        finally:
            late.join()
            link.close()
