"""`nbflow install`, `nbflow export` and `nbflow run`, which the command line finds by entry point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from nbflow_kernel import headless
from nbflow_kernel.export import export as export_notebook
from nbflow_kernel.install import install as install_kernelspec


@click.command()
@click.option("--user", is_flag=True, help="For this user.")
@click.option("--sys-prefix", is_flag=True, help="In this Python environment (the default in a virtual one).")
@click.option("--prefix", metavar="FOLDER", help="Under this folder: FOLDER/share/jupyter/kernels/nbflow.")
def install(user: bool, sys_prefix: bool, prefix: str | None) -> None:
    """Install the Jupyter kernel "nbflow (Python 3)"."""
    try:
        where = install_kernelspec(user=user, prefix=prefix, sys_prefix=sys_prefix)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"kernel installed in {where}")


@click.command()
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: NOTEBOOK.html.")
def export(notebook: Path, output: Path | None) -> None:
    """Write NOTEBOOK, as it was last saved, as one interactive HTML file that needs no network."""
    target = output or notebook.with_suffix(".html")
    try:
        export_notebook(notebook, target)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{target} ({target.stat().st_size / 1024:.0f} KiB)")


@click.command()
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to save the executed notebook."
)
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="Set NAME before running.")
@click.option("--kernel", help="The kernel to use; default: the notebook's own.")
@click.option("--timeout", default=3600.0, show_default=True, help="Seconds that one cell may take.")
def run(notebook: Path, output: Path | None, parameters: tuple[str, ...], kernel: str | None, timeout: float) -> None:
    """Run NOTEBOOK from top to bottom without a browser, printing what happens."""
    try:
        values = dict(_parameter(p) for p in parameters)
        headless.run(notebook, output=output, parameters=values, kernel=kernel, timeout_s=timeout)
    except headless.CellError as error:
        raise click.ClickException(str(error)) from error
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"-p takes NAME=VALUE, with a Python name: {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # not JSON: a plain string, as papermill has it
