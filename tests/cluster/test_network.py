"""Three hosts, each with a worker: encrypted tensors between them, with delay, loss and a link that is cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import network

MISSING = network.missing()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
ROOT = Path(__file__).parents[2]
WAIT_S = 60.0


class Lab:
    """Hosts with workers, and a client on the switch: a Python process that `ask` gives lines to run."""

    def __init__(self, hosts: network.Hosts, folder: Path, jobs: tuple[str, ...] = ("worker",) * 3) -> None:
        self.hosts = hosts
        token = folder / "token"
        token.write_text("x" * 40)
        token.chmod(0o600)
        self.workers = []
        specs = []
        for number, job in enumerate(jobs, 1):
            spec = folder / f"{number}.json"
            command = [sys.executable, "-m", "nbflow_workers", "worker", "--listen", f"{hosts.address(number)}:7077"]
            command += ["--job", job, "--task", str(jobs[: number - 1].count(job))]
            command += ["--token-file", str(token), "--spec-out", str(spec)]
            with (folder / f"{number}.log").open("w") as log:
                self.workers.append(hosts.start(number, *command, stdout=subprocess.PIPE, stderr=log, text=True))
            specs.append(spec)
        for worker in self.workers:
            assert worker.stdout.readline().startswith("NBFLOW-READY"), (folder / "1.log").read_text()
        whole: dict[str, Any] = json.loads(specs[0].read_text())
        for spec in specs[1:]:
            more = json.loads(spec.read_text())
            whole["ca"] += more["ca"]
            whole["workers"] += more["workers"]
        joined = folder / "lab.json"
        with os.fdopen(os.open(joined, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            json.dump(whole, file)
        script = str(Path(__file__).with_name("network_client.py"))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        self.client = hosts.start(0, sys.executable, script, str(joined), **pipes)

    def tell(self, **request: Any) -> None:
        self.client.stdin.write(json.dumps(request) + "\n")
        self.client.stdin.flush()

    def answer(self) -> dict[str, Any]:
        line = self.client.stdout.readline()
        assert line, "the client ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, **request: Any) -> dict[str, Any]:
        self.tell(**request)
        return self.answer()

    def close(self) -> None:
        self.client.stdin.close()
        self.client.wait(WAIT_S)
        self.client.stdout.close()
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait(WAIT_S)
            worker.stdout.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with network.Hosts(3) as hosts:
        made = Lab(hosts, tmp_path)
        yield made
        made.close()


@pytest.fixture
def trainers(tmp_path: Path) -> Iterator[Lab]:
    """Two workers, and a ps, each on its own host."""
    with network.Hosts(3) as hosts:
        made = Lab(hosts, tmp_path, ("worker", "worker", "ps"))
        yield made
        made.close()


def test_tensors_between_hosts_are_encrypted_and_right(lab: Lab) -> None:
    assert lab.ask(do="endpoints") == {"curve": 3, "hosts": 3}
    for nbytes in (4, 300_000, 30_000_000):
        for source, destination in ((0, 1), (1, 2), (2, 0)):
            found = lab.ask(do="move", nbytes=nbytes, source=source, destination=destination)
            assert found == {"value": [7.0, 7.0], "via": "tcp", "nbytes": nbytes}


def test_a_slow_and_lossy_host_is_waited_for(lab: Lab) -> None:
    lab.hosts.impair(2, delay_ms=10, loss=0.01)
    for nbytes in (4, 2_000_000):
        for source, destination in ((0, 1), (1, 2)):
            found = lab.ask(do="move", nbytes=nbytes, source=source, destination=destination)
            assert found == {"value": [7.0, 7.0], "via": "tcp", "nbytes": nbytes}


def test_a_host_that_is_cut_off_is_named_and_the_others_go_on(lab: Lab) -> None:
    lab.ask(do="move", nbytes=4_000_000, source=0, destination=2)
    lab.tell(do="move often", nbytes=4_000_000, source=0, destination=2)
    assert lab.answer() == {"began": True}
    lab.hosts.cut(3)
    found = lab.answer()
    assert found["error"] in ("WorkerLost", "DeadlineExceeded")
    assert "/job:worker/task:2" in found["text"]
    assert found["took_s"] < 15
    again = lab.ask(do="move alone", nbytes=4_000_000, source=0, destination=1)
    assert again["value"] == [7.0, 7.0]
    lab.hosts.heal(3)
    again = lab.ask(do="move alone", nbytes=4_000_000, source=0, destination=2)
    assert again["value"] == [7.0, 7.0]


@pytest.mark.parametrize("impaired", [False, True], ids=["a good network", "delay and loss"])
def test_training_on_three_hosts_is_that_of_one_process(trainers: Lab, impaired: bool) -> None:
    if impaired:
        trainers.hosts.impair(3, delay_ms=5, loss=0.01)
    found = trainers.ask(do="train", steps=12)
    assert found.pop("status") == "done"
    alone = trainers.ask(do="train alone", steps=12)
    np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-5)
    np.testing.assert_allclose(found["weights"], alone["weights"], rtol=1e-4, atol=1e-6)
    assert found["loss of all"] < found["losses"][0]
    assert trainers.ask(do="endpoints") == {"curve": 3, "hosts": 3}
    assert found["via"] == ["tcp"]


def test_a_ps_whose_link_was_cut_has_kept_what_was_learned(trainers: Lab) -> None:
    before = trainers.ask(do="train", steps=10)
    trainers.hosts.cut(3)
    lost = trainers.ask(do="weights", devices=0)
    assert lost["error"] in ("WorkerLost", "DeadlineExceeded"), lost
    assert "/job:ps/task:0" in lost["text"]
    trainers.hosts.heal(3)
    assert trainers.ask(do="weights", devices=3) == {"weights": before["weights"]}
    after = trainers.ask(do="train", steps=10)
    assert after["status"] == "done"
    assert after["loss of all"] < before["loss of all"]
