"""Clicks while a cell is busy: messages of chosen comms are handled on a thread of the kernel's own.

ipykernel hands a widget's messages to the thread that runs cells, where they wait for the cell's end. `UiThread` takes
those of registered comms out of the shell channel before that. Handlers run beside the cell: they may read locked
snapshots and set flags, and must not touch the user's names.

`peek` is pure; the thread is the shell around it. Where some ipykernel lacks a method, messages take the old way.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

# Widgets of these packages promise that their handlers are safe beside a busy cell.
SAFE_PACKAGES = ("nbflow_widgets",)


def peek(session: Any, frames: list[Any]) -> str | None:
    """The comm id of a `comm_msg` in `frames`, None for any other message. Leaves `frames` as they are.

    Raises ValueError for malformed or wrongly signed frames, KeyError for incomplete ones.
    """
    _, rest = session.feed_identities(frames, copy=False)
    # rest: signature, header, parent header, metadata, content, buffers
    if session.unpack(rest[1].bytes)["msg_type"] != "comm_msg":
        return None
    return str(session.unpack(rest[4].bytes)["comm_id"])


class UiThread:
    """Handles messages of registered comms, one after the other. `kernel` is an ipykernel `Kernel`."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._ids: set[str] = set()
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def register(self, comm_id: str) -> Callable[[], None]:
        """Handles messages to this comm beside the cells; returns the function that ends it."""
        with self._lock:
            self._ids.add(comm_id)

        def unregister() -> None:
            with self._lock:
                self._ids.discard(comm_id)

        return unregister

    def wants(self, comm_id: str) -> bool:
        """Whether this comm is registered, or belongs to a widget of ours."""
        with self._lock:
            if comm_id in self._ids:
                return True
        comm = self._kernel.comm_manager.comms.get(comm_id)
        callback = getattr(comm, "_msg_callback", None)
        owner = getattr(callback, "__self__", None)
        return type(owner).__module__.split(".")[0] in SAFE_PACKAGES

    def take(self, frames: list[Any]) -> bool:
        """Takes a raw message of the shell channel, and says whether it did. Never raises; called on the IO thread."""
        try:
            comm_id = peek(self._kernel.session, frames)
            if comm_id is None or not self.wants(comm_id):
                return False
        except Exception:  # noqa: BLE001  # whatever is odd about a message is for ipykernel to say
            return False
        self._start()
        self._queue.put(frames)
        return True

    def close(self) -> None:
        """Handles what is queued, then ends the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(timeout=5)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="nbflow-ui", daemon=True)
                self._thread.start()

    def _loop(self) -> None:
        while True:
            frames = self._queue.get()
            if frames is None:
                return
            try:
                self._handle(frames)
            except Exception:
                self._kernel.log.exception("a widget's message failed")

    def _handle(self, frames: list[Any]) -> None:
        kernel = self._kernel
        identities, rest = kernel.session.feed_identities(frames, copy=False)
        message = kernel.session.deserialize(rest, content=True, copy=False)
        self._status("busy", message)
        try:
            comm = kernel.comm_manager.comms.get(message["content"]["comm_id"])
            callback = getattr(comm, "_msg_callback", None)
            if callback is not None:
                # Not `comm.handle_msg`: it fires `post_execute`, and matplotlib would draw half a figure there.
                callback(message)
            else:
                kernel.comm_manager.comm_msg(None, identities, message)
        finally:
            # ipywidgets sends its next change only after this.
            self._status("idle", message)

    def _status(self, state: str, parent: Any) -> None:
        kernel = self._kernel
        kernel.session.send(
            kernel.iopub_socket, "status", {"execution_state": state}, parent=parent, ident=kernel._topic("status")
        )
