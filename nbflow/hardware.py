"""What this machine computes with, in words that tell two kinds of machine apart: times measured on one of them do not
hold for the other."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass

# What limits the threads of BLAS, whichever it is.
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Cpu:
    """`cores`: that this process may use. `threads`: of them that one op uses at most."""

    name: str
    cores: int
    threads: int

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} of {self.cores} cores"


@functools.cache
def this_cpu() -> Cpu:
    """The CPU of this process, as it was when somebody first asked."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = [int(t) for t in (os.environ.get(n, "") for n in THREAD_VARIABLES) if t.isdecimal() and int(t)]
    return Cpu(_name(), cores, min([cores, *asked[:1]]))


def _name() -> str:
    """The model's name, with its numbers: virtual machines often hide the name and leave the numbers."""
    said: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if not value:
                    break  # the first core says it all
                said[key.strip()] = value.strip()
    except OSError:
        pass  # not Linux: the platform's word is all there is
    name = said.get("model name") or platform.processor() or platform.machine()
    numbers = [said[k] for k in ("cpu family", "model", "stepping") if said.get(k, "").isdecimal()]
    return f"{name} ({'.'.join(numbers)})" if numbers else name
