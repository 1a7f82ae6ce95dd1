"""What a graph computes, as one number. `Graph.digest` says what it covers and what it leaves out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from nbflow.graph import Node


class Mark(Protocol):
    """A hash in the making, of hashlib."""

    def update(self, data: bytes, /) -> None: ...


class Digested(ABC):
    """An attribute that says itself what of it counts."""

    __slots__ = ()

    @abstractmethod
    def digest_into(self, mark: Mark) -> None:
        """Adds what this value computes to `mark`."""


def digest_of(value: Digested) -> bytes:
    """SHA-256 of what an attribute computes."""
    mark = hashlib.sha256()
    value.digest_into(mark)
    return mark.digest()


def graph_digest(nodes: Sequence[Node], seed: int, memo: dict[str, bytes] | None = None) -> str:
    """SHA-256 (hex) over `nodes`, which come after their inputs. Their order among themselves does not matter.

    `memo` receives the digest of each node, by name.
    """
    memo = {} if memo is None else memo
    for node in nodes:
        memo[node.name] = _node_digest(node, memo)
    whole = hashlib.sha256(str(seed).encode())
    for part in sorted(memo.values()):
        whole.update(part)
    return whole.hexdigest()


def _node_digest(node: Node, memo: Mapping[str, bytes]) -> bytes:
    mark = hashlib.sha256()
    mark.update(f"{node.op}|{'' if node.auto_named else node.name}|{node.device}|".encode())
    for key in sorted(node.attrs):
        mark.update(key.encode() + b"=")
        _update(mark, node.attrs[key])
    for tensor in node.inputs:
        # A stale node still holds inputs that left the graph.
        mark.update(memo.get(tensor.node.name, b"stale") + str(tensor.index).encode())
    for part in sorted(memo.get(c.name, b"stale") for c in node.control_inputs):
        mark.update(b"^" + part)
    return mark.digest()


def _update(mark: Any, value: Any) -> None:
    if isinstance(value, Digested):
        value.digest_into(mark)
    elif isinstance(value, np.ndarray):
        # By name: the text of bfloat16 is that of two raw bytes, and numpy gives no buffer of it.
        mark.update(f"{value.dtype.name}{value.shape}".encode())
        mark.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    elif isinstance(value, tuple):
        mark.update(b"(")
        for item in value:
            _update(mark, item)
        mark.update(b")")
    elif isinstance(value, np.dtype):
        mark.update(f"dtype:{value.name};".encode())
    elif isinstance(value, str):
        # Not its repr: which letters that escapes depends on the version of Python.
        text = value.encode("utf-8", "surrogatepass")
        mark.update(f"str:{len(text)}:".encode() + text + b";")
    else:
        plain = value.item() if isinstance(value, np.generic) else value  # as it comes back from bytes
        mark.update(f"{type(plain).__name__}:{plain!r};".encode())
