"""The verbs of `%cluster` as functions: `up`, `attach`, `use`, `scale`, `ps`, `devices`, `logs`, `save`, and so on.

A notebook's clusters have names. One of them is current: `nf.run` uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nbflow import cluster as doors
from nbflow.current import get_cluster, set_cluster
from nbflow.errors import Rejected, WorkerError
from nbflow.explain import links_rows
from nbflow_kernel.table import Table

Say = Callable[[str], None]
# Of a large cluster not every pair is listed.
LISTED_LINKS = 30
_GONE = ("left", "lost")


@dataclass(slots=True)
class Clusters:
    """The clusters of this process, by name. `say` gets a line for each thing that happens."""

    known: dict[str, Any]

    def current(self) -> Any:
        """The cluster that `nf.run` uses. Raises WorkerError when that is this process alone."""
        cluster = get_cluster()
        if cluster is None:
            raise WorkerError("no cluster: everything runs in this process; `%cluster up local -w 2` starts workers")
        return cluster

    def engines(self) -> tuple[str, ...]:
        return tuple(sorted(e.name for e in entry_points(group="nbflow.launchers")))

    def up(
        self,
        engine: str = "local",
        workers: int = 2,
        ps: int = 0,
        *,
        gpus: int = 0,
        name: str = "",
        timeout_s: float = 60.0,
        say: Say = print,
    ) -> Any:
        """Starts a cluster and makes it the current one; returns it.

        One of that name that runs already is used again, with workers started or ended until there are `workers`.
        Another number of ps tasks means starting anew. Raises WorkerError when a worker does not start.
        """
        if engine not in self.engines():
            raise Rejected(f"no launcher is called {engine!r}; installed: {', '.join(self.engines())}")
        name = name or engine
        found = self.known.get(name)
        if found is not None and self._reuse(found, workers, ps, timeout_s, say):
            return self.use(name, say=say)
        if found is not None:
            self.down(found, say=say)
        options = {"name": name, "timeout_s": timeout_s, "gpus": gpus}
        if engine != "local":
            options["launcher"] = next(iter(entry_points(group="nbflow.launchers", name=engine))).load()()
        self.known[name] = doors.local(workers, ps, progress=lambda text: say(_plain(text)), **options)
        say(f"cluster {name!r}: {_counted(self.known[name])}; nf.run uses it")
        return self.use(name, say=say)

    def _reuse(self, cluster: Any, workers: int, ps: int, timeout_s: float, say: Say) -> bool:
        alive = [r for r in cluster.workers() if r.state not in _GONE]
        have = {job: sum(r.job == job for r in alive) for job in ("worker", "ps")}
        if not alive or have["ps"] != ps:
            if alive:
                say(f"cluster {cluster.name!r} has {have['ps']} ps, not {ps}: starting anew")
            return False
        lost = [r.task_name for r in cluster.workers() if r.state == "lost"]
        if have["worker"] == workers and not lost:
            say(f"reusing cluster {cluster.name!r}: {_counted(cluster)}")
            return True
        if lost:
            say(f"{', '.join(lost)} lost: starting anew")
        say(f"cluster {cluster.name!r}: from {have['worker']} to {workers} workers")
        cluster.scale(workers, timeout_s=timeout_s, progress=lambda text: say(_plain(text)))
        return True

    def attach(
        self,
        addresses: Sequence[str] = (),
        *,
        spec: str | Path | None = None,
        token: str | None = None,
        ca: str | Path | None = None,
        name: str = "",
        timeout_s: float = 10.0,
        say: Say = print,
    ) -> Any:
        """Attaches to workers that run, and makes them the current cluster; returns it.

        Raises WorkerError with a line for each worker that is not there, refuses the token, or is of another version.
        """
        for cluster in self.known.values():
            alive = {r.address for r in cluster.workers() if r.state not in _GONE}
            if addresses and alive == set(addresses):
                say(f"reusing cluster {cluster.name!r}: {_counted(cluster)}")
                return self.use(cluster.name, say=say)
        where = ", ".join(addresses) or f"the workers of {spec}"
        say(f"asking {where} (up to {timeout_s:g} s)")
        path = Path(ca) if ca is not None else None
        options = {"spec": spec, "token": token, "ca": path, "name": name or None, "timeout_s": timeout_s}
        cluster = doors.attach(list(addresses) or None, **options)
        before = self.known.get(cluster.name)
        if before is not None:
            self.detach(before, say=say)
        self.known[cluster.name] = cluster
        say(f"cluster {cluster.name!r}: {_counted(cluster)}; nf.run uses it")
        return self.use(cluster.name, say=say)

    def use(self, name: str, *, say: Say = print) -> Any:
        """Makes a known cluster the current one."""
        if name not in self.known:
            raise Rejected(f"no cluster is called {name!r}; known: {', '.join(self.known) or 'none'}")
        _tell_left_behind(set_cluster(self.known[name]), say)
        return self.known[name]

    def scale(self, workers: int, *, say: Say = print) -> Any:
        """Starts or ends workers of the current cluster until there are `workers`."""
        cluster = self.current()
        cluster.scale(workers, progress=lambda text: say(_plain(text)))
        say(f"cluster {cluster.name!r}: {_counted(cluster)}")
        return cluster

    def detach(self, cluster: Any = None, *, say: Say = print) -> None:
        """Leaves the workers alive and forgets them."""
        found = self._release(cluster, say)
        found.detach()
        say(f"detached from {found.name!r}; its workers live on until their lease ends")

    def down(self, cluster: Any = None, *, everyone: bool = False, say: Say = print) -> None:
        """Ends the workers that were started here, and the sessions on all others; with `everyone`, those too."""
        found = self._release(cluster, say)
        if everyone:
            found.shutdown()
        else:
            found.close()
        say(f"cluster {found.name!r} is down")

    def _release(self, cluster: Any, say: Say) -> Any:
        found = cluster or self.current()
        if get_cluster() is found:
            _tell_left_behind(set_cluster(None), say)
        self.known = {name: c for name, c in self.known.items() if c is not found}
        return found

    # --- looking -----------------------------------------------------------------------------------------------------

    def ps(self) -> Table:
        """The workers of the current cluster, lost ones included."""
        rows = tuple(
            (
                record.task_name,
                record.state,
                record.address,
                str(record.pid or "-"),
                f"{record.rtt_ms:.1f} ms",
                f"{record.memory_bytes / 2**20:.0f} MiB",
                f"{record.cpu_percent:.0f} %",
                str(record.steps_done),
                record.versions.get("nbflow", "?"),
            )
            for record in self.current().workers()
        )
        columns = ("worker", "state", "address", "pid", "round trip", "memory", "cpu", "steps", "nbflow")
        return Table(columns, rows, f"cluster {self.current().name!r}")

    def devices(self) -> Table:
        """The devices of the current cluster, and the links between its workers: measured now, if they are not yet."""
        rows = tuple(
            (str(d.spec), d.description or "-", f"{d.memory_bytes / 2**30:.1f} GiB" if d.memory_bytes else "-")
            for d in self.current().devices()
        )
        tasks = {d.spec.task_name for d in self.current().devices()}
        links = [(f"link {ends}", f"{text}, {how}", "-") for ends, text, how in self._links(tasks)]
        return Table(("device", "what it is", "memory"), (*rows, *links), f"cluster {self.current().name!r}")

    def _links(self, tasks: Collection[str]) -> list[tuple[str, str, str]]:
        rows = links_rows(self.current().links(), sorted(tasks))
        if len(rows) <= LISTED_LINKS:
            return rows
        measured = sum(how == "measured" for _, _, how in rows)
        return [*rows[:LISTED_LINKS], (f"… {len(rows) - LISTED_LINKS} more", f"{measured} of {len(rows)}", "measured")]

    def logs(self, task: str, lines: int = 50) -> str:
        """The end of what a worker wrote; `task` as `/job:worker/task:0`, or `worker:0`."""
        return str(self.current().logs(task_name(task), lines))

    def save(self, path: str | Path, *, say: Say = print) -> None:
        """Writes the file that `attach(spec=path)` reads; only this user can read it."""
        self.current().save(path)
        say(f"saved to {path}, with the workers' token: keep it to yourself")


def task_name(text: str) -> str:
    """`/job:worker/task:1` of `worker:1` (and of itself)."""
    if text.startswith("/"):
        return text
    job, colon, task = text.partition(":")
    if not colon or not task.isdecimal():
        raise Rejected(f"not a worker: {text!r}; write worker:0 or /job:worker/task:0")
    return f"/job:{job}/task:{task}"


def records(cluster: Any) -> list[dict[str, Any]]:
    """What the cluster view shows of each worker."""
    devices: dict[str, list[str]] = {}
    for device in cluster.devices():
        devices.setdefault(device.spec.task_name, []).append(str(device.spec))
    return [
        {
            "worker": r.task_name,
            "state": r.state,
            "address": r.address,
            "pid": r.pid,
            "devices": devices.get(r.task_name, []),
            "incarnation": r.incarnation,
            "versions": dict(r.versions),
            "rtt_ms": r.rtt_ms or None,
            "memory_bytes": r.memory_bytes or None,
            "cpu_percent": r.cpu_percent,
        }
        for r in cluster.workers()
    ]


def _counted(cluster: Any) -> str:
    count: dict[str, int] = {}
    for record in cluster.workers():
        if record.state not in _GONE:
            count[record.job] = count.get(record.job, 0) + 1
    jobs = [f"{n} {job}" + ("s" if job == "worker" and n != 1 else "") for job, n in count.items()]
    devices = len(cluster.devices())
    return f"{', '.join(jobs)} with {devices} device{'' if devices == 1 else 's'}"


def _plain(text: str) -> str:
    # Process numbers differ from run to run; a saved notebook should not.
    return text.split(" (pid ", maxsplit=1)[0]


CLUSTERS = Clusters({})


def _tell_left_behind(names: Sequence[str], say: Say) -> None:
    if names:
        shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        plural = "s" if len(names) > 1 else ""
        say(f"the value{plural} of {len(names)} variable{plural} ({shown}) stayed there: the next run starts anew")
