"""A thousand steps that are cancelled at any moment leave nothing: no memory, segments, descriptors or threads."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pytest

import nbflow as nf
import nbflow_workers
from nbflow.errors import Cancelled
from nbflow.rewrite import feed_name
from nbflow.session import Session
from nbflow.spec import spec_of
from nbflow_workers import Cluster
from nbflow_workers.launchers.local import LocalLauncher

pytestmark = pytest.mark.cluster

STEPS = 1000
WARM_STEPS = 150
# A step moves about 4 MB: if the tensors of one in a hundred stayed, it would be seen. What allocators keep, and the
# names of steps that are remembered, are less. A pool may have to grow once more; each mapping holds a descriptor.
SLACK_BYTES = 32 * 2**20
SLACK_THREADS = 3
SLACK_DESCRIPTORS = 6
SLACK_SEGMENTS = 4
SETTLES_WITHIN_S = 10.0


@dataclass(frozen=True)
class Level:
    """What one process holds."""

    nbytes: int
    threads: int
    descriptors: int
    segments: int

    @staticmethod
    def of(pid: int) -> Level:
        process = psutil.Process(pid)
        with open(f"/proc/{pid}/maps") as maps:
            segments = sum("memfd:nbflow" in line or "/dev/shm/nbflow" in line for line in maps)
        return Level(process.memory_info().rss, process.num_threads(), process.num_fds(), segments)

    def above(self, other: Level) -> dict[str, int]:
        """By how much this is more than `other`, beyond the slack."""
        more = {
            "bytes": self.nbytes - other.nbytes - SLACK_BYTES,
            "threads": self.threads - other.threads - SLACK_THREADS,
            "descriptors": self.descriptors - other.descriptors - SLACK_DESCRIPTORS,
            "segments": self.segments - other.segments - SLACK_SEGMENTS,
        }
        return {what: number for what, number in more.items() if number > 0}


def named_segments(cluster: Cluster) -> int:
    """Files in /dev/shm that these workers made."""
    prefixes = tuple(f"nbflow-{r.incarnation[:16]}" for r in cluster.workers())
    return sum(name.startswith(prefixes) for name in os.listdir("/dev/shm"))


class Exchange:
    """Two workers that send each other tensors of several sizes, there and back."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        graph = nf.Graph()
        with graph.as_default():
            self.x = nf.placeholder("float32", [None], name="x")
            ends = []
            for scale in (1, 1_000, 20_000):  # elements: inline, inline, a segment or chunks
                value = nf.tile(self.x, (scale,))
                for turn in range(6):
                    with nf.device(f"/job:worker/task:{turn % 2}"):
                        value = value + 1.0
                ends.append(nf.sum(value) / float(scale))
            (self.loop,) = nf.while_loop(lambda n: n < 20, lambda n: (self._round(n),), (nf.constant(0),))
            self.ends = ends
        self.session = Session(cluster, graph)

    @staticmethod
    def _round(n: Any) -> Any:
        with nf.device("/job:worker/task:0"):
            there = n + 1
        with nf.device("/job:worker/task:1"):
            return there * 1

    def check(self) -> None:
        found = self.session.run([*self.ends, self.loop], {self.x: np.ones(10, np.float32)})
        assert [float(f) for f in found] == [70.0, 70.0, 70.0, 20.0]

    def pids(self) -> list[int]:
        return [os.getpid(), *(r.pid for r in self.cluster.workers() if r.pid is not None)]

    def levels(self) -> dict[int, Level]:
        return {pid: Level.of(pid) for pid in self.pids()}

    def cancelled(self, steps: int, seed: int) -> Counter[str]:
        """Cancels steps, each at a moment of its own while it runs; how they ended."""
        draws, ended = random.Random(seed), Counter[str]()
        feed = np.ones(10, np.float32)
        prepared = self.session.prepare([*self.ends, self.loop], {self.x: spec_of(feed)})
        name = feed_name(self.x)
        feeds = {prepared.feed_tasks[name]: {name: feed}}
        start = time.monotonic()
        for _ in range(5):
            self.check()
        takes_s = (time.monotonic() - start) / 5
        for number in range(steps):
            pending = self.session._driver.start(prepared.bundle_ids, number, feeds)
            time.sleep(draws.uniform(0.0, takes_s))  # the moment is what is tried, and nothing waits for it
            acknowledged = pending.cancel("a moment at random")
            assert not any(a.error for a in acknowledged), acknowledged
            for future in pending.futures.values():
                error = future.exception(SETTLES_WITHIN_S)
                assert error is None or isinstance(error, Cancelled), error
                ended["done" if error is None else "cancelled"] += 1
        return ended


@pytest.mark.parametrize("flags", [(), ("--no-shm",)], ids=["shared memory", "tcp"])
def test_a_thousand_cancelled_steps_leave_nothing(flags: tuple[str, ...]) -> None:
    with nbflow_workers.local(workers=2, launcher=LocalLauncher(flags=flags)) as cluster:
        exchange = Exchange(cluster)
        exchange.check()
        exchange.cancelled(WARM_STEPS, seed=1)
        exchange.check()
        before, named = exchange.levels(), named_segments(cluster)
        ended = exchange.cancelled(STEPS, seed=2)
        assert ended["cancelled"] > STEPS / 4, f"too few were cancelled to show anything: {ended}"
        exchange.check()
        end = time.monotonic() + SETTLES_WITHIN_S
        while True:
            after = exchange.levels()
            more = {pid: found for pid, level in after.items() if (found := level.above(before[pid]))}
            if not more or time.monotonic() > end:
                break
            time.sleep(0.1)
        assert not more, (more, before, after)
        assert named_segments(cluster) <= named
        exchange.check()
        exchange.session.close()
