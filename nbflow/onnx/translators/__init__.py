"""What each ONNX operator becomes, a module a family. `register_all` fills the table of `nbflow.onnx.registry`."""

from __future__ import annotations

from importlib import import_module

FAMILIES = (
    "elementwise",
    "shapes",
    "reductions",
    "indexing",
    "matrices",
    "windows",
    "quantization",
    "recurrent",
    "sampling",
    "signals",
    "sequences",
    "random",
    "text",
    "normalization",
    "resizing",
    "control",
)


def register_all() -> None:
    """Imports every family; each registers its translators."""
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
