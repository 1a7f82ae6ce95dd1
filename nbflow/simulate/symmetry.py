"""From the plans of a few replicas to the model of many.

All replicas of a data-parallel step but the first few do the same, and what others do for them differs by their number
only. So the last replica of a real plan is the pattern: each further one gets a copy of its program, and every other
device a copy of what it does for the pattern (its sends, its recvs, ops named `replica_N/…`). What waits for something
of the pattern waits for that of the copies too; an op that joins the replicas takes the time of as many inputs.

`tests/unit/test_simulate.py` holds the outcome equal to that of real plans for the same number of replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace

from nbflow.device import parse_device
from nbflow.errors import GraphError
from nbflow.simulate.model import Model, Program, Task

# Replicas of the plans that a pattern is taken from: the first has tasks of its own (joined metrics, the end of the
# step), and the two others are compared.
REAL = 3

# (name of an op, device, names of the nodes whose tensors come from the pattern, how many copies of each) -> seconds
JoinS = Callable[[str, str, Set[str], int], float]


def expand(model: Model, replicas: int, join_s: JoinS) -> Model:
    """The model with `replicas` replicas, of at least as many as it has.

    `join_s`: seconds of an op when each input that comes from the pattern comes from more replicas. Raises GraphError
    when the last two replicas of the model differ.
    """
    by_replica = {p.replica: p for p in model.programs if p.replica >= 0}
    last = model.replicas - 1
    pattern, other = by_replica.get(last), by_replica.get(last - 1)
    if replicas == model.replicas:
        return model
    if pattern is None or other is None or _shape(pattern) != _shape(other):
        raise GraphError(
            f"replicas {last - 1} and {last} of this step do different things (variables on the workers?), so there is "
            f"no pattern for more; simulate at most {model.replicas}, or give ps tasks"
        )
    extra = range(model.replicas, replicas)
    job = parse_device(pattern.device)
    devices = {e: str(replace(job, task=(job.task or 0) + e - last)) for e in extra}
    rest = [_widened(p, pattern, extra, devices, join_s) for p in model.programs if p is not pattern]
    copies = [replace(pattern, device=devices[e], replica=e, copy=e) for e in extra]
    return replace(model, programs=(*rest, pattern, *copies), replicas=replicas)


def _belonging(program: Program, device: str, prefix: str) -> list[bool]:
    """Which tasks are done for the replica on `device`: sends and recvs of its tensors, ops named after it, and those
    that need nothing else (a gradient that is decompressed)."""
    found: list[bool] = []
    for task in program.tasks:
        needs = task.kind == "op" and bool(task.after) and all(found[n] for n in task.after)
        own = task.node.startswith(prefix) or needs
        found.append(own or task.peer == device)
    return found


def _shape(program: Program) -> list[tuple[str, float, float]]:
    """What a program does, in whatever order: what depends on nothing else may stand anywhere."""
    return sorted((t.kind, t.seconds, t.nbytes) for t in program.tasks)


def _widened(
    program: Program, pattern: Program, extra: Sequence[int], devices: dict[int, str], join_s: JoinS
) -> Program:
    """`program` with what it does for the pattern done for the copies too. Copies stand behind a row of such tasks, in
    the order of the replicas: as partition puts them."""
    mine = f"replica_{pattern.replica}/"
    belongs = _belonging(program, pattern.device, mine)
    number: list[int] = []  # old task -> new one
    clones: dict[tuple[int, int], int] = {}  # (old task, replica) -> its copy
    made: list[Task] = []

    def flush(row: Sequence[int]) -> None:
        for replica in extra:
            for index in row:
                task = program.tasks[index]
                after = tuple(clones.get((n, replica), number[n]) for n in task.after)
                clones[index, replica] = len(made)
                named = task.node.replace(mine, f"replica_{replica}/", 1) if task.node.startswith(mine) else task.node
                peer = devices[replica] if task.peer == pattern.device else task.peer
                key = task.key if task.kind == "op" else (task.key, replica)
                made.append(replace(task, after=after, node=named, peer=peer, key=key))

    row: list[int] = []
    for index, task in enumerate(program.tasks):
        if not belongs[index]:
            flush(row)
            row = []
        after = [number[n] for n in task.after]
        wide = [n for n in task.after if belongs[n]]
        if belongs[index]:
            row.append(index)
        elif wide:
            after += [clones[n, replica] for n in wide for replica in extra]
        seconds = task.seconds
        if wide and not belongs[index] and task.kind == "op":
            seconds = join_s(task.node, program.device, {program.tasks[n].node for n in wide}, len(extra))
        number.append(len(made))
        made.append(replace(task, after=tuple(after), seconds=seconds))
    flush(row)
    return replace(program, tasks=tuple(made))
