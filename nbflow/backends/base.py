"""The boundary to a device: a table of implementations and a few methods.

An implementation of op `add` is a function `(x, y, *, out=None, **attrs) -> array`. It gets the op's inputs in order
and its attributes by keyword; `out` only when the op is declared with `out=True`. An op with several outputs returns a
tuple. A stateful op's implementation takes a `Context` first, and must not keep an input: it copies what it stores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nbflow.errors import GraphError
from nbflow.state import StateStore

Array = Any  # numpy.ndarray, cupy.ndarray, or a state object for resource handles
Implementation = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Context:
    """What a stateful implementation may use.

    `key` names its state and its random stream; `step` is the number of the step (random ops draw with seed, key and
    step) and `frame` the iterations of the loops around it; `check` raises Cancelled or DeadlineExceeded when the step
    should end, and long implementations call it.
    """

    key: str
    seed: int
    step: int
    state: StateStore
    check: Callable[[], None]
    frame: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The key without its generation: what random streams are keyed by, so that running a cell again draws the
        same numbers as a fresh start does. In a loop it ends with the numbers of the iterations, outermost first."""
        name = self.key.rsplit(":", 1)[0]
        return f"{name}@{'.'.join(map(str, self.frame))}" if self.frame else name


class Backend(Protocol):
    """One kind of device."""

    @property
    def type(self) -> str:
        """The device type it serves: `cpu`, `gpu`."""
        ...

    @property
    def table(self) -> Mapping[str, Implementation]:
        """Implementations by op name."""
        ...

    def asarray(self, value: np.ndarray[Any, Any]) -> Array:
        """A host array on this device; may share memory with `value`."""
        ...

    def to_host(self, value: Array) -> np.ndarray[Any, Any]:
        """A device array as a host array; may share memory with `value`."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Memory on this device, not initialised."""
        ...

    def contiguous(self, value: Array) -> Array:
        """`value` in C order: itself, or a copy. Anything that is not an array passes."""
        ...

    def synchronize(self) -> None:
        """Returns when everything asked so far is done."""
        ...

    def scope(self) -> AbstractContextManager[Any]:
        """What a thread is in while it runs implementations: warnings silenced, the device and its stream chosen."""
        ...

    def free_unused(self) -> None:
        """Gives memory that is kept for later arrays back: after a step that found none left."""
        ...


class Table(dict[str, Implementation]):
    """Implementations by op name; `@table.implements("add")` adds one. Adding one twice is an error."""

    def implements(self, *names: str) -> Callable[[Implementation], Implementation]:
        def add(function: Implementation) -> Implementation:
            for name in names:
                if name in self:
                    raise GraphError(f"op {name!r} has two implementations in one table")
                self[name] = function
            return function

        return add
