"""`nf.testing.check_backend`: the numpy backend passes it, and each way to be wrong is found and named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import nbflow as nf
from nbflow.backends.base import Implementation
from nbflow.backends.numpy import NumpyBackend
from nbflow.errors import GraphError
from nbflow.testing import check_backend
from nbflow.testing.backend import BackendCheckError

ADD = NumpyBackend().table["add"]


class Changed(NumpyBackend):
    """numpy's backend with other implementations; None takes one away."""

    def __init__(self, **instead: Implementation | None) -> None:
        whole = {**super().table, **instead}
        self._table = {name: function for name, function in whole.items() if function is not None}

    @property
    def table(self) -> Mapping[str, Implementation]:
        return self._table


def test_numpy_passes() -> None:
    check_backend(NumpyBackend)


def _writes(x: Any, y: Any, *, out: Any = None) -> Any:
    value = ADD(x, y, out=out)
    x[...] = 0
    return value


def _writes_beside(x: Any, *, out: Any = None) -> Any:
    """Into its input, when it is given `out` and may."""
    value = np.square(x, out=out)
    if out is not None and x.flags.writeable:
        x[...] = 0
    return value


WRONG: dict[str, tuple[Callable[[], NumpyBackend], str]] = {
    "missing": (lambda: Changed(add=None), "^add: not implemented"),
    "another value": (lambda: Changed(add=np.subtract), "^add-1: the value differs: Mismatched elements: 6 / 6"),
    "another dtype": (
        lambda: Changed(add=lambda x, y, out=None: ADD(x, y).astype(np.complex128)),
        r"^add-1: the rule says float64\[.*, the value is complex128",
    ),
    "another shape": (lambda: Changed(add=lambda x, y, out=None: ADD(x, y)[None]), "^add-1: the rule says"),
    "out ignored": (lambda: Changed(add=lambda x, y, out=None: ADD(x, y)), "^add-1: add does not give `out` back"),
    "what is fed changed": (lambda: Changed(add=_writes), "^add-1: add 'add' failed: .* read-only"),
    "an input changed": (lambda: Changed(square=_writes_beside), r"^square-\d+: an input of square was changed"),
    "a view": (lambda: Changed(positive=lambda x, out=None: x[...]), "^positive-1: positive gives a view of an input"),
    "an error": (lambda: Changed(add=lambda x, y, out=None: 1 // 0), "^add-1: add 'add' failed: integer division"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str) -> None:
    make, message = WRONG[name]
    op = {"a view": "positive", "an input changed": "square"}.get(name, "add")
    with pytest.raises(BackendCheckError, match="(?m)" + message):
        check_backend(make, ops=[op])


class Single(NumpyBackend):
    """Doubles come back as singles."""

    def to_host(self, value: Any) -> np.ndarray[Any, Any]:
        host = np.asarray(value)
        return host.astype(np.float32) if host.dtype == np.float64 else host


class Strided(NumpyBackend):
    """`contiguous` does nothing."""

    def contiguous(self, value: Any) -> Any:
        return value


def test_methods_are_tried_with_every_dtype() -> None:
    with pytest.raises(BackendCheckError, match=r"\nasarray, to_host: float64\[2,3\] came back as float32\[2,3\]"):
        check_backend(Single)
    with pytest.raises(
        BackendCheckError, match=r"\ncontiguous: bool\[3,2\] came back as .*, strides \(1, 3\)(.|\n)*… and"
    ):
        check_backend(Strided)


def test_unknown_ops_are_refused() -> None:
    with pytest.raises(GraphError, match="no_such_op"):
        check_backend(NumpyBackend, ops=["no_such_op"])


def test_the_table_is_not_loaded_before_it_is_asked_for() -> None:
    code = "import sys, nbflow; assert 'nbflow.testing.cases' not in sys.modules; nbflow.testing.check_backend"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="check_nothing"):
        _ = nf.testing.check_nothing
