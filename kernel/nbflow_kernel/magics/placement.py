"""`%placement`: where each op ran, what was asked, and why it went there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from IPython.core.magic import line_magic, magics_class

from nbflow.explain import cells
from nbflow_kernel.doors import placement_of
from nbflow_kernel.magics.base import Family, Parser
from nbflow_kernel.table import Table


def placement(fetches: Any = None) -> Table:
    """The placement of `fetches`; None: of what ran last. Raises GraphError when nothing has run."""
    found = placement_of(fetches)
    return as_table(found, found.links)


def as_table(rows: Iterable[Any], links: str = "") -> Table:
    found = []
    count: dict[str, int] = {}
    for row in rows:
        found.append(cells(row))
        count[row.actual] = count.get(row.actual, 0) + 1
    caption = f"{len(found)} ops: " + ", ".join(f"{n} on {device}" for device, n in sorted(count.items()))
    caption += f"; links: {links}" if links else ""
    head = ("op", "asked", "actual", "predicted", "measured", "why")
    return Table(head, tuple(found), caption, "nothing to place")


def _parser() -> Parser:
    parser = Parser(prog="%placement", description="Shows the device of each op, the one asked for, and the reason.")
    parser.add_argument("names", nargs="*", help="Python names of tensors, or names of ops; without: what ran last")
    return parser


_PARSER = _parser()


@magics_class
class PlacementMagics(Family):
    name = "placement"

    @line_magic
    def placement(self, line: str) -> Table:
        names = _PARSER.parse_line(line).names
        return placement([self.find(name) for name in names] if names else None)

    placement.__doc__ = _PARSER.format_help()

    def complete(self, words: Sequence[str]) -> Sequence[str]:
        return self.names_of_tensors()
