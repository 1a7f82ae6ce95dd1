"""Sides in processes of their own, which take turns: two libraries in one process fight over the cores with threads
that spin while they wait, and the loser would look slower than it is.

A benchmark starts itself with `--serve NAME`; that process answers each line `KIND STEPS` of its input with a line of
JSON, until its input ends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import common

DEADLINE_S = 120.0

# Kind -> a function of how many steps to run; what it returns goes back as JSON.
Answers = Mapping[str, Callable[[int], Any]]


def serve(answers: Answers) -> None:
    """The side's part."""
    _tell("ready")
    for line in sys.stdin:
        kind, steps = line.split()
        _tell(answers[kind](int(steps)))


def options(
    parser: argparse.ArgumentParser, names: Sequence[str], answers_of: Callable[[str, ExitStack], Answers]
) -> argparse.Namespace | None:
    """What a benchmark was asked; None in a process that was a side of it, whose part is over."""
    parser.add_argument("--serve", metavar="SIDE", choices=names, help="used by the benchmark itself")
    found = parser.parse_args()
    if not found.serve:
        return found
    with ExitStack() as stack:
        serve(answers_of(found.serve, stack))
    return None


def _tell(value: Any) -> None:
    print(json.dumps(value), flush=True)


class Case:
    """The benchmark's part: a side's process."""

    def __init__(self, file: str, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, file, "--serve", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> Any:
        """Raises RuntimeError when the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait(DEADLINE_S)}")
        return json.loads(line)

    def ask(self, kind: str, steps: int) -> Any:
        assert self.process.stdin is not None
        print(kind, steps, file=self.process.stdin, flush=True)
        return self.answer()

    def steps(self, kind: str) -> common.Steps:
        return lambda k: self.ask(kind, k)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(DEADLINE_S)


@contextmanager
def opened(file: str, names: Sequence[str]) -> Iterator[dict[str, Case]]:
    """A process a name, all ready."""
    with ExitStack() as stack:
        cases = {}
        for name in names:  # one after the other: starting is work too
            cases[name] = stack.enter_context(closing(Case(file, name)))
            cases[name].answer()
        yield cases


def has_torch() -> bool:
    try:
        import torch  # noqa: F401  # optional: pip install "nbflow[bench]"
    except ImportError:
        return False
    return True
