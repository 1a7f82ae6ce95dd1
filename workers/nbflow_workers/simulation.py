"""`nbflow simulate`."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import click

from nbflow.errors import NbflowError
from nbflow.graph import Graph, Node
from nbflow.simulate.asked import MESSAGE_US, Asked
from nbflow.simulate.plot import svg
from nbflow.simulate.zoo import ZOO, step_of


@click.command()
@click.argument("model", default="mlp")
@click.option(
    "-w",
    "--workers",
    default="64",
    show_default=True,
    metavar="N|N,N,…",
    help="How many; a single number also simulates the powers of two below it.",
)
@click.option("--ps", type=click.IntRange(0), metavar="N", help="Tasks that hold the variables; default: one for 8.")
@click.option(
    "--device",
    default="h100",
    show_default=True,
    metavar="MACHINE",
    help="A known machine, figures, or both: h100, op=1ms/link=1e9, a100/flops=1e14/bytes=1e12/latency=10us.",
)
@click.option("--ps-device", metavar="MACHINE", help="The ps tasks' machine; default: the workers'.")
@click.option(
    "--strategy",
    default="",
    metavar="STRATEGY",
    help="sync, ring, async, async:2 (2 steps apart at most), local:8 (an average every 8 steps); default: its own.",
)
@click.option(
    "--stragglers",
    default="",
    metavar="DISTRIBUTION",
    help="lognormal:0.1, exponential:0.2, pareto:3, slow:0.02,3 (probability, times slower), or several with +.",
)
@click.option(
    "--backups",
    default=0,
    type=click.IntRange(0),
    metavar="B",
    help="Instead of a curve: what 0 to B backup workers do at the largest number of workers.",
)
@click.option("--batch", type=click.IntRange(1), metavar="ROWS", help="Rows a worker and step; default: the model's.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Steps simulated for each point.")
@click.option("--seed", default=0, show_default=True, help="Of the stragglers.")
@click.option(
    "--message-us",
    default=MESSAGE_US,
    show_default=True,
    type=click.FloatRange(0),
    metavar="US",
    help="Microseconds that sending, and receiving, a tensor costs its host.",
)
@click.option("--one-at-a-time", is_flag=True, help="Each step is started when the last has ended, as by nf.run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.svg", help="Draw it too.")
def simulate(*, model: str, batch: int | None, as_json: bool, plot: Path | None, **asked: object) -> None:
    """Predict how the training of MODEL scales over machines that are only described.

    MODEL: mlp, inception-v3, transformer, or FILE.py:NAME, a training step that running FILE.py leaves under NAME. See
    docs/simulate.md for what is simulated and how far from measured figures it was.
    """
    if plot is not None and plot.suffix != ".svg":
        raise click.BadParameter(f"{plot} does not end in .svg, which is what is drawn", param_hint="--plot")
    try:
        if model in ZOO or ":" not in model:
            step, title = step_of(model, batch), model
        else:
            step, title = _from_file(model)
        found = Asked(rows=batch, **asked).answer(step, title)  # type: ignore[arg-type]  # click gives these types
        if plot is not None:
            plot.write_text(svg(found), encoding="utf-8")
    except (NbflowError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(found.to_json(), indent=1) if as_json else str(found))


def _from_file(text: str) -> tuple[Node, str]:
    path, _, name = text.rpartition(":")
    if not Path(path).is_file():
        raise click.ClickException(f"there is no file {path!r}")
    with Graph().as_default():
        found = runpy.run_path(path, run_name="__nbflow__").get(name)
    if not isinstance(found, Node):
        raise click.ClickException(f"{path} leaves no training step under {name!r} (what optimizer.minimize returns)")
    return found, f"{Path(path).name}:{name}"
