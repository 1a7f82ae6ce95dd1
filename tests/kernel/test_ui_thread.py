"""Clicks while a cell is busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.kernel.conftest import Answer, Frontend, is_progress

pytestmark = pytest.mark.kernel

# A comm whose handler sets a flag, and a cell that only ends when the flag is set, or after a minute.
OPEN = """
import threading
from comm import create_comm
clicked = threading.Event()
seen = []
other = create_comm(target_name='someone.else')
mine = create_comm(target_name='nbflow.test')
mine.on_msg(lambda message: (seen.append(threading.current_thread().name), clicked.set()))
get_ipython().kernel.ui_thread.register(mine.comm_id)
print(mine.comm_id)
"""
BUSY = "print('busy', flush=True); print('clicked' if clicked.wait(50) else 'not clicked')"


def is_busy(message: dict[str, Any]) -> bool:
    return message["msg_type"] == "stream" and "busy" in message["content"]["text"]


def click_while_busy(kernel: Frontend, comm_id: str) -> Answer:
    request = kernel.start(BUSY)
    kernel.finish(request, until=is_busy)
    kernel.send_comm(comm_id, {"type": "click"})
    return kernel.finish(request)


def test_a_click_is_handled_while_the_cell_is_busy(kernel: Frontend) -> None:
    comm_id = kernel.run(OPEN).text.strip()
    assert click_while_busy(kernel, comm_id).text.strip().endswith("clicked")
    assert "not clicked" not in kernel.run("print(seen)").text
    assert "nbflow-ui" in kernel.run("print(seen)").text


def test_a_handler_that_raises_harms_nothing(kernel: Frontend) -> None:
    comm_id = kernel.run(OPEN).text.strip()
    kernel.run("mine.on_msg(lambda message: (clicked.set(), 1 / 0))")
    assert click_while_busy(kernel, comm_id).text.strip().endswith("clicked")
    kernel.run("clicked.clear(); mine.on_msg(lambda message: clicked.set())")
    assert click_while_busy(kernel, comm_id).text.strip().endswith("clicked")


def test_other_comms_take_the_old_way(kernel: Frontend) -> None:
    kernel.run(OPEN)
    other = kernel.run("print(other.comm_id)").text.strip()
    kernel.run("where = []; other.on_msg(lambda message: where.append(threading.current_thread().name))")
    kernel.send_comm(other, {})
    assert "MainThread" in kernel.run("print(where)").text


def test_our_widgets_need_no_registration(kernel: Frontend) -> None:
    made = kernel.run(
        "import threading\nclicked = threading.Event()\n"
        "from nbflow_widgets import CurvesView\nview = CurvesView('curves')\n"
        "view.on_stop(clicked.set)\nprint(view.comm.comm_id)"
    )
    assert not made.error, made.text
    request = kernel.start(BUSY)
    kernel.finish(request, until=is_busy)
    kernel.send_comm(made.text.strip().splitlines()[-1], {"method": "custom", "content": {"type": "stop"}})
    assert kernel.finish(request).text.strip().endswith("clicked")


def test_stop_ends_a_busy_training(kernel: Frontend) -> None:
    kernel.run(
        "import numpy as np, nbflow as nf\nw = nf.Variable(np.ones(3, 'float32'), name='w')\n"
        "step = nf.optim.SGD(0.0).minimize(nf.sum(w * w))"
    )
    request = kernel.start("run = nf.train.run(step, steps=10_000_000, metrics={'w': nf.sum(w)}, every=100)")
    seen: list[dict[str, Any]] = []

    def running(message: dict[str, Any]) -> bool:
        seen.append(message)
        return is_progress(message)

    assert not kernel.finish(request, until=running).reply
    widget = "application/vnd.jupyter.widget-view+json"
    (model,) = [m["content"]["data"][widget]["model_id"] for m in seen if widget in m["content"].get("data", {})]
    kernel.send_comm(model, {"method": "custom", "content": {"type": "stop"}})
    answer = kernel.finish(request)
    assert not answer.error, answer.text
    assert "stopped after" in answer.text
    pictures = [m for m in answer.messages if "image/png" in m["content"].get("data", {})]
    assert pictures[-1]["msg_type"] == "update_display_data"
    assert "stopped" in kernel.run("print(run.status)").text


def test_the_stock_kernel_waits_and_works(frontend: Callable[[str], Frontend]) -> None:
    stock = frontend("python3")
    stock.run("%load_ext nbflow")
    stock.run("where = []\nfrom comm import create_comm\nc = create_comm(target_name='t')\nc.on_msg(where.append)")
    stock.send_comm(stock.run("print(c.comm_id)").text.strip(), {})
    assert stock.run("print(len(where))").text.strip() == "1"
