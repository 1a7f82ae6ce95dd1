"""Attaching to workers that run, or do not: one table says what is wrong with each, within 10 s."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

import nbflow_workers
from nbflow.errors import Rejected, Unauthenticated, VersionMismatch, WorkerError, WorkerLost
from nbflow.testing.transport import FIRST, SECOND, command, pair
from nbflow_workers.security import TOKEN_VARIABLE
from nbflow_workers.worker import READY, TEST_VERSION_VARIABLE, ready_from

pytestmark = pytest.mark.cluster

TOKEN = "correct-horse-battery-staple"


@contextlib.contextmanager
def worker(*flags: str, token: str | None = TOKEN, **environment: str) -> Iterator[str]:
    """`nbflow worker` as somebody would start it by hand; yields its address."""
    env = {k: v for k, v in os.environ.items() if k != TOKEN_VARIABLE} | environment
    if token is not None:
        env[TOKEN_VARIABLE] = token
    listen = [] if "--listen" in flags else ["--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nbflow_workers", "worker", *listen, *flags],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = ready_from(process.stdout.readline())
        assert said is not None
        yield said["address"]
    finally:
        process.terminate()
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait(60)
            if process.stdout is not None:
                process.stdout.close()


def refused_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def row(error: WorkerError, address: str) -> str:
    return next(line for line in str(error).splitlines() if line.strip().startswith(address))


def use(cluster: nbflow_workers.Cluster, session: str) -> None:
    """A step on each of two workers, with a tensor from one to the other, small and large."""
    doors = cluster.connect(session)
    for shape in ((3,), (300, 300)):
        sender, receiver = pair(FIRST, SECOND, len(shape))
        x = np.ones(shape, np.float32)
        for bundle in (sender, receiver):
            doors[bundle.task].register(bundle)
        step = f"{session}-{len(shape)}"
        futures = [
            doors[FIRST].start(command(sender, {"x": x}, step_id=step)),
            doors[SECOND].start(command(receiver, step_id=step)),
        ]
        np.testing.assert_array_equal([f.result(30) for f in futures][1].fetches["y"], x + x)


def test_one_table_for_everything_that_is_wrong() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    refused = f"127.0.0.1:{refused_port()}"
    frozen = f"127.0.0.1:{silent.getsockname()[1]}"
    try:
        with (
            worker() as good,
            worker(token=TOKEN[::-1]) as other_token,
            worker(**{TEST_VERSION_VARIABLE: "99"}) as other_version,
        ):
            start = time.monotonic()
            with pytest.raises(WorkerError) as caught:
                nbflow_workers.attach(
                    [good, other_token, other_version, refused, frozen, "no.such.name.invalid:1", "nonsense"],
                    token=TOKEN,
                    timeout_s=3,
                )
            assert time.monotonic() - start < 10
    finally:
        silent.close()
    error = caught.value
    assert "6 of 7 workers cannot be attached" in str(error)
    assert "wrong token" in row(error, other_token)
    assert "other version" in row(error, other_version)
    assert "refused" in row(error, refused)
    assert re.search("no answer|TLS", row(error, frozen))
    assert "name not known" in row(error, "no.such.name.invalid:1")
    assert "HOST:PORT" in row(error, "nonsense")
    assert good not in str(error)
    assert TOKEN not in str(error)


@pytest.mark.parametrize("kind", [Unauthenticated, VersionMismatch, WorkerLost])
def test_one_kind_of_trouble_raises_its_own_error(kind: type[WorkerError]) -> None:
    with contextlib.ExitStack() as stack:
        if kind is Unauthenticated:
            address = stack.enter_context(worker(token=TOKEN[::-1]))
        elif kind is VersionMismatch:
            address = stack.enter_context(worker(**{TEST_VERSION_VARIABLE: "99"}))
        else:
            address = f"127.0.0.1:{refused_port()}"
        with pytest.raises(kind, match="1 of 1 workers"):
            nbflow_workers.attach([address], token=TOKEN)


def test_twins_are_named() -> None:
    with worker() as first, worker() as second, pytest.raises(Rejected, match="--task"):
        nbflow_workers.attach([first, second], token=TOKEN)


def test_attach_needs_to_know_whom_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(Rejected, match="attach to what"):
        nbflow_workers.attach()
    with pytest.raises(Rejected, match="token"):
        nbflow_workers.attach(["127.0.0.1:1"])


def test_closing_an_attached_cluster_leaves_its_workers() -> None:
    with worker() as first, worker("--task", "1") as second:
        for turn in range(2):
            with nbflow_workers.attach([first, second], token=TOKEN) as cluster:
                assert [r.task_name for r in cluster.workers()] == [FIRST, SECOND]
                use(cluster, f"turn-{turn}")
                with pytest.raises(Rejected, match="attached"):
                    cluster.scale(3)


def test_a_session_survives_its_client() -> None:
    """Detaching leaves the session; its id is taken for whoever does not know its secret."""
    with worker() as address:
        first = nbflow_workers.attach([address], token=TOKEN)
        first.connect("mine")
        first.detach()
        with nbflow_workers.attach([address], token=TOKEN) as second:
            with pytest.raises(Rejected, match="somebody else's"):
                second.connect("mine")
            second.connect("other")


def test_beyond_loopback_tls_is_made_and_used(tmp_path: Path) -> None:
    paths = [tmp_path / "0.json", tmp_path / "1.json"]
    flags: Sequence[str] = ("--listen", "0.0.0.0:0", "--advertise", "127.0.0.1", "--spec-out")
    with worker(*flags, str(paths[0])) as first, worker("--task", "1", *flags, str(paths[1])) as second:
        specs = [nbflow_workers.spec.load(path) for path in paths]
        ca = b"".join(s.ca for s in specs)
        assert ca.count(b"BEGIN CERTIFICATE") == 2
        assert specs[0].workers[0].address == first
        with nbflow_workers.attach([first, second], token=TOKEN, ca=ca) as cluster:
            use(cluster, "tls")
        with pytest.raises(WorkerError, match="TLS"):
            nbflow_workers.attach([first], token=TOKEN, timeout_s=3)
        with pytest.raises(WorkerError, match="TLS"):
            nbflow_workers.attach([first], token=TOKEN, ca=specs[1].ca, timeout_s=3)
        with nbflow_workers.attach(spec=paths[0]) as alone:
            assert alone.workers()[0].address == first


@pytest.mark.parametrize(
    ("flags", "token", "says"),
    [
        ((), None, "needs a token"),
        (("--listen", "0.0.0.0:0"), TOKEN, "needs TLS"),
        ((), "short", "at least 16"),
        (("--listen", "nowhere"), TOKEN, "HOST:PORT"),
        (("--devices", "abacus"), TOKEN, "abacus"),
    ],
)
def test_a_worker_that_must_not_start_says_why(flags: Sequence[str], token: str | None, says: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != TOKEN_VARIABLE} | ({TOKEN_VARIABLE: token} if token else {})
    listen = [] if "--listen" in flags else ["--listen", "127.0.0.1:0"]
    command_line = [sys.executable, "-m", "nbflow_workers", "worker", *listen, *flags]
    done = subprocess.run(
        command_line, env=env, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_said_so() -> None:
    with worker() as address:
        env = os.environ | {TOKEN_VARIABLE: TOKEN}
        command_line = [sys.executable, "-m", "nbflow_workers", "worker", "--listen", address]
        done = subprocess.run(command_line, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "taken" in done.stderr


def test_ready_shows_no_secret(capfd: pytest.CaptureFixture[str]) -> None:
    line = READY + '{"address": "127.0.0.1:1"}'
    assert ready_from(line) == {"address": "127.0.0.1:1"}
    assert ready_from("something else") is None


def test_nobody_calling_for_long_ends_it() -> None:
    env = os.environ | {TOKEN_VARIABLE: TOKEN}
    command_line = [sys.executable, "-m", "nbflow_workers", "worker", "--listen", "127.0.0.1:0", "--keepalive", "0.5"]
    done = subprocess.run(
        command_line, env=env, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0
    assert "nobody called" in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_doctor_looks_at_every_worker(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    doctor = [sys.executable, "-m", "nbflow_workers", "doctor", "--spec", str(path), "--timeout", "3"]
    with worker("--spec-out", str(path)) as address:
        good = subprocess.run(doctor, capture_output=True, text=True, timeout=60, check=False)
    bad = subprocess.run(doctor, capture_output=True, text=True, timeout=60, check=False)
    assert good.returncode == 0, good.stdout + good.stderr
    assert re.search(rf"ok +/job:worker/task:0 {address} +nbflow .*cpu:0.* round trip [\d.]+ ms", good.stdout)
    assert bad.returncode == 1
    assert re.search(rf"FAIL +/job:worker/task:0 {address} +refused", bad.stdout)


def test_shutdown_ends_workers_that_others_started_also_beside_one_that_does_not_answer() -> None:
    with worker("--task", "0") as first, worker("--task", "1") as second:
        cluster = nbflow_workers.attach([first, second], token=TOKEN)
        pids = [psutil.Process(record.pid) for record in cluster.workers()]
        pids[0].suspend()
        while pids[0].status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        try:
            with pytest.raises(WorkerError, match="task:0"):
                cluster.shutdown()
            assert not psutil.wait_procs(pids[1:], timeout=30)[1]
            with pytest.raises(Rejected, match="closed"):
                cluster.shutdown()
        finally:
            pids[0].resume()
