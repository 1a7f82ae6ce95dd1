"""A link that a test can cut: a TCP proxy on loopback."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Forwards its `address` to `target` (HOST:PORT). `cut` breaks what is open and refuses what comes; `freeze` lets
    nothing through in either direction, and nobody hears of it; `heal` ends both; after `thaw` it all comes late."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._passes = threading.Event()
        self._passes.set()
        self._is_cut = self._closed = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> None:
        self._is_cut = True
        self._break()

    def freeze(self) -> None:
        self._passes.clear()

    def thaw(self) -> None:
        """What was frozen goes on."""
        self._passes.set()

    def heal(self) -> None:
        """What was frozen breaks: after a long silence no network remembers its connections."""
        self._break()
        self._is_cut = False
        self._passes.set()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):  # wakes `accept`
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._break()
        self._passes.set()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _break(self) -> None:
        with self._lock:
            broken, self._open = self._open, set()
        for end in broken:
            with contextlib.suppress(OSError):  # the other side may have closed it
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target, timeout=5.0)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=pair, name="proxy", daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._passes.wait(60.0)
                sink.sendall(data)
        except OSError:
            pass  # broken by us or by either end: both ends are closed below
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._open -= {source, sink}
            source.close()
