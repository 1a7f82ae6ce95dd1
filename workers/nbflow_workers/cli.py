"""The command line: `nbflow worker`, and the commands that other rooms add through the group `nbflow.commands`."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
from pathlib import Path

# Before grpc is imported, as in `__init__`.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import click

from nbflow.errors import NbflowError
from nbflow_workers import worker as workers
from nbflow_workers.server import SESSION_LEASE_S

_GROUP = "nbflow.commands"
# Of this room, but more than a worker should import to start.
_OWN = (importlib.metadata.EntryPoint("simulate", "nbflow_workers.simulation:simulate", _GROUP),)


class Commands(click.Group):
    """Our own commands, and those of the entry point group `nbflow.commands`; most are loaded when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(e.name for e in _entries())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for entry in _entries():
            if entry.name == cmd_name:
                try:
                    command: click.Command = entry.load()
                except ImportError as error:
                    raise click.ClickException(
                        f"`nbflow {cmd_name}` needs a part that is not installed: {error}"
                    ) from None
                return command
        return None


def _entries() -> list[importlib.metadata.EntryPoint]:
    return [*_OWN, *importlib.metadata.entry_points(group=_GROUP)]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nbflow", prog_name="nbflow")
def nbflow() -> None:
    """A distributed dataflow runtime that lives in a notebook."""


@nbflow.command()
@click.option(
    "--listen", default="127.0.0.1:7077", show_default=True, metavar="HOST:PORT", help="Port 0 takes a free one."
)
@click.option("--job", default="worker", show_default=True, help="The job this worker is a task of.")
@click.option("--task", default=0, show_default=True, type=click.IntRange(0), help="Its number within the job.")
@click.option(
    "--devices",
    default="auto",
    show_default=True,
    metavar="auto|cpu|gpu:0|null@MACHINE",
    help="What it offers, with commas between. A null device computes nothing and takes the time of a described "
    "machine: null@h100, null@op=1ms/link=1e9 (docs/simulate.md).",
)
@click.option(
    "--spec-out",
    type=click.Path(path_type=Path),
    help="Write the cluster file (mode 0600) to attach by; makes a token, and beyond loopback a certificate.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the token from this file (mode 0600) instead of NBFLOW_TOKEN.",
)
@click.option(
    "--tls-cert",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificate chain, PEM, for the name nbflow-worker.",
)
@click.option(
    "--tls-key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its key, PEM (mode 0600)."
)
@click.option("--data-port", default=0, type=click.IntRange(0, 65535), help="Port for tensors; 0 takes a free one.")
@click.option(
    "--in-flight-mb",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    metavar="MB",
    help="MiB of tensors that may be under way to one peer before the sender waits.",
)
@click.option("--no-shm", is_flag=True, help="Send tensors by TCP to workers on this machine too.")
@click.option("--encrypt", is_flag=True, help="Encrypt what comes by TCP on loopback too, as between hosts.")
@click.option(
    "--advertise", default="", metavar="HOST", help="The name others reach this machine by, for the cluster file."
)
@click.option(
    "--keepalive",
    "keepalive_s",
    default=0.0,
    type=click.FloatRange(0),
    metavar="S",
    help="End after S seconds without a call; 0: never.",
)
@click.option(
    "--lease",
    "lease_s",
    default=SESSION_LEASE_S,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Forget a session, with its variables, S seconds after it was last used; a running loop uses it.",
)
@click.option(
    "--checkpoints",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    metavar="DIR",
    help="Let training runs write checkpoints below DIR, which they do without their notebook; else nowhere.",
)
@click.option("--orphan", "orphan_s", default=None, type=click.FloatRange(0), hidden=True)
@click.option("--outlive", is_flag=True, hidden=True)
@click.option(
    "--allow-python",
    is_flag=True,
    help="Let notebooks run any Python code here. Whoever has the token then has a shell.",
)
@click.option("--verbose", is_flag=True, help="Log more.")
def worker(*, verbose: bool, **flags: object) -> None:
    """Serve plans: listen for notebooks, until SIGTERM.

    A token is always required: set NBFLOW_TOKEN, or give --token-file or --spec-out. Beyond loopback TLS is too. Prints
    one line, NBFLOW-READY and JSON, when it listens.
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        workers.run(workers.Options(**flags))  # type: ignore[arg-type]  # click gives the types declared above
    except (NbflowError, OSError) as error:
        raise click.ClickException(str(error)) from None


def main() -> None:
    """The console script."""
    nbflow(prog_name="nbflow")
