"""What a cluster knows of a worker: who it is, the way to it, what it said last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nbflow.device import parse_device
from nbflow.transport import DeviceInfo, WorkerInfo
from nbflow_workers import security
from nbflow_workers.channel import Link
from nbflow_workers.launchers.base import Handle
from nbflow_workers.proto import worker_pb2 as pb


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One worker, as `Cluster.workers()` shows it. `pid` is None where unknown; times in seconds, sizes in bytes."""

    job: str
    task: int
    address: str
    pid: int | None
    state: str
    incarnation: str
    versions: Mapping[str, str]
    rtt_ms: float = 0.0
    memory_bytes: int = 0
    cpu_percent: float = 0.0
    running_steps: int = 0
    steps_done: int = 0

    @property
    def task_name(self) -> str:
        return f"/job:{self.job}/task:{self.task}"


@dataclass(slots=True)
class Worker:
    """A worker, the way to it, and, if we started it, the handle to end it."""

    link: Link
    info: WorkerInfo
    data: pb.DataEndpoint
    handle: Handle | None = None
    rtt_ms: float = 0.0
    last: pb.DescribeReply = field(default_factory=pb.DescribeReply)

    @classmethod
    def from_reply(cls, link: Link, reply: pb.DescribeReply, handle: Handle | None = None) -> Worker:
        # Only we know by which name this worker's host is reached.
        at, _ = security.split_address(link.address)
        name = reply.data.host_id or at
        infos = tuple(
            DeviceInfo(
                *(parse_device(d.device), d.description, d.memory_bytes, d.flops),
                *((name, d.cores, d.threads) if d.cores else ()),
            )
            for d in reply.devices
        )
        info = WorkerInfo(
            reply.job,
            reply.task,
            link.address,
            reply.incarnation,
            reply.pid or None,
            infos,
            dict(reply.versions),
            reply.allow_python,
        )
        link.name = f"{info.task_name} ({link.address})"
        address = reply.data.address.replace("*", f"[{at}]" if ":" in at else at)
        data = pb.DataEndpoint(address=address, public_key=reply.data.public_key, host_id=reply.data.host_id)
        return cls(link, info, data, handle, last=reply)

    def record(self, state: str) -> WorkerRecord:
        """What people see of it, in this state of its membership."""
        info, last = self.info, self.last
        return WorkerRecord(
            info.job,
            info.task,
            info.address,
            info.pid,
            state,
            info.incarnation,
            info.versions,
            round(self.rtt_ms, 3),
            last.memory_bytes,
            last.cpu_percent,
            last.running_steps,
            last.steps_done,
        )


def order(worker: Worker) -> tuple[bool, str, int]:
    """The order in which a cluster's workers stand."""
    # Parameter servers last: a graph without a device then starts on a worker.
    return (worker.info.job != "worker", worker.info.job, worker.info.task)
