"""What people say an element is: a `TensorSpec`, or (dtype, shape); or a dict, or a tuple, of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nbflow.errors import DataError
from nbflow.spec import TensorSpec, as_dtype, as_shape


def described(specs: Any, what: str) -> tuple[tuple[str, ...], tuple[TensorSpec, ...], type]:
    """Names, specs, and whether they were a dict, a tuple or one."""
    structure: type
    if isinstance(specs, Mapping):
        names, given, structure = tuple(map(str, specs)), list(specs.values()), dict
    elif isinstance(specs, TensorSpec) or _is_pair(specs):
        names, given, structure = ("",), [specs], TensorSpec
    elif isinstance(specs, (tuple, list)):
        names, given, structure = ("",) * len(specs), list(specs), tuple
    else:
        raise DataError(
            f"specs of a {what} are a TensorSpec, (dtype, shape), or a dict or tuple of these, not {specs!r}"
        )
    found = tuple(s if isinstance(s, TensorSpec) else _from_pair(s, what) for s in given)
    if not found or any(s.shape is None or s.resource for s in found):
        raise DataError(
            f"a {what} needs components of known rank; an unknown dimension is None: ('float32', (None, 3))"
        )
    return names, found, structure


def _is_pair(value: Any) -> bool:
    """Whether this is (dtype, shape), and not two specs."""
    return isinstance(value, tuple) and len(value) == 2 and not isinstance(value[0], (TensorSpec, tuple))


def _from_pair(value: Any, what: str) -> TensorSpec:
    if not _is_pair(value):
        raise DataError(f"a component of a {what} is a TensorSpec or (dtype, shape), not {value!r}")
    return TensorSpec(as_shape(value[1]), as_dtype(value[0]))
