"""The table of the GPU backend: the union of the families'. Importing this imports cupy."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nbflow.backends.base import Implementation
from nbflow.backends.cupy import (
    arrays,
    conv,
    elementwise,
    indexing,
    matrices,
    nn,
    pooling,
    random,
    reduction,
    resizing,
    rows,
    scattering,
    sets,
    state,
    updates,
)
from nbflow.backends.cupy.half import with_single
from nbflow.backends.numpy import merge

FAMILIES = (
    arrays,
    elementwise,
    indexing,
    scattering,
    sets,
    reduction,
    matrices,
    nn,
    conv,
    pooling,
    resizing,
    random,
    state,
    rows,
    updates,
)

TABLE: Mapping[str, Implementation] = MappingProxyType(with_single(merge([family.TABLE for family in FAMILIES])))
