"""The cluster view: one row a worker."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import anywidget
import traitlets

from nbflow_widgets import picture
from nbflow_widgets.bundle import Bundle, Metadata, static_bundle, widget_bundle

_STATIC = pathlib.Path(__file__).parent / "static"


class ClusterView(anywidget.AnyWidget):
    """Workers as a table.

    A record has `worker` (`/job:worker/task:0`) and `state`, and where known `address`, `pid`, `devices` (list of str),
    `incarnation`, `versions` (dict), `rtt_ms`, `memory_bytes`, `cpu_percent`, `detail`; None means unknown.
    """

    _esm = _STATIC / "cluster.js"
    _css = _STATIC / "cluster.css"

    title = traitlets.Unicode().tag(sync=True)
    workers = traitlets.List(traitlets.Dict()).tag(sync=True)

    def __init__(self, records: Sequence[Mapping[str, Any]] = (), *, title: str = "") -> None:
        super().__init__(workers=_checked(records), title=title)

    def set_workers(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Replaces all rows. Call it from one thread; `Bridge.submit` has one."""
        self.workers = _checked(records)

    def png(self) -> bytes:
        return picture.cluster_png(self.title, self.workers)

    def static_bundle(self) -> tuple[Bundle, Metadata]:
        """(data, metadata) with the PNG and the text, without the widget."""
        return static_bundle(self)

    def __str__(self) -> str:
        rows = [picture.CLUSTER_COLUMNS, *picture.cluster_rows(self.workers)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(picture.CLUSTER_COLUMNS))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if not self.workers:
            table = ["no workers"]
        return "\n".join([self.title, *table] if self.title else table)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[Bundle, Metadata]:
        return widget_bundle(self, self.model_id)


def _checked(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    for record in records:
        if "worker" not in record or "state" not in record:
            raise ValueError(f"a worker's record needs `worker` and `state`, got {sorted(record)}")
    return [dict(record) for record in records]
