"""How far is `nbflow simulate` from a training step with real arithmetic, on 1 to 8 worker processes of this host?

An MLP 784-512-512-10 with 128 rows a worker, a ps, and the driver, all on the cores of one machine, a thread of
arithmetic each. Nothing of the prediction comes from a step that is predicted, but the times of single ops, from traces
of one worker:

- what a step and a tensor cost the driver and the processes: CPU seconds of steps of their own (`host_costs`);
- the cores that all of it shares: those of the machine, less what other processes used in the windows that count, and
  less what heartbeats use.

Steps and traces take turns, a window each. A window in which other processes used more than 15 % of the machine does
not count; where that leaves too few, all count, and the row says BUSY. Errors are of the simulated step against the
measured median.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import common  # first: it names the threads

for _name in common.THREAD_VARIABLES:
    common.os.environ[_name] = "1"

from host_costs import host_costs, idle_cores  # noqa: E402  # after the threads are named

import nbflow as nf  # noqa: E402
from nbflow import simulate as sim  # noqa: E402
from nbflow.simulate.times import Measured  # noqa: E402
from nbflow.trace import Trace  # noqa: E402

COUNTS = (1, 2, 4, 8)
WIDTHS, ROWS = (784, 512, 512, 10), 128
PS = 1
WINDOWS, WINDOW_STEPS, IDLE_S = 20, 5, 3.0
# However busy the machine is.
DEADLINE_S = 240.0
ALLOWED = 0.15


def mlp() -> nf.Node:
    with nf.Graph().as_default():
        x = nf.random.normal((ROWS, WIDTHS[0]))
        for units in WIDTHS[1:-1]:
            x = nf.layers.dense(x, units, activation=nf.nn.relu)
        labels = nf.zeros((ROWS,), dtype="int64")
        loss = nf.mean(nf.nn.softmax_cross_entropy(nf.layers.dense(x, WIDTHS[-1]), labels))
        return nf.optim.SGD(0.1, momentum=0.9).minimize(loss, strategy=nf.train.DataParallel())


def medians(traces: list[Trace]) -> dict[str, float]:
    """Median seconds of each op, by the name that it has in the user's graph."""
    found: dict[str, list[float]] = {}
    for trace in traces:
        for op in trace.ops:
            found.setdefault(op.node.removeprefix("replica_0/"), []).append(op.duration_s)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


class Side:
    """Something that is measured in windows, of which the quiet ones count."""

    def __init__(self, window: Callable[[], list[float]]) -> None:
        self._window = window
        self._all: list[tuple[float, list[float]]] = []

    def turn(self) -> None:
        found: list[float] = []
        self._all.append((common.others_in(lambda: found.extend(self._window())), found))

    @property
    def quiet(self) -> int:
        return sum(others <= common.QUIET for others, _ in self._all)

    @property
    def left_out(self) -> int:
        return 0 if self.busy else len(self._all) - self.quiet

    @property
    def busy(self) -> bool:
        """Too few windows were quiet, so all of them count."""
        return self.quiet < 5

    @property
    def others(self) -> float:
        """The share of the machine that others used in the windows that count."""
        return statistics.mean(o for o, _ in self._all if self.busy or o <= common.QUIET)

    @property
    def values(self) -> list[float]:
        return [v for others, found in self._all if self.busy or others <= common.QUIET for v in found]


def timed(session: nf.Session, step: nf.Node) -> list[float]:
    session.run(step)
    found = []
    for _ in range(WINDOW_STEPS):
        start = time.perf_counter()
        session.run(step)
        found.append(time.perf_counter() - start)
    return found


def measure(counts: Sequence[int], windows: int) -> tuple[dict[int, Side], Measured, float]:
    """The steps with each number of workers, what the ops take, and the cores that all use when nothing runs."""
    step = mlp()
    traces: list[Trace] = []
    with contextlib.ExitStack() as stack:
        clusters = [stack.enter_context(nf.cluster.local(workers=count, ps=PS)) for count in counts]
        sessions = [stack.enter_context(nf.Session(cluster, step.graph)) for cluster in clusters]
        for session in sessions:
            session.run(step)
        steps = {n: Side(functools.partial(timed, s, step)) for n, s in zip(counts, sessions, strict=True)}
        start = time.perf_counter()
        while min(s.quiet for s in steps.values()) < windows and time.perf_counter() < start + DEADLINE_S:
            for side in steps.values():
                side.turn()
            traces.append(sessions[0].run(step, trace=True)[1])
        idle = idle_cores(clusters, IDLE_S)
    return steps, Measured(medians(traces)), idle


def main() -> int:
    options = common.arguments(__doc__).parse_args()
    report = common.Report("How far is the simulation from real arithmetic on shared cores?", ["numpy", "grpcio"])
    report.begin()
    counts = COUNTS[:2] if options.quick else COUNTS
    control, messages, way_s = host_costs(3 if options.quick else 15)
    steps, measured, idle = measure(counts, 5 if options.quick else WINDOWS)
    machine = sim.parse_machine(f"cpu/link=0/latency={way_s * 1e6:.3g}us")
    print(
        f"the driver: {control.step_s * 1e6:.0f} µs a step, {2 * control.command_s * 1e6:.0f} µs a task; a task "
        f"{control.task_s * 1e6:.0f} µs; a message {control.latency_s * 1e6:.0f} µs on its way\n"
        f"a tensor: {messages.send_s * 1e6:.0f} + {messages.take_s * 1e6:.0f} µs, "
        f"{messages.copy_bytes_per_s / 1e9:.1f} GB/s, {way_s * 1e6:.0f} µs on its way\n"
        f"ops: {sum(measured.seconds.values()) * 1e3:.2f} ms; {idle:.3f} cores when nothing runs\n"
    )
    for count in counts:
        cores = (common.os.cpu_count() or 1) * (1 - steps[count].others) - idle
        cluster = sim.Described(machine, control=control, messages=messages, cores=cores, measured=measured)
        simulated = sim.predict(mlp(), count, cluster, ps=PS).step_s
        report.rows.append(compared(count, steps[count], simulated, cores))
    print(f"largest error {max(abs(r['error']) for r in report.rows):.1%}; allowed {ALLOWED:.0%}")
    if not options.quick:
        costs = {"control": asdict(control), "messages": asdict(messages), "way_s": way_s}
        report.write("simulate-real", {"ops_s": sum(measured.seconds.values()), "idle_cores": idle, **costs})
    return 0


def compared(workers: int, side: Side, simulated: float, cores: float) -> dict[str, Any]:
    spread = common.Spread.of(side.values)
    quarters = statistics.quantiles(side.values, n=4)
    error = simulated / spread.median - 1
    print(
        f"{workers} workers on {cores:.2f} cores  measured {spread.median * 1e3:.3g} ms (middle half "
        f"{quarters[0] * 1e3:.3g} to {quarters[2] * 1e3:.3g}, lowest {spread.low * 1e3:.3g})  "
        f"simulated {simulated * 1e3:.3g} ms  error {error:+.1%}"
        f"{'' if abs(error) <= ALLOWED else '  MORE THAN ALLOWED'}{'  BUSY' if side.busy else ''}",
        flush=True,
    )
    return {
        "workers": workers,
        "ps": PS,
        "cores": cores,
        "measured_s": spread.median,
        "middle_half_s": [quarters[0], quarters[2]],
        "simulated_s": simulated,
        "error": error,
        "used_by_others": side.others,
        "windows_left_out": side.left_out,
        "busy": side.busy,
    }


if __name__ == "__main__":
    sys.exit(main())
