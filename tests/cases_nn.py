"""Rows of `nf.nn`, `nf.random` and state for the op tests. See `cases.py`."""

from __future__ import annotations

from tests.cases import Case

OPS: list[Case] = []
