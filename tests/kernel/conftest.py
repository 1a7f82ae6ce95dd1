"""Real kernels, driven as a front end does."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from nbflow_kernel.progress import PROGRESS_KEY

DEADLINE_S = 60.0


@dataclass
class Answer:
    """What one execution sent back."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Streams and plain-text results, in order."""
        parts = []
        for message in self.messages:
            content = message["content"]
            if message["msg_type"] == "stream":
                parts.append(content["text"])
            elif message["msg_type"] in ("execute_result", "display_data", "update_display_data"):
                parts.append(content["data"].get("text/plain", "") + "\n")
            elif message["msg_type"] == "error":
                parts.append("\n".join(content["traceback"]) + "\n")
        return "".join(parts)

    @property
    def error(self) -> str:
        return str(self.reply.get("ename", ""))


class Frontend:
    """One kernel. `run` executes a cell and waits for its end; `start` only sends it."""

    def __init__(self, name: str) -> None:
        self.manager, self.client = start_new_kernel(kernel_name=name, startup_timeout=DEADLINE_S)

    def start(self, code: str, cell_id: str | None = None, *, deleted: Sequence[str] = (), stdin: bool = True) -> str:
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": stdin,
            "stop_on_error": True,
        }
        metadata: dict[str, Any] = {"deletedCells": list(deleted)}
        if cell_id is not None:
            metadata["cellId"] = cell_id
        message = self.client.session.msg("execute_request", content, metadata=metadata)
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def run(self, code: str, cell_id: str | None = None, **options: Any) -> Answer:
        return self.finish(self.start(code, cell_id, **options))

    def finish(self, request: str, until: Callable[[dict[str, Any]], bool] | None = None) -> Answer:
        """Gathers what `request` sends until it is idle, or until `until(message)`."""
        answer = Answer()
        for message in self.iopub():
            if message["parent_header"].get("msg_id") != request:
                continue
            answer.messages.append(message)
            if until is not None and until(message):
                return answer
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
        answer.reply = self.reply(request)
        return answer

    def iopub(self) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                yield self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no message from the kernel within {DEADLINE_S} s") from None

    def reply(self, request: str) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            message = self.client.get_shell_msg(timeout=max(0.1, deadline - time.monotonic()))
            if message["parent_header"].get("msg_id") == request:
                content: dict[str, Any] = message["content"]
                return content

    def send_comm(self, comm_id: str, data: dict[str, Any]) -> None:
        message = self.client.session.msg("comm_msg", {"comm_id": comm_id, "data": data})
        self.client.shell_channel.send(message)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


def is_progress(message: dict[str, Any]) -> bool:
    """Whether a training run says that it has made steps."""
    content = message["content"]
    return PROGRESS_KEY in (content.get("transient") or {}) and "steps/s" in content["data"]["text/plain"]


@pytest.fixture
def frontend() -> Iterator[Callable[[str], Frontend]]:
    """Starts kernels by name, and ends them."""
    started: list[Frontend] = []

    def start(name: str) -> Frontend:
        started.append(Frontend(name))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def kernel(frontend: Callable[[str], Frontend]) -> Frontend:
    return frontend("nbflow")
