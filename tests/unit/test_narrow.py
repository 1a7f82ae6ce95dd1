"""Formats of 8 bits and fewer: kept, moved, cast, sent; and nothing computes with them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import nbflow as nf
from nbflow.codec import decode_array, encode_array
from nbflow.errors import DTypeError
from nbflow.spec import NARROW


@pytest.mark.parametrize("dtype", NARROW, ids=NARROW.values())
def test_values_are_cast_moved_and_fed(dtype: np.dtype) -> None:
    with nf.Graph().as_default():
        x = nf.placeholder(dtype, (2, 2))
        y = nf.astype(nf.concat([x[1:], x[:1]]), "float32")
        value = np.array([[0.5, 1], [1, 0]]).astype(dtype)
        np.testing.assert_array_equal(nf.Session().run(y, {x: value}), value[::-1].astype(np.float32))


@pytest.mark.parametrize("dtype", NARROW, ids=NARROW.values())
def test_arrays_travel(dtype: np.dtype) -> None:
    value = np.array([0.5, 1, 0]).astype(dtype)
    back = decode_array(encode_array(value))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back.view(np.uint8), value.view(np.uint8))


@pytest.mark.parametrize("dtype", NARROW, ids=NARROW.values())
def test_nothing_computes_with_them(dtype: np.dtype) -> None:
    with nf.Graph().as_default(), pytest.raises(DTypeError):
        nf.placeholder(dtype, (2,)) + nf.placeholder(dtype, (2,))


def test_saturate_cast_cuts_and_astype_does_not() -> None:
    x = np.array([-1e9, -3, 0.4, 300, np.inf, np.nan], np.float32)
    with nf.Graph().as_default():
        session = nf.Session()
        small = session.run(nf.saturate_cast(x[:5], "int8"))
        narrow = session.run(nf.astype(nf.saturate_cast(x, "float8_e4m3fn"), "float32"))
        plain = session.run(nf.astype(nf.astype(x, "float8_e4m3fn"), "float32"))
        wide = session.run(nf.saturate_cast(np.array([-5, 300, 70000]), "uint16"))
    np.testing.assert_array_equal(small, [-128, -3, 0, 127, 127])
    np.testing.assert_array_equal(narrow[[0, 1, 3, 4]], [-448, -3, 288, 448])
    assert np.isnan(narrow[5])
    assert np.isnan(plain[[0, 4]]).all()
    np.testing.assert_array_equal(wide, [0, 300, 65535])


@pytest.mark.parametrize(
    ("dtype", "most"),
    # The greatest float below 2**63 has as many leading ones as its fraction has bits.
    [("float16", 65504), ("bfloat16", 2**63 - 2**55), ("float32", 2**63 - 2**39), ("float64", 2**63 - 2**10)],
)
def test_floats_saturate_at_the_widest_integers(dtype: str, most: int) -> None:
    with nf.Graph().as_default():
        x = nf.astype(np.array([-1e30, 1e30], np.float64), dtype)
        low, high = nf.Session().run(nf.saturate_cast(x, "int64"))
    assert low == (-65504 if dtype == "float16" else -(2**63))
    assert high == most


def test_bitcast_reads_the_bits_and_refuses_another_size() -> None:
    with nf.Graph().as_default():
        bits = np.array([0x3C, 0x7B], np.uint8)
        found = nf.Session().run(nf.bitcast(bits, "float8_e5m2"))
        np.testing.assert_array_equal(found, bits.view(ml_dtypes.float8_e5m2))
        with pytest.raises(DTypeError, match="8 bytes an element"):
            nf.bitcast(np.zeros(2, np.float64), "float32")
