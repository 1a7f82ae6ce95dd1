"""How what the replicas of one graph compute becomes one: means in the order of the replicas, or concatenations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from nbflow.graph import Node, Tensor
from nbflow.ops import astype, constant, equal, weighted_sum, where
from nbflow.ops.joining import concat
from nbflow.parallel.compress import packed, unpacked
from nbflow.parallel.replicate import Replication


def join_all(replication: Replication, compress: str | None) -> None:
    """Joins what crosses out of the replicas of `replication`, on the devices of the variables that it is for."""
    shares = replication.weights() if len(replication.of_replica) > 1 else None
    for tensor in replication.crossing():
        parts = replication.parts(tensor)
        found = parts[0] if len(parts) == 1 else join(replication, tensor, parts, shares, compress)
        replication.tensors[(tensor.node.name, tensor.index)] = found


def join(
    replication: Replication, tensor: Tensor, parts: list[Tensor], shares: list[Tensor] | None, compress: str | None
) -> Tensor:
    """What stands for `tensor` outside of the replicas, in which it is `parts`."""
    home, how = replication.joining(tensor)
    if how == "same":
        return parts[0]
    made = replication.made
    with made.as_default(), made.name_scope("joined"), made.name_scope(tensor.node.name):
        if home and compress:
            parts = carried(parts, compress, replication.nodes[home])
        with made.colocate_with(replication.nodes[home]) if home else nullcontext():
            if how == "rows":
                return concat(parts, axis=0)
            shares = shares or [constant(np.float64(1.0 / len(parts))) for _ in parts]
            if how == "share":
                return concat([share_of(p, w) for p, w in zip(parts, shares, strict=True)], axis=0)
            return weighted_sum(parts, shares)


def join_groups(replication: Replication, size: int, compress: str | None) -> None:
    """Like `join_all`, of replicas that are in groups of `size`, one after the other. What a group gives to an update
    becomes one tensor where the group computed it, and travels as one."""
    shares = replication.weights()
    made = replication.made
    for tensor in replication.crossing():
        parts = replication.parts(tensor)
        home, how = replication.joining(tensor)
        if not home or how == "same":
            found = join(replication, tensor, parts, shares, compress)
        else:
            starts = range(0, len(parts), size)
            with made.as_default(), made.name_scope("grouped"), made.name_scope(tensor.node.name):
                ours = [
                    _group(parts[n : n + size], None if shares is None else shares[n : n + size], how, len(parts))
                    for n in starts
                ]
                if compress:
                    ours = carried(ours, compress, replication.nodes[home])
                with made.colocate_with(replication.nodes[home]):
                    if how == "mean":
                        found = weighted_sum(ours, [constant(np.float64(1.0)) for _ in ours])
                    else:
                        found = concat(ours, axis=0)
        replication.tensors[(tensor.node.name, tensor.index)] = found


def _group(parts: list[Tensor], shares: list[Tensor] | None, how: str, count: int) -> Tensor:
    """What one group of replicas gives, of `count` in all, on the device of its first one."""
    with parts[0].graph.colocate_with(parts[0]):
        if how == "rows":
            return concat(parts, axis=0)
        weights = shares or [constant(np.float64(1.0 / count)) for _ in parts]
        if how == "share":
            return concat([share_of(p, w) for p, w in zip(parts, weights, strict=True)], axis=0)
        return weighted_sum(parts, weights)


def carried(parts: Sequence[Tensor], compress: str, home: Node) -> list[Tensor]:
    """`parts` as they arrive at `home`, after travelling as `compress`."""
    return [unpacked(packed(p, compress), p.dtype, home) for p in parts]


def share_of(values: Tensor, weight: Tensor) -> Tensor:
    """`weight` · `values`; zeros for a replica without rows, whose values may be NaN."""
    return where(equal(weight, 0), 0, values * astype(weight, values.dtype))
