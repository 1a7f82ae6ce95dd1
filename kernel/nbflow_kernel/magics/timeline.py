"""`%timeline`: what the last traced step did, when and where; each transfer with its bytes and its time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from IPython.core.magic import line_magic, magics_class

from nbflow.trace import Trace
from nbflow_kernel.doors import last_trace
from nbflow_kernel.magics.base import Family, Parser


def timeline(*, width: int = 72, save: str = "") -> str:
    """The last traced step as text (`Trace.text`); `save`: a file for Perfetto too. Raises GraphError when there is
    none."""
    trace: Trace = last_trace()
    shown = trace.text(width)
    if save:
        path = Path(save)
        trace.save(path)
        shown += f"\n\nwritten to {path}; open it in https://ui.perfetto.dev or chrome://tracing"
    return shown


def _width(text: str) -> int:
    width = int(text)
    if not 10 <= width <= 1000:
        raise argparse.ArgumentTypeError(f"a lane has between 10 and 1000 characters, not {width}")
    return width


def _parser() -> Parser:
    parser = Parser(
        prog="%timeline",
        description="Shows the last step that was run with trace=True: a lane a device (█ computing, ░ waiting for a "
        "tensor),\nand the transfers and ops that took longest.",
    )
    parser.add_argument("-w", "--width", type=_width, default=72, metavar="N", help="characters of a lane")
    parser.add_argument("-s", "--save", default="", metavar="FILE", help="write the trace for Perfetto, JSON")
    return parser


_PARSER = _parser()


@magics_class
class TimelineMagics(Family):
    name = "timeline"

    @line_magic
    def timeline(self, line: str) -> None:
        arguments = _PARSER.parse_line(line)
        print(timeline(width=arguments.width, save=arguments.save))

    timeline.__doc__ = _PARSER.format_help()

    def complete(self, words: Sequence[str]) -> Sequence[str]:
        return ("--width", "--save")
