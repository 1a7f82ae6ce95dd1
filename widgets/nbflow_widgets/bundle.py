"""What every view gives to a notebook: a live widget, a PNG and a text.

Never SVG or HTML: GitHub, nbviewer and untrusted notebooks prefer them to the PNG and then strip or break them.
"""

from __future__ import annotations

import base64
import struct
from typing import Any, Protocol

Bundle = dict[str, Any]
Metadata = dict[str, dict[str, int]]


class Pictured(Protocol):
    """A view with a picture and a short text."""

    def png(self) -> bytes: ...

    def __str__(self) -> str: ...


def static_bundle(view: Pictured) -> tuple[Bundle, Metadata]:
    """(data, metadata) without the widget, for headless runs. The PNG has two pixels a point."""
    png = view.png()
    # The width and height stand at fixed places in a PNG's first chunk.
    width, height = struct.unpack(">II", png[16:24])
    data = {"image/png": base64.b64encode(png).decode("ascii"), "text/plain": str(view)}
    return data, {"image/png": {"width": width // 2, "height": height // 2}}


def widget_bundle(view: Pictured, model_id: str) -> tuple[Bundle, Metadata]:
    """(data, metadata) of a live widget and everything that stands in for it elsewhere."""
    data, metadata = static_bundle(view)
    reference = {"version_major": 2, "version_minor": 0, "model_id": model_id}
    return {"application/vnd.jupyter.widget-view+json": reference, **data}, metadata
