"""What steps and tensors cost the cores of this host, for a simulation of processes that share them.

All by CPU seconds of the processes, which others on the machine change little, on steps of their own: none of them is
one that is predicted from them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import nbflow as nf
from nbflow import simulate as sim

TASKS = [f"/job:worker/task:{n}" for n in range(8)]
SMALL, LARGE = 2000, 400_000  # numbers of 4 bytes
TENSORS, HOPS = 50, 20
STEPS = 10  # a window


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process so far (`clock_getcpuclockid(3)`)."""
    return time.clock_gettime((~pid << 3) | 2)


class Used:
    """A step on a cluster: windows of it, with the wall and CPU seconds of each."""

    def __init__(self, cluster: Any, step: nf.Node) -> None:
        self._pids = [os.getpid(), *(r.pid for r in cluster.workers())]
        self._session = nf.Session(cluster, step.graph)
        self._step = step
        self.walls: list[float] = []
        self._cpu: list[list[float]] = []
        self._session.run(step)

    def window(self) -> None:
        self._session.run(self._step)
        before = [cpu_s(p) for p in self._pids]
        walls = []
        for _ in range(STEPS):
            start = time.perf_counter()
            self._session.run(self._step)
            walls.append(time.perf_counter() - start)
        self._cpu.append([(cpu_s(p) - b) / STEPS for p, b in zip(self._pids, before, strict=True)])
        self.walls.append(statistics.median(walls))

    @property
    def wall_s(self) -> float:
        return statistics.median(self.walls)

    def process_s(self, number: int) -> float:
        """Of the driver (0), or of a worker from 1."""
        return statistics.median(window[number] for window in self._cpu)

    def close(self) -> None:
        self._session.close()


def nothing(tasks: int) -> nf.Node:
    """An op that costs nothing on each of so many tasks."""
    with nf.Graph().as_default():
        made = []
        for device in TASKS[:tasks]:
            with nf.device(device):
                made.append(nf.random.uniform(()))
        return nf.group(*made)


def moves(count: int, size: int) -> nf.Node:
    """`count` tensors from a worker to another, which looks at one number of each."""
    with nf.Graph().as_default():
        with nf.device(TASKS[0]):
            made = [nf.Variable(nf.zeros((size,)), name=f"v{n}").read() for n in range(count)]
        with nf.device(TASKS[1]):
            return nf.group(*[nf.negative(m[:1]) for m in made])


def hops(count: int) -> nf.Node:
    """A scalar that goes from one worker to another so many times."""
    with nf.Graph().as_default():
        with nf.device(TASKS[0]):
            value = nf.random.uniform((SMALL,))
        for number in range(count):
            with nf.device(TASKS[(number + 1) % 2]):
                value = nf.negative(value)
        return nf.group(value)


def host_costs(windows: int) -> tuple[sim.Control, sim.Messages, float]:
    """What a step and a tensor cost, and the seconds for which a tensor is on its way beyond that."""
    with nf.cluster.local(workers=8) as cluster:
        steps = {
            "one": nothing(1),
            "eight": nothing(8),
            "few": moves(1, SMALL),
            "many": moves(1 + TENSORS, SMALL),
            "large": moves(1 + TENSORS, LARGE),
            "near": hops(2),
            "far": hops(2 + HOPS),
        }
        found = {name: Used(cluster, step) for name, step in steps.items()}
        for _ in range(windows):
            for used in found.values():
                used.window()
        one, eight, few, many = (found[n] for n in ("one", "eight", "few", "many"))
        driver_s = max(0.0, (eight.process_s(0) - one.process_s(0)) / 7)
        task_s = statistics.mean(eight.process_s(n) for n in range(1, 9))
        send_s, take_s = (max(0.0, (many.process_s(n) - few.process_s(n)) / TENSORS) for n in (1, 2))
        copy_s = max(1e-9, (found["large"].process_s(1) - many.process_s(1)) / TENSORS)
        step_s = max(0.0, one.process_s(0) - driver_s)
        message_s = max(0.0, one.wall_s - one.process_s(0) - one.process_s(1)) / 2
        way_s = max(0.0, (found["far"].wall_s - found["near"].wall_s) / HOPS - send_s - take_s)
        for used in found.values():
            used.close()
    control = sim.Control(driver_s / 2, driver_s / 2, message_s, ahead=1, task_s=task_s, step_s=step_s)
    return control, sim.Messages(send_s, take_s, 4 * (LARGE - SMALL) / copy_s), way_s


def idle_cores(clusters: Sequence[Any], seconds: float) -> float:
    """Cores that this process and the workers use while nothing is run: heartbeats."""
    pids = [os.getpid(), *(r.pid for cluster in clusters for r in cluster.workers())]
    before, start = sum(map(cpu_s, pids)), time.perf_counter()
    time.sleep(seconds)
    return (sum(map(cpu_s, pids)) - before) / (time.perf_counter() - start)
