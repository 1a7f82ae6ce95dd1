"""A notebook as one HTML file that needs no network: widgets live from their saved state, pictures where they cannot.

`nbflow export`, `jupyter nbconvert --to nbflow_html`, or `export(notebook, target)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nbconvert.exporters.html import HTMLExporter
from traitlets import default

from nbflow_kernel.headless import read

TEMPLATES = Path(__file__).resolve().parent / "templates"


class OfflineExporter(HTMLExporter):
    """nbconvert's HTML exporter with the template `templates/nbflow`."""

    export_from_notebook = "HTML (interactive, offline)"

    @default("template_name")
    def _template_name_default(self) -> str:
        return "nbflow"

    @default("extra_template_basedirs")
    def _extra_template_basedirs_default(self) -> list[str]:
        return [str(TEMPLATES)]

    def _init_resources(self, resources: Any) -> Any:
        made = super()._init_resources(resources)
        # The template uses none of these; empty, so that one that extends it cannot fetch them unawares.
        made.update(require_js_url="", mathjax_url="", mermaid_js_url="", jquery_url="", jupyter_widgets_base_url="")
        return made


def export(notebook: Path, target: Path) -> Path:
    """Writes `notebook`, as saved, to `target`. Raises ValueError for a file that is no notebook, OSError."""
    return export_document(read(notebook), target, title=notebook.stem)


def export_document(document: Any, target: Path, *, title: str) -> Path:
    """Writes a notebook that is in memory."""
    body, _ = OfflineExporter().from_notebook_node(document, resources={"metadata": {"name": title}})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(body, encoding="utf-8")
    return target
