"""What hooks, magics and displays ask of the current session and of the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from nbflow.current import current_session, optimization, placement
from nbflow.errors import GraphError
from nbflow.explain import PlacementTable
from nbflow.optimize import Report
from nbflow.trace import Trace
from nbflow_kernel.tracebacks import Acknowledged


def is_static() -> bool:
    """Whether no one will look while it runs: `NBFLOW_NONINTERACTIVE=1`. Then outputs hold pictures and text only."""
    return os.environ.get("NBFLOW_NONINTERACTIVE", "") not in ("", "0")


def drop_state(keys: Sequence[str]) -> None:
    """Lets workers free state that no op can reach any more."""
    if keys:
        current_session().drop_state(keys)


def placement_of(fetches: Any = None) -> PlacementTable:
    """The placement of `fetches`; None: of what ran last. Raises GraphError when nothing has run."""
    if fetches is not None:
        return placement(fetches)
    return current_session().placement()


def optimization_of(fetches: Any = None) -> Report:
    """What the passes do to a run of `fetches`; None: to what ran last. Raises GraphError when nothing has run."""
    if fetches is not None:
        return optimization(fetches)
    session = current_session()
    if session.last is None:
        raise GraphError("nothing has run yet; name what to look at, as in `%graph diff loss`")
    return session.optimization(session.last.keep)


def last_trace() -> Trace:
    """What the last traced step of the current graph did. Raises GraphError when none was traced."""
    trace = current_session().last_trace
    if trace is None:
        raise GraphError("nothing was traced yet; run a step with trace=True, as in nf.run(loss, trace=True)")
    return trace


def acknowledged() -> Sequence[Acknowledged]:
    """Who acknowledged that the last step, if it was cancelled, no longer runs."""
    return current_session().last_acknowledgements
