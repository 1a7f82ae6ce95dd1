"""Which cell this is, which Python names mean which tensors, and what a run changed, in words. No IPython here.

A cell is known by the id its notebook gave it; failing that by the name in its first line (`%%graph NAME`); failing
that by its text. By its text, a person who runs the same text again re-runs the cell; a headless runner goes through
a notebook once, so the same text met again is another cell.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, NoReturn

from nbflow.graph import Node, Tensor
from nbflow.owner import Change, Owner

HEADER = "%%graph"
# Longer containers hold data, not the handful of tensors a person gave names to.
MAX_CONTAINER = 200


class UsageError(ValueError):
    """A magic's line cannot be parsed; the message is its usage."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first line `%%graph [NAME] [--reinit] [--replace]` of a cell."""

    name: str = ""
    reinit: bool = False
    replace: bool = False


class HeaderParser(argparse.ArgumentParser):
    """Raises UsageError instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


def header_parser() -> HeaderParser:
    parser = HeaderParser(prog=HEADER, add_help=False, description="Gives the ops of this cell a name to belong to.")
    parser.add_argument("name", nargs="?", default="", help="what the cell is called where the notebook has no ids")
    parser.add_argument("--reinit", action="store_true", help="variables start anew, even the unchanged ones")
    parser.add_argument("--replace", action="store_true", help="take over names that another cell defines")
    return parser


def parse_header(source: str) -> Header | None:
    """The header of a cell, or None when it has none. Raises UsageError for one that cannot be read."""
    first = source.lstrip().split("\n", 1)[0].rstrip()
    words = first.split(maxsplit=1)
    if not words or words[0] != HEADER:
        return None
    try:
        arguments = shlex.split(words[1]) if len(words) > 1 else []
    except ValueError as error:
        raise UsageError(f"{error}\n{header_parser().format_usage().strip()}") from None
    parsed = header_parser().parse_args(arguments)
    return Header(parsed.name, parsed.reinit, parsed.replace)


def without_header(lines: list[str]) -> list[str]:
    """The lines of a cell without a readable `%%graph` header, every other line where it was.

    A header that cannot be read stays, for the magic itself to complain about.
    """
    source = "".join(lines)
    try:
        if parse_header(source) is None:
            return lines
    except UsageError:
        return lines
    at = next(i for i, line in enumerate(lines) if line.strip())
    return [*lines[:at], "\n", *lines[at + 1 :]]


# --- identity --------------------------------------------------------------------------------------------------------


def normalised(source: str) -> str:
    """`source` without what does not change its meaning: trailing blanks, blank lines around it, line ends."""
    return "\n".join(line.rstrip() for line in source.strip().splitlines())


class Identities:
    """Gives each run of a cell its owner."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def identify(self, source: str, *, cell_id: str | None, number: int | None, headless: bool = False) -> Owner:
        """The owner of the cell `source`; `number` is the n of `In[n]`, None where there is none.

        Raises UsageError for a header that cannot be read.
        """
        header = parse_header(source) or Header()
        label = f"In[{number}]" if number is not None else "the running cell"
        if header.name:
            label = f"{label} ({header.name})"
        if cell_id:
            return Owner(f"cell:{cell_id}", label)
        if header.name:
            return Owner(f"name:{header.name}", label)
        text = hashlib.sha256(normalised(source).encode()).hexdigest()[:16]
        ordinal = self._seen.get(text, -1) + 1 if headless else 0
        self._seen[text] = ordinal
        return Owner(f"text:{text}:{ordinal}", label)


# --- Python names ----------------------------------------------------------------------------------------------------


def tensor_of(value: object) -> Tensor | None:
    """The tensor that a Python value stands for: itself, or a variable's handle. Never builds an op."""
    if isinstance(value, Tensor):
        return value
    handle = getattr(value, "handle", None) if hasattr(type(value), "to_tensor") else None
    return handle if isinstance(handle, Tensor) else None


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and len(value) <= MAX_CONTAINER:
        yield from ((f"[{key!r}]", item) for key, item in list(value.items()))
    elif isinstance(value, list | tuple) and len(value) <= MAX_CONTAINER:
        yield from ((f"[{index}]", item) for index, item in enumerate(value))


def _is_hidden(name: str) -> bool:
    return name.startswith("_") or name in ("In", "Out")


def bindings(namespace: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the user's names mean: `loss`, and one level into dicts, lists and tuples, `batch['x']`."""
    found: dict[str, Tensor] = {}
    for name, value in list(namespace.items()):
        if _is_hidden(name):
            continue
        tensor = tensor_of(value)
        if tensor is not None:
            found[name] = tensor
            continue
        for key, item in _parts(value):
            inner = tensor_of(item)
            if inner is not None:
                found[name + key] = inner
    return found


def nodes_of(value: object) -> list[Node]:
    """The nodes that a Python value holds, itself or one level down."""
    items = [value, *(item for _, item in _parts(value))]
    nodes = [item for item in items if isinstance(item, Node)]
    return nodes + [t.node for t in map(tensor_of, items) if t is not None]


def snapshot(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The values that hold nodes, to give back when the cell fails."""
    return {name: value for name, value in list(namespace.items()) if not _is_hidden(name) and nodes_of(value)}


def restore(
    namespace: MutableMapping[str, Any], before: Mapping[str, Any], is_gone: Callable[[Node], bool]
) -> list[str]:
    """Gives names that now hold nodes of the failed run the values they had; returns those names.

    A name that did not exist before keeps its useless value: using it explains itself, a NameError would not.
    """
    restored = []
    for name, value in before.items():
        now = namespace.get(name)
        if now is not value and any(is_gone(node) for node in nodes_of(now)):
            namespace[name] = value
            restored.append(name)
    return restored


# --- in words --------------------------------------------------------------------------------------------------------


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _join(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def summary(change: Change) -> str:
    """One line about a cell's run: `graph: +12 −3 ~1 ops, 4 variables (2 kept, 1 reset)`. Empty for nothing."""
    if not (change.added or change.removed or change.changed or change.unchanged or change.stale):
        return ""
    counts = [
        f"{sign}{len(names)}"
        for sign, names in (("+", change.added), ("−", change.removed), ("~", change.changed))
        if names
    ]
    if not counts and change.unchanged:
        counts.append(f"{len(change.unchanged)} unchanged")
    total = len(change.added) + len(change.removed) + len(change.changed) or len(change.unchanged)
    parts = [f"graph: {' '.join(counts)} {'op' if total == 1 else 'ops'}"]
    if change.variables:
        fates = [
            f"{len(names)} {word}"
            for word, names in (("kept", change.kept_variables), ("reset", change.reset_variables))
            if names
        ]
        parts.append(_count(len(change.variables), "variable") + (f" ({', '.join(fates)})" if fates else ""))
    if change.replaced_cells:
        parts.append(f"took over from {_join([owner.label for owner in change.replaced_cells])}")
    if change.stale_cells:
        cells = [owner.label for owner in change.stale_cells]
        parts.append(f"stale: {_join(cells)} — run {'it' if len(cells) == 1 else 'them'} again")
    return ", ".join(parts)


def failure(owner: Owner, made: int, *, had: bool, restored: list[str]) -> str:
    """What to say about a cell that raised after building `made` ops. `had`: it has ops from an earlier run."""
    if had:
        names = f" ({', '.join(restored)} as before)" if restored else ""
        return f"graph: unchanged; {owner.label} failed, so its ops from the last run stay{names}"
    return f"graph: unchanged; {owner.label} failed, and what it had built ({_count(made, 'op')}) is gone"
