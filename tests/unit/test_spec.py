"""Shapes and dtypes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.errors import DTypeError, ShapeError
from nbflow.spec import (
    as_dtype,
    as_shape,
    broadcast_shapes,
    merge_shapes,
    normalize_axes,
    shape_accepts,
    spec,
    spec_of,
)

dims = st.sampled_from([1, 2, 3])
shapes = st.lists(dims, max_size=4).map(tuple)


@given(shapes, shapes)
def test_broadcasting_is_numpys(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    try:
        expected = np.broadcast_shapes(a, b)
    except ValueError:
        with pytest.raises(ShapeError, match="broadcast"):
            broadcast_shapes(a, b)
    else:
        assert broadcast_shapes(a, b) == expected


@given(shapes, shapes, st.data())
def test_unknown_dims_contradict_nothing(a: tuple[int, ...], b: tuple[int, ...], data: st.DataObject) -> None:
    """Hiding dimensions gives a shape that accepts the true result."""
    try:
        expected = np.broadcast_shapes(a, b)
    except ValueError:
        return
    hidden = tuple(None if data.draw(st.booleans()) else d for d in a)
    assert shape_accepts(broadcast_shapes(hidden, b), expected)


def test_specs() -> None:
    s = spec("float32", (None, 784))
    assert str(s) == "float32[?,784]"
    assert s.size is None
    assert not s.is_static
    assert spec("int64", (2, 3)).nbytes == 48
    assert s.accepts(spec_of(np.zeros((5, 784), np.float32)))
    assert not s.accepts(spec_of(np.zeros((5, 784), np.float64)))
    assert not s.accepts(spec_of(np.zeros((784,), np.float32)))


def test_dtypes_that_have_no_meaning_on_a_device_are_refused() -> None:
    for bad in (object, "U5", "datetime64[s]", "no such"):
        with pytest.raises(DTypeError):
            as_dtype(bad)
    assert as_dtype(">f4") == np.dtype("float32")


def test_shapes_from_loose_arguments() -> None:
    assert as_shape(3) == (3,)
    assert as_shape([None, np.int64(2)]) == (None, 2)
    assert as_shape(None) is None
    for bad in [(-1,), (1.5,), ("a",)]:
        with pytest.raises(ShapeError):
            as_shape(bad)


def test_merging_and_axes() -> None:
    assert merge_shapes((None, 3), (2, None)) == (2, 3)
    with pytest.raises(ShapeError, match="contradict"):
        merge_shapes((2,), (3,))
    assert normalize_axes(None, 2) == (0, 1)
    assert normalize_axes((-1, 0), 3) == (0, 2)
    with pytest.raises(ShapeError, match="twice"):
        normalize_axes((0, -2), 2)
    with pytest.raises(ShapeError, match="out of range"):
        normalize_axes(2, 2)
