"""A small table for people: plain text everywhere, HTML where it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts under `columns`. `caption` stands above; `empty` is said when there are no rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    empty: str = "(none)"

    def __str__(self) -> str:
        lines = [self.caption] if self.caption else []
        if not self.rows:
            return "\n".join([*lines, self.empty])
        # The last column holds sentences; padding it would only break lines in narrow windows.
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns) - 1)]
        for row in (self.columns, *self.rows):
            cells = [text.ljust(width) for text, width in zip(row[:-1], widths, strict=True)]
            lines.append("  ".join([*cells, row[-1]]).rstrip())
        return "\n".join(lines)

    __repr__ = __str__

    def html(self) -> str:
        if not self.rows:
            return f"<p>{escape(self.caption)} {escape(self.empty)}</p>"
        caption = f'<caption style="text-align:left">{escape(self.caption)}</caption>' if self.caption else ""
        head = _html_row("th", self.columns)
        body = "".join(_html_row("td", row) for row in self.rows)
        return f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self.html()}


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="text-align:left">{escape(c)}</{tag}>' for c in cells) + "</tr>"
