"""Fetches of any nesting: flattened to a list of tensors and nodes, and rebuilt with values in their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nbflow.errors import GraphError
from nbflow.graph import Node, Tensor

Leaf = Tensor | Node


def flatten(fetches: Any, leaf: Callable[[Any], Leaf] | None = None) -> tuple[list[Leaf], Callable[[list[Any]], Any]]:
    """The leaves, in order, and the function that puts values where they were.

    Lists, tuples (named ones too) and dicts nest; leaves are tensors, variables and nodes (whose value is None), and
    what `leaf` makes of everything else. Raises GraphError for anything else when there is no `leaf`.
    """
    leaves: list[Leaf] = []
    rebuild = _flatten(fetches, leaves, leaf or _no_leaf)
    return leaves, lambda values: rebuild(iter(values).__next__)


Next = Callable[[], Any]


def _flatten(value: Any, leaves: list[Leaf], leaf: Callable[[Any], Leaf]) -> Callable[[Next], Any]:
    if isinstance(value, (Tensor, Node)):
        leaves.append(value)
        return lambda following: following()
    if isinstance(value, Mapping):
        items = [(key, _flatten(item, leaves, leaf)) for key, item in value.items()]
        return lambda following: {key: rebuild(following) for key, rebuild in items}
    if isinstance(value, (list, tuple)):
        parts = [_flatten(item, leaves, leaf) for item in value]
        kind = type(value)
        if hasattr(kind, "_fields"):  # a named tuple takes its fields one by one
            return lambda following: kind(*[part(following) for part in parts])
        return lambda following: kind([part(following) for part in parts])
    convert = getattr(value, "to_tensor", None)
    if convert is not None and not isinstance(value, type):
        leaves.append(convert())
        return lambda following: following()
    leaves.append(leaf(value))
    return lambda following: following()


def _no_leaf(value: Any) -> Leaf:
    raise GraphError(
        f"cannot fetch {value!r}: fetch tensors, variables, ops, or lists, tuples and dicts of them"
        + (" (it is a value already)" if hasattr(value, "dtype") else "")
    )
