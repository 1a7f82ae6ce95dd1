"""How an error of nbflow's reads."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from nbflow.errors import GraphError, NbflowError, OpError, WorkerLost
from nbflow_kernel import tracebacks
from nbflow_kernel.tracebacks import Line


def plain(error: NbflowError, raised: Line | None = None) -> list[str]:
    lines = tracebacks.describe(error, raised, lambda where: "h = x @ w" if where == "In[3], line 2" else "")
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]


def test_an_op_that_failed() -> None:
    error = OpError(
        "it broke", where="In[3], line 2", op="hidden/matmul", device="/job:worker/task:1/cpu:0", worker="w"
    )
    error.__cause__ = ValueError("shapes")
    assert plain(error, Line("In[7], line 1", "run = nf.train.run(step)")) == [
        "OpError: it broke",
        "  op        hidden/matmul",
        "  on        /job:worker/task:1/cpu:0",
        "  made by   In[3], line 2   h = x @ w",
        "  raised at In[7], line 1   run = nf.train.run(step)",
        "  because   ValueError: shapes",
        "  %tb shows the full traceback",
    ]


def test_raised_where_it_was_made() -> None:
    lines = plain(GraphError("no", where="In[3], line 2"), Line("In[3], line 2", "h = x @ w"))
    assert lines == ["GraphError: no", "  made by   In[3], line 2   h = x @ w", "  %tb shows the full traceback"]


def test_a_worker() -> None:
    lines = plain(WorkerLost("gone", worker="/job:worker/task:1"))
    assert lines[1] == "  on        /job:worker/task:1"


def test_the_users_line_is_the_deepest_that_is_theirs() -> None:
    def users() -> None:
        json.loads("{")

    try:
        users()
    except ValueError as error:
        found = tracebacks.user_line(error.__traceback__, lambda path: "In[4]" if path == __file__ else "")
    assert found is not None
    assert re.fullmatch(r"In\[4\], line \d+", found.where)
    assert found.text == 'json.loads("{")'


@dataclass(frozen=True)
class Answer:
    task: str
    error: str = ""


def test_who_cancelled() -> None:
    assert tracebacks.cancelled([Answer("/job:worker/task:0"), Answer("/job:ps/task:0"), Answer("x", "no word")]) == [
        "cancelled on /job:worker/task:0, /job:ps/task:0",
        "not confirmed by x: no word",
    ]
    assert tracebacks.cancelled([]) == []
