"""The GPU backend: every op that is at home on a GPU, on cupy arrays. cupy is imported when a GPU is asked for.

One `CupyBackend` is one GPU. It has a stream of its own, on which all its ops run in the order in which programs ask
for them; memory comes from cupy's pool, which is ordered by that stream, so an array may be dropped while ops on it
still run. Fetches, and tensors that leave the GPU, are copied through pinned memory.

Results are the same from run to run: sums have a fixed order, and repeated indices are added in the order in which they
stand. They differ from the CPU's by rounding, as sums have another order there. What is promised, and what is not there
yet, is in docs/gpu.md.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow.backends.base import Implementation
from nbflow.errors import PlacementError
from nbflow.spec import NARROW

INSTALL = "install nbflow[gpu-cuda12] or nbflow[gpu-cuda13], whichever fits the driver, and not both"
# Below this a copy through pinned memory costs more than it saves.
_PINNED_BYTES = 65536
# float32 additions and multiplications that a multiprocessor of the last generations makes in a clock cycle.
_FLOPS_PER_CYCLE = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of this machine. `memory_bytes`: all of it; `flops`: its float32 rate, 0 if the driver does not say."""

    index: int
    name: str
    memory_bytes: int
    flops: float


@functools.cache
def missing() -> str:
    """Why no GPU can be used here, and what to do about it; empty if one can."""
    if importlib.util.find_spec("cupy") is None:
        return f"cupy is not installed; {INSTALL}"
    try:
        cp = importlib.import_module("cupy")
    except ImportError as error:
        return f"cupy cannot be imported ({error}); {INSTALL}"
    try:
        count = int(cp.cuda.runtime.getDeviceCount())
    except cp.cuda.runtime.CUDARuntimeError as error:
        return f"the driver gives no GPU ({error})"
    return "" if count else "the driver sees no GPU"


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine that this process may use; none without cupy, or without a driver."""
    if missing():
        return ()
    runtime = importlib.import_module("cupy").cuda.runtime
    return tuple(_described(runtime, index) for index in range(int(runtime.getDeviceCount())))


def _described(runtime: Any, index: int) -> Gpu:
    said = runtime.getDeviceProperties(index)
    rate = float(said.get("clockRate", 0)) * 1e3 * int(said["multiProcessorCount"]) * _FLOPS_PER_CYCLE
    name = said["name"]
    return Gpu(index, name.decode() if isinstance(name, bytes) else str(name), int(said["totalGlobalMem"]), rate)


class CupyBackend:
    """See `nbflow.backends.base.Backend`. Raises PlacementError where there is no GPU `index`, and says why."""

    def __init__(self, index: int = 0) -> None:
        why = missing()
        if not why and index >= len(gpus()):
            why = f"this machine has {len(gpus())}"
        if why:
            raise PlacementError(f"there is no gpu:{index} here: {why}")
        self._cp = importlib.import_module("cupy")
        self._cupyx = importlib.import_module("cupyx")
        self._device = self._cp.cuda.Device(index)
        with self._device:
            self._stream = self._cp.cuda.Stream(non_blocking=True)
        self.index = index
        self._table: Mapping[str, Implementation] = importlib.import_module("nbflow.backends.cupy.table").TABLE

    @property
    def type(self) -> str:
        return "gpu"

    @property
    def table(self) -> Mapping[str, Implementation]:
        return self._table

    @contextmanager
    def scope(self) -> Iterator[None]:
        with self._device, self._stream:
            yield

    def asarray(self, value: np.ndarray[Any, Any]) -> Any:
        if isinstance(value, self._cp.ndarray):
            return value
        host = np.asarray(value)
        if host.dtype.char in "gG":
            raise PlacementError(f"tensors of {host.dtype} live on CPUs only; cast them before they go to a GPU")
        if host.dtype in NARROW:
            raise PlacementError(
                f"tensors of {NARROW[host.dtype]} live on CPUs only; cast them before they go to a GPU"
            )
        with self.scope():
            return self._cp.asarray(host, order="C")

    def to_host(self, value: Any) -> np.ndarray[Any, Any]:
        if not isinstance(value, self._cp.ndarray):
            return np.asarray(value)
        with self.scope():
            if value.nbytes < _PINNED_BYTES:
                return np.asarray(self._cp.asnumpy(value))
            found: np.ndarray[Any, Any] = self._cupyx.empty_pinned(value.shape, value.dtype)
            self._cp.ascontiguousarray(value).get(out=found)
            return found

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        with self.scope():
            return self._cp.empty(shape, dtype)

    def contiguous(self, value: Any) -> Any:
        if not isinstance(value, self._cp.ndarray) or value.flags.c_contiguous:
            return value
        with self.scope():
            return self._cp.array(value, order="C")

    def synchronize(self) -> None:
        self._stream.synchronize()

    def free_unused(self) -> None:
        with self._device:
            self._cp.get_default_memory_pool().free_all_blocks()
