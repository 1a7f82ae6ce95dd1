"""Python generators as a dataset's source.

A generator is code, and code does not travel: it runs in the process that made the dataset. Its key is a text, as every
attribute is; only in that process it also holds the function.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nbflow.data.apply import as_block
from nbflow.data.blocks import Array, Columns
from nbflow.data.stages import Epoch, Stage, State
from nbflow.errors import DataError
from nbflow.spec import TensorSpec, format_shape, shape_accepts

GeneratorFunction = Callable[[], Any]

_numbers = itertools.count()


class GeneratorKey(str):
    """The name of a generator function, and the function. After a journey it is a plain text."""

    function: GeneratorFunction

    @classmethod
    def of(cls, function: GeneratorFunction) -> GeneratorKey:
        made = cls(f"{getattr(function, '__qualname__', type(function).__name__)}#{next(_numbers)}")
        made.function = function
        return made

    def __reduce__(self) -> Any:
        raise TypeError("a generator does not travel")


class Generated(Stage):
    """What a generator function gives, called once an epoch. Where it stands is how many elements it gave: continuing
    calls it again and leaves out as many."""

    def __init__(self, key: str, names: Sequence[str], specs: Sequence[TensorSpec]) -> None:
        super().__init__()
        if not isinstance(key, GeneratorKey):
            raise DataError(
                f"the generator {key.rsplit('#', 1)[0]!r} is in the process that made the dataset, and cannot run on "
                "this worker; put its elements into a queue with nf.feed(queue, dataset)"
            )
        self._key, self._names, self._specs = key, names, specs
        self._given: Iterator[Any] | None = None
        self._at = 0

    def restart(self, epoch: Epoch) -> None:
        self.close()
        self._at = 0

    def next(self, limit: int) -> Columns | None:
        if self._given is None:
            self._given = iter(self._key.function())
        elements = [self._element(e) for e in itertools.islice(self._given, limit)]
        self._at += len(elements)
        return as_block(elements) if elements else None

    def _element(self, value: Any) -> list[Array]:
        given = value if isinstance(value, Mapping) else {self._names[0]: value}
        if set(given) != set(self._names):
            raise DataError(f"{self._key} gave {sorted(map(str, given))}, but was said to give {sorted(self._names)}")
        made = []
        for name, spec in zip(self._names, self._specs, strict=True):
            array = np.asarray(given[name])
            weak = not hasattr(given[name], "dtype")
            if array.dtype != spec.dtype and not (weak and np.can_cast(array.dtype, spec.dtype, "same_kind")):
                raise DataError(f"{self._key} gave {array.dtype} for {name!r}, but was said to give {spec.dtype}")
            if not shape_accepts(spec.shape, array.shape):
                said, got = format_shape(spec.shape), format_shape(array.shape)
                raise DataError(f"{self._key} gave shape {got} for {name!r}, but was said to give {said}")
            made.append(np.array(array, spec.dtype))  # a copy: generators may fill one array again and again
        return made

    def save(self) -> State:
        return {"at": self._at}

    def load(self, state: State) -> None:
        self.close()
        self._at = state["at"]
        self._given = iter(self._key.function())
        for _ in itertools.islice(self._given, self._at):
            """Left out: they were handed out before."""

    def close(self) -> None:
        ending = getattr(self._given, "close", None)
        if ending is not None:
            ending()
        self._given = None
