"""The magics, one family a file. Each verb calls the Python function of the same name, and shows what it returns."""

from __future__ import annotations

from nbflow_kernel.magics.base import Family
from nbflow_kernel.magics.cluster import ClusterMagics
from nbflow_kernel.magics.graph import GraphMagics
from nbflow_kernel.magics.placement import PlacementMagics
from nbflow_kernel.magics.timeline import TimelineMagics

MAGICS: tuple[type[Family], ...] = (ClusterMagics, GraphMagics, PlacementMagics, TimelineMagics)
