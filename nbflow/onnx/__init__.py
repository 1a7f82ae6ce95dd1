"""`nf.onnx`: models that others wrote, in and out. Needs the extra `nbflow[onnx]`.

`load` gives a model's graph as ordinary nodes; `save` writes a part of the graph as a model; `Backend` is what ONNX's
own test suite drives. Nothing here imports the package `onnx` before one of the names is used, so that `import nbflow`
works without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbflow.onnx.backend import Backend
    from nbflow.onnx.export import save
    from nbflow.onnx.importer import Model, load

__all__ = ["Backend", "Model", "load", "save"]

# Public name -> the module that has it.
_MODULES = {"Backend": "backend", "Model": "importer", "load": "importer", "save": "export"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"nf.onnx has no {name!r}; it has {', '.join(__all__)}")
    try:
        import_module("onnx")
    except ImportError as error:
        raise ImportError(f'nf.onnx.{name} needs the package onnx: pip install "nbflow[onnx]"') from error
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
