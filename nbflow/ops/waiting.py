"""The ops that wait for what another step does."""

from __future__ import annotations

from nbflow.ops import queue, replicas

WAITING = queue.WAITING | replicas.WAITING
