"""`%cluster`: workers started, found, looked at and ended from a cell."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class
from IPython.display import publish_display_data

from nbflow.current import get_cluster
from nbflow.simulate.asked import MESSAGE_US, Asked
from nbflow_kernel import clusters, simulation
from nbflow_kernel.clusters import CLUSTERS
from nbflow_kernel.doors import is_static
from nbflow_kernel.magics.base import Family, Parser

_DESCRIPTION = "Workers for this notebook. Without a verb: how they are."


def _parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(prog="%cluster", description=_DESCRIPTION)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    made: dict[str, Parser] = {}

    def verb(name: str, text: str) -> Parser:
        made[name] = verbs.add_parser(name, help=text, description=text)
        return made[name]

    up = verb("up", "start workers; again: reuse them, or change their number")
    up.add_argument("engine", nargs="?", default="local", help="what starts them (default: local)")
    up.add_argument("-w", "--workers", type=int, default=2, metavar="N", help="tasks of job worker (default: 2)")
    up.add_argument("--ps", type=int, default=0, metavar="N", help="tasks of job ps, which hold variables (default: 0)")
    up.add_argument("--gpus", type=int, default=0, metavar="N", help="that many workers get one GPU each")
    up.add_argument("--name", default="", help="default: the engine's")
    up.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds to wait (default: 60)")
    attach = verb("attach", "use workers that run already")
    attach.add_argument("addresses", nargs="?", default="", metavar="HOST:PORT[,…]")
    attach.add_argument("--spec", metavar="FILE", help="a cluster file (%%cluster save, nbflow worker --spec-out)")
    attach.add_argument("--token-env", metavar="NAME", help="the variable with the token (default: NBFLOW_TOKEN)")
    attach.add_argument("--ca", metavar="FILE", help="the certificates to trust, PEM")
    attach.add_argument("--name", default="")
    attach.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds to wait (default: 10)")
    verb("use", "make another known cluster the current one").add_argument("name")
    scale = verb("scale", "start or end workers")
    scale.add_argument("-w", "--workers", type=int, required=True, metavar="N")
    verb("ps", "the workers: state, address, memory, steps")
    verb("devices", "their devices")
    logs = verb("logs", "the end of what a worker wrote")
    logs.add_argument("-t", "--task", required=True, metavar="worker:0")
    logs.add_argument("-n", "--lines", type=int, default=50, metavar="N")
    verb("save", "write the file that `attach --spec` reads").add_argument("file")
    simulate = verb("simulate", "what a training step would take on machines that are only described")
    simulate.add_argument("step", nargs="?", default="", help="the step (default: the last one built)")
    simulate.add_argument("-w", "--workers", default="64", metavar="N|N,N,…", help="how many (default: 64)")
    simulate.add_argument("--ps", type=int, metavar="N", help="tasks that hold variables (default: one for 8 workers)")
    simulate.add_argument("--device", default="h100", metavar="MACHINE", help="h100, op=1ms/link=1e9 … (default: h100)")
    simulate.add_argument("--ps-device", metavar="MACHINE", help="default: the workers'")
    simulate.add_argument(
        "--strategy", default="", metavar="S", help="sync, ring, async, async:2, local:8; default: the step's"
    )
    simulate.add_argument(
        "--stragglers", default="", metavar="D", help="lognormal:0.1, slow:0.02,3 … (with +: several)"
    )
    simulate.add_argument("--backups", type=int, default=0, metavar="B", help="what 0 to B backup workers do")
    simulate.add_argument("--rows", type=int, metavar="N", help="rows a worker and step, where that is open")
    simulate.add_argument("--steps", type=int, metavar="N", help="steps simulated for each point")
    simulate.add_argument("--seed", type=int, default=0, metavar="N")
    simulate.add_argument(
        "--message-us", type=float, default=MESSAGE_US, metavar="US", help="of a host for each tensor"
    )
    verb("detach", "leave the workers alive and forget them")
    down = verb("down", "end the workers that were started here")
    down.add_argument("--everyone", action="store_true", help="also those attached to, with everybody's runs on them")
    return parser, made


_PARSER, _VERBS = _parser()


@magics_class
class ClusterMagics(Family):
    name = "cluster"

    @line_magic
    def cluster(self, line: str) -> Any:
        arguments = _PARSER.parse_line(line)
        verb = arguments.verb or "status"
        return getattr(self, f"_{verb}")(arguments)

    cluster.__doc__ = "\n".join([_PARSER.format_help(), *(p.format_help() for p in _VERBS.values())])

    def _status(self, arguments: argparse.Namespace) -> None:
        if get_cluster() is None:
            print("no cluster: everything runs in this process; `%cluster up local -w 2` starts workers")
            return
        # The widgets take a while to import, and a kernel that only computes needs none.
        from nbflow_widgets import ClusterView

        cluster = CLUSTERS.current()
        view = ClusterView(clusters.records(cluster), title=f"cluster {cluster.name!r}")
        data, metadata = view.static_bundle() if is_static() else view._repr_mimebundle_()
        publish_display_data(data, metadata=metadata)

    def _up(self, arguments: argparse.Namespace) -> Any:
        wanted = arguments
        return CLUSTERS.up(
            wanted.engine, wanted.workers, wanted.ps, gpus=wanted.gpus, name=wanted.name, timeout_s=wanted.timeout
        )

    def _attach(self, arguments: argparse.Namespace) -> Any:
        token = None
        if arguments.token_env:
            token = os.environ.get(arguments.token_env)
            if not token:
                raise UsageError(f"the environment variable {arguments.token_env} is not set")
        return CLUSTERS.attach(
            [a for a in arguments.addresses.split(",") if a],
            spec=arguments.spec,
            token=token,
            ca=arguments.ca,
            name=arguments.name,
            timeout_s=arguments.timeout,
        )

    def _use(self, arguments: argparse.Namespace) -> Any:
        return CLUSTERS.use(arguments.name)

    def _scale(self, arguments: argparse.Namespace) -> Any:
        return CLUSTERS.scale(arguments.workers)

    def _ps(self, arguments: argparse.Namespace) -> Any:
        return CLUSTERS.ps()

    def _devices(self, arguments: argparse.Namespace) -> Any:
        return CLUSTERS.devices()

    def _logs(self, arguments: argparse.Namespace) -> None:
        print(CLUSTERS.logs(arguments.task, arguments.lines))

    def _save(self, arguments: argparse.Namespace) -> None:
        CLUSTERS.save(arguments.file)

    def _simulate(self, arguments: argparse.Namespace) -> None:
        given = {k: v for k, v in vars(arguments).items() if k not in ("verb", "step")}
        found = simulation.answer(Asked(**given), self.find(arguments.step) if arguments.step else None)
        data, metadata = simulation.bundle(found)
        publish_display_data(data, metadata=metadata)
        print(found)

    def _detach(self, arguments: argparse.Namespace) -> None:
        CLUSTERS.detach()

    def _down(self, arguments: argparse.Namespace) -> None:
        CLUSTERS.down(everyone=arguments.everyone)

    def complete(self, words: Sequence[str]) -> Sequence[str]:
        if not words:
            return tuple(_VERBS)
        if words[-1] in ("-t", "--task") and get_cluster() is not None:
            return [f"{r.job}:{r.task}" for r in CLUSTERS.current().workers()]
        if words == ["up"]:
            return CLUSTERS.engines()
        if words == ["use"]:
            return tuple(CLUSTERS.known)
        options = _VERBS[words[0]]._actions if words[0] in _VERBS else ()
        return [option for action in options for option in action.option_strings]
