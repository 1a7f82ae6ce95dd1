"""`nbflow doctor`: what works here and on the way to the workers, one line each."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import zmq

from nbflow.errors import NbflowError
from nbflow.explain import links_rows
from nbflow_workers import spec as spec_file
from nbflow_workers import worker
from nbflow_workers.attach import Found, Problem, ask
from nbflow_workers.cluster import attach
from nbflow_workers.dataplane import shm


@dataclass(frozen=True, slots=True)
class Line:
    """One finding."""

    ok: bool
    what: str
    found: str


def look_here() -> Iterator[Line]:
    """This machine."""
    for name, version in worker.versions().items():
        yield Line(True, name, version)
    yield Line(shm.available(), "shared memory", "/dev/shm" if shm.available() else "none: tensors take ZeroMQ")
    curve = bool(zmq.has("curve"))
    yield Line(curve, "encryption of tensors", "CURVE" if curve else "missing: install pyzmq from a wheel")
    for entry in importlib.metadata.entry_points(group="nbflow.backends"):
        try:
            entry.load()
            yield Line(True, f"backend {entry.name}", entry.value)
        except ImportError as error:
            yield Line(False, f"backend {entry.name}", str(error))


def look_there(spec: spec_file.Spec, *, timeout_s: float) -> Iterator[Line]:
    """Every worker of a cluster file: reachable, trusted, of this version, and how far away; and the links between
    those that are."""
    good: list[str] = []
    for entry in spec.workers:
        name = f"/job:{entry.job}/task:{entry.task} {entry.address}"
        found = ask(entry.address, spec.token, spec.ca, timeout_s=timeout_s)
        if isinstance(found, Problem):
            yield Line(False, name, f"{found.problem}; {found.advice}")
            continue
        yield Line(True, name, _describe(found, timeout_s))
        found.link.close()
        good.append(entry.address)
    if good:
        yield from _links(spec, good, timeout_s)


def _links(spec: spec_file.Spec, addresses: Sequence[str], timeout_s: float) -> Iterator[Line]:
    """What tensors take between those workers, and to here."""
    cluster = attach(addresses, token=spec.token, ca=spec.ca, timeout_s=timeout_s)
    try:
        tasks = sorted({d.spec.task_name for d in cluster.devices() if d.spec.type != "null"})
        for ends, text, how in links_rows(cluster.links(), tasks):
            yield Line(how == "measured", f"link {ends}", text if how == "measured" else "could not be measured")
    finally:
        cluster.detach()


def _describe(found: Found, timeout_s: float) -> str:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        found.link.describe(timeout_s=timeout_s)
        times.append(time.perf_counter() - start)
    devices = ", ".join(d.device.rsplit("/", 1)[-1] for d in found.reply.devices)
    tls = "TLS" if found.link.ca else "no TLS"
    return f"nbflow {found.reply.versions['nbflow']}, {devices}, {tls}, round trip {sorted(times)[2] * 1000:.1f} ms"


@click.command()
@click.option(
    "--spec", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A cluster file to check too."
)
@click.option("--timeout", "timeout_s", default=10.0, show_default=True, help="Seconds for each worker.")
def doctor(spec: Path | None, timeout_s: float) -> None:
    """Check this machine, and with --spec the way to every worker. Exits with 1 when something is wrong."""
    try:
        lines = list(look_here())
        if spec is not None:
            lines += look_there(spec_file.load(spec), timeout_s=timeout_s)
    except NbflowError as error:
        raise click.ClickException(str(error)) from None
    width = max(len(line.what) for line in lines)
    for line in lines:
        click.echo(f"{'ok  ' if line.ok else 'FAIL'}  {line.what:<{width}}  {line.found}")
    if not all(line.ok for line in lines):
        raise SystemExit(1)
