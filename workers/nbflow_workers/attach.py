"""Attaching to workers that already run: asks all at once, and collects everything that is wrong in one error."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from nbflow import wire
from nbflow.errors import NbflowError, Rejected, Unauthenticated, VersionMismatch, WorkerError, WorkerLost
from nbflow_workers import security
from nbflow_workers.channel import Link
from nbflow_workers.proto import worker_pb2 as pb
from nbflow_workers.security import Token

Item = TypeVar("Item")
Made = TypeVar("Made")

# A host that is there says within this time that nobody listens.
LOOK_TIMEOUT_S = 1.0
# Of the time given: each worker's own timeouts end before the whole does, and say more.
SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one worker cannot be attached: what is wrong, and what to do."""

    address: str
    problem: str
    advice: str
    error: type[NbflowError]


# Workers asked at once. With more, handshakes on a machine of few cores take each other's time until all are too late.
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Found:
    """A worker that answered."""

    link: Link
    reply: pb.DescribeReply


def ask_all(addresses: Sequence[str], token: Token, ca: bytes, *, timeout_s: float) -> list[Found]:
    """Asks every worker who it is. Raises one WorkerError with a line per worker that cannot be attached."""
    answers: SimpleQueue[tuple[int, Found | Problem]] = SimpleQueue()
    gate = threading.Semaphore(AT_ONCE)

    def put(number: int, address: str) -> None:
        with gate:
            answers.put((number, ask(address, token, ca, timeout_s=SHARE * timeout_s)))

    # A name server that does not answer cannot be interrupted: such a thread is left behind, as a daemon.
    for number, address in enumerate(addresses):
        name = f"nbflow-attach-{number}"
        threading.Thread(target=put, args=(number, address), name=name, daemon=True).start()
    deadline = time.monotonic() + timeout_s * math.ceil(len(addresses) / AT_ONCE)
    found: dict[int, Found | Problem] = {}
    while len(found) < len(addresses):
        try:
            number, answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            break
        found[number] = answer
    late = Problem("", f"no answer within {timeout_s:g} s", "check the name server and the firewall", WorkerLost)
    results = [found.get(n) or Problem(a, late.problem, late.advice, late.error) for n, a in enumerate(addresses)]
    good = [r for r in results if isinstance(r, Found)]
    problems = [r for r in results if isinstance(r, Problem)] + _twins(good)
    if problems:
        for result in good:
            result.link.close()
        raise _joined(problems, len(addresses))
    return good


def ask(address: str, token: Token, ca: bytes, *, timeout_s: float) -> Found | Problem:
    """One worker, or what is wrong with the way to it."""
    deadline = time.monotonic() + timeout_s
    try:
        host, port = security.split_address(address)
        socket.create_connection((host, port), timeout=timeout_s).close()
    except Rejected as error:
        return Problem(address, "not an address", error.message, Rejected)
    except socket.gaierror as error:
        return Problem(address, f"name not known ({error.strerror})", "check the spelling, or use an IP", WorkerLost)
    except ConnectionRefusedError:
        return Problem(address, "refused: nothing listens there", "start it: nbflow worker --listen …", WorkerLost)
    except TimeoutError:
        return Problem(address, f"no connection within {timeout_s:g} s", "check the host and its firewall", WorkerLost)
    except OSError as error:
        return Problem(address, f"not reachable ({error.strerror})", "check the network", WorkerLost)
    link = Link(address, token, ca=ca)
    try:
        return Found(link, link.describe(timeout_s=max(0.5, deadline - time.monotonic())))
    except NbflowError as error:
        link.close()
        return _explain(address, error, tls=bool(ca), timeout_s=timeout_s)


def _explain(address: str, error: NbflowError, *, tls: bool, timeout_s: float) -> Problem:
    if isinstance(error, Unauthenticated):
        return Problem(address, "wrong token", "give the worker's own, from its spec file", Unauthenticated)
    if isinstance(error, VersionMismatch):
        advice = f"install the same nbflow on both sides (here: wire version {wire.WIRE_VERSION})"
        return Problem(address, "other version", advice, VersionMismatch)
    text = error.message.lower()
    if isinstance(error, WorkerLost) and "deadline" not in text:
        advice = (
            "give the worker's own ca, from its spec file, or none if it speaks without TLS"
            if tls
            else "it speaks TLS, or not gRPC: give its ca, from its spec file"
        )
        return Problem(address, "TLS: the connection was made, but not understood", advice, WorkerError)
    if isinstance(error, WorkerLost):
        return Problem(
            address, f"no answer within {timeout_s:g} s", "it is frozen, or not an nbflow worker", WorkerLost
        )
    return Problem(address, error.message.splitlines()[0][:120], "look at the worker's log", type(error))


def may_be_there(address: str) -> bool:
    """False when the host says that nobody listens at `address`: its process has ended, and is not merely cut off."""
    try:
        socket.create_connection(security.split_address(address), timeout=LOOK_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def beside(do: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """`do` for all at once, a thread each; the first error is raised when all have ended. No pool: those take no work
    while the interpreter ends, which is when clusters are closed."""
    made: dict[int, Made] = {}
    errors: list[BaseException] = []

    def run(number: int, item: Item) -> None:
        try:
            made[number] = do(item)
        except BaseException as error:  # noqa: BLE001  # raised below, in the thread that asked
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair, name="nbflow-beside", daemon=True) for pair in enumerate(items)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [made[n] for n in range(len(items))]


def _twins(found: Sequence[Found]) -> list[Problem]:
    first: dict[str, str] = {}
    problems = []
    for item in found:
        task = f"/job:{item.reply.job}/task:{item.reply.task}"
        if task in first:
            advice = "start one of them with another --task"
            problems.append(Problem(item.link.address, f"is {task}, as {first[task]} is", advice, Rejected))
        first.setdefault(task, item.link.address)
    return problems


def _joined(problems: Sequence[Problem], total: int) -> WorkerError:
    rows = [("worker", "problem", "what to do"), *((p.address, p.problem, p.advice) for p in problems)]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    table = "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)
    kinds = {p.error for p in problems}
    kind = kinds.pop() if len(kinds) == 1 else WorkerError
    if not issubclass(kind, WorkerError):
        kind = WorkerError
    return kind(f"{len(problems)} of {total} workers cannot be attached:\n{table}")
