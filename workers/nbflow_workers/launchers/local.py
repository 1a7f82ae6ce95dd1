"""Workers as processes of this machine, listening on loopback.

Started anew with their own interpreter, never forked: gRPC and BLAS do not survive a fork. The token travels in the
environment. Standard input is a pipe whose end tells a worker that its launcher is gone.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nbflow.errors import WorkerError
from nbflow.saving import ANYWHERE
from nbflow_workers.dataplane import shm
from nbflow_workers.launchers.base import Ask, Handle, Progress
from nbflow_workers.security import TOKEN_VARIABLE, Token
from nbflow_workers.worker import ready_from

# After its launcher is gone a worker keeps its state this long, for a kernel that was restarted to come back.
ORPHAN_S = 20.0
# Workers share this machine's cores. BLAS threads beyond them spin while they wait for each other: with three workers
# on two cores a training step took ten times as long.
_BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class LocalWorker:
    """Implements `Handle` for a child process."""

    def __init__(self, ask: Ask, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self._ask = ask
        self._process = process
        self._log_path = log_path
        self._address = ""
        self._incarnation = ""

    @property
    def ask(self) -> Ask:
        return self._ask

    @property
    def address(self) -> str:
        return self._address

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def stdout_fd(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def ready(self, said: Mapping[str, str]) -> None:
        """Takes what the READY line says. Nothing else is read from its standard output."""
        self._address, self._incarnation = said["address"], said["incarnation"]
        assert self._process.stdout is not None
        self._process.stdout.close()

    def exit_text(self) -> str:
        code = self._process.poll()
        if code is None:
            return ""
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"

    def wait(self, timeout_s: float) -> None:
        """Waits for it to end, up to `timeout_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def logs(self, lines: int = 50) -> str:
        try:
            text = self._log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def detach(self) -> None:
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                stdin.write(b"detach\n")
                stdin.flush()
            self._close_pipes()
        # It is not ours any more: `Popen` would warn that it still runs.
        self._process.returncode = self._process.poll() or 0

    def stop(self, timeout_s: float = 5.0) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout_s)
        self._close_pipes()
        # A killed worker could not unlink segments that nobody had opened yet.
        if self._incarnation:
            shm.remove_leftovers(shm.prefix_of(self._incarnation))
        self._log_path.unlink(missing_ok=True)

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class LocalLauncher:
    """Implements `Launcher`. `environment` adds to the workers' environment, `flags` to those of `nbflow worker`.

    When this process is gone a worker ends after `orphan_s`; with `outlive`, after that without a session (see
    `worker.Options`).
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
        orphan_s: float = ORPHAN_S,
        outlive: bool = False,
    ) -> None:
        self._environment = dict(environment or {})
        self._flags = (*(("--outlive",) if outlive else ()), *flags)
        self._orphan_s = orphan_s

    def start(
        self, asks: Sequence[Ask], token: Token, *, timeout_s: float, progress: Progress | None = None
    ) -> list[Handle]:
        say = progress or (lambda _text: None)
        started: list[LocalWorker] = []
        try:
            for ask in asks:
                say(f"starting {ask.task_name}")
                started.append(self._spawn(ask, token, blas_threads=max(1, (os.cpu_count() or 1) // len(asks))))
            _wait_ready(started, time.monotonic() + timeout_s, say)
        except BaseException:
            for worker in started:
                worker.stop(1.0)
            raise
        return list(started)

    def _spawn(self, ask: Ask, token: Token, *, blas_threads: int) -> LocalWorker:
        descriptor, log_name = tempfile.mkstemp(prefix="nbflow-worker-", suffix=".log")
        command = [sys.executable, "-m", "nbflow_workers", "worker", "--listen", "127.0.0.1:0"]
        command += ["--job", ask.job, "--task", str(ask.task), "--devices", ask.devices]
        # It is the user's own process, on the user's machine: it may write where the user may.
        command += ["--checkpoints", str(ANYWHERE), "--orphan", str(self._orphan_s), *self._flags]
        environment = {**os.environ, TOKEN_VARIABLE: token.reveal(), **self._environment}
        for name in _BLAS_VARIABLES:
            environment.setdefault(name, str(blas_threads))
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=descriptor,
                env=environment,
                # Its own group: Ctrl-C in the terminal, and a kernel's interrupt, are not for it.
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        return LocalWorker(ask, process, Path(log_name))


def _wait_ready(workers: Sequence[LocalWorker], deadline: float, say: Progress) -> None:
    """Waits for the READY line of every worker. Raises WorkerError that shows what a failed one wrote."""
    with selectors.DefaultSelector() as selector:
        said: dict[int, bytes] = {}
        for worker in workers:
            selector.register(worker.stdout_fd, selectors.EVENT_READ, worker)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                waiting = ", ".join(key.data.ask.task_name for key in selector.get_map().values())
                raise WorkerError(f"not ready in time: {waiting}; raise timeout_s, or look at the machine's load")
            for key, _ in ready:
                _read_ready(key.data, said, selector, say)


def _read_ready(worker: LocalWorker, said: dict[int, bytes], selector: selectors.BaseSelector, say: Progress) -> None:
    descriptor = worker.stdout_fd
    data = os.read(descriptor, 65536)
    if not data:
        worker.wait(1.0)
        raise WorkerError(
            f"{worker.ask.task_name} did not start ({worker.exit_text() or 'its output ended'}):\n{worker.logs(20)}",
            worker=worker.ask.task_name,
        )
    text = said[descriptor] = said.get(descriptor, b"") + data
    for line in text.decode(errors="replace").splitlines(keepends=True):
        found = ready_from(line) if line.endswith("\n") else None
        if found is not None:
            selector.unregister(descriptor)
            worker.ready(found)
            say(f"{worker.ask.task_name} is ready (pid {worker.pid})")
            return
