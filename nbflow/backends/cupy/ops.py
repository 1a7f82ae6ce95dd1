"""Which ops have an implementation here. Known without cupy: a notebook without a GPU places ops on workers that have
one.

What is left out stays on the CPU by nature: it waits, reads files, or decides box by box. The placer puts such an op on
a CPU of the cluster and says so; what goes in and comes out is copied, as between any two devices.
"""

from __future__ import annotations

from nbflow.backends.numpy import TABLE, boxes, data, ngrams, queues, replicas

HOST_ONLY: frozenset[str] = frozenset(
    name for family in (boxes, data, ngrams, queues, replicas) for name in family.TABLE
)
IMPLEMENTED: frozenset[str] = frozenset(TABLE) - HOST_ONLY
