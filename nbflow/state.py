"""State that outlives a step: variables, dataset iterators. One store a session, on the worker that holds the op."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class Cell:
    """The state of one variable: its value, or None before it is initialised. May be updated in place."""

    __slots__ = ("lock", "value")

    def __init__(self) -> None:
        self.value: Any = None
        # Re-entrant: a program makes an op that uses the cell whole, and the op's implementation does too.
        self.lock = threading.RLock()


class StateStore:
    """Keyed state. A key is a node's name and its generation (`hidden/weights:0`).

    `say` shows people a line: state that takes long to make says how far it is.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self.say = say
        self._lock = threading.Lock()
        self._items: dict[str, Any] = {}

    def get_or_make(self, key: str, make: Callable[[], T]) -> T:
        """The object under `key`, made on first use. `make` must be quick: the store is locked meanwhile."""
        with self._lock:
            if key not in self._items:
                self._items[key] = make()
            found: T = self._items[key]
            return found

    def cell(self, key: str) -> Cell:
        """The variable cell under `key`, made empty on first use."""
        return self.get_or_make(key, Cell)

    def drop(self, keys: Iterable[str]) -> None:
        """Forgets `keys`; unknown ones are ignored."""
        with self._lock:
            for key in keys:
                item = self._items.pop(key, None)
                close = getattr(item, "close", None)
                if close is not None:
                    close()

    def clear(self) -> None:
        """Forgets everything."""
        self.drop(self.keys())

    def keys(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._items)

    def nbytes(self) -> int:
        """Bytes held by variables."""
        with self._lock:
            cells = [i for i in self._items.values() if isinstance(i, Cell)]
        return sum(int(c.value.nbytes) for c in cells if c.value is not None)
