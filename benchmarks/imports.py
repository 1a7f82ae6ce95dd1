"""How long until one can start: `import nbflow`, and the kernel's first answer?

Each figure is a fresh process, in turn. Beside the import: what nbflow imports anyway (numpy), and torch. Beside the
nbflow kernel: the stock Python kernel, from its start to the answer to `1`, and then the round trip of a cell.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import common  # first: it names the threads
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from nbflow_kernel.install import install

TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
DEADLINE_S = 60.0
CELLS = 20


def import_s(module: str) -> float:
    """Seconds that a fresh process takes to import `module`. Raises CalledProcessError when it cannot."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(module)], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    return float(done.stdout)


def kernel_s(name: str, specs: KernelSpecManager) -> tuple[float, float]:
    """Seconds from the start of a kernel to its first answer, and of the cells after that (median)."""
    manager = KernelManager(kernel_name=name, kernel_spec_manager=specs)
    start_s = time.perf_counter()
    manager.start_kernel(stderr=subprocess.DEVNULL)
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=DEADLINE_S)
        client.execute_interactive("1", silent=True, timeout=DEADLINE_S)
        first_s = time.perf_counter() - start_s
        later_s = []
        for _ in range(CELLS):
            cell_start_s = time.perf_counter()
            client.execute_interactive("1", store_history=False, silent=True, timeout=DEADLINE_S)
            later_s.append(time.perf_counter() - cell_start_s)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return first_s, common.Spread.of(later_s).median


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Every side once a round; the first round warms the disk's cache and is thrown away."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, once in sides.items():
            took_s = once()
            if number:
                found[name].append(took_s)
    return found


def importable(module: str) -> bool:
    try:
        import_s(module)
    except subprocess.CalledProcessError:
        return False
    return True


def main() -> int:
    options = common.arguments(__doc__).parse_args()
    rounds = common.rounds(options, 9)
    report = common.Report("How long until one can start?", ["numpy", "torch", "ipykernel", "jupyter_client"])
    report.begin()
    modules = [m for m in ("nbflow", "nbflow_workers", "numpy", "torch") if importable(m)]
    sides = {f"import {module}": lambda module=module: import_s(module) for module in modules}
    report.add(common.Measured("import, fresh process", in_turn(sides, rounds)), "import nbflow", unit="s")
    cells: dict[str, list[float]] = {"nbflow kernel": [], "stock kernel": []}
    with tempfile.TemporaryDirectory() as folder:
        install(prefix=folder)
        specs = KernelSpecManager(kernel_dirs=[str(Path(folder) / "share" / "jupyter" / "kernels")])

        def start(side: str, name: str) -> float:
            first_s, cell_s = kernel_s(name, specs)
            cells[side].append(cell_s)
            return first_s

        starts = in_turn(
            {
                "nbflow kernel": lambda: start("nbflow kernel", "nbflow"),
                "stock kernel": lambda: start("stock kernel", "python3"),
            },
            rounds,
        )
    report.add(common.Measured("kernel, start to first answer", starts), "nbflow kernel", unit="s")
    report.add(common.Measured("kernel, a cell's round trip", cells), "nbflow kernel", unit="ms")
    if not options.quick:
        report.write("imports")
    return 0


if __name__ == "__main__":
    sys.exit(main())
