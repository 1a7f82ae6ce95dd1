"""A connection's life, as a table. No I/O: `client.py` feeds it what happened and acts on where that leads.

                 open            opened          broke           close           closed
    new          opening                                         closed
    opening                      open            lost            closing
    open                                         lost            closing
    closing                                      closing         closing         closed
    lost                                         lost            closed
    closed                                       closed          closed          closed

`lost` is final for a connection: the session may still live on the worker, and a new connection can join it. Whatever
the table does not have is a programming error, and raises.
"""

from __future__ import annotations

from typing import Literal

State = Literal["new", "opening", "open", "closing", "lost", "closed"]
Happening = Literal["open", "opened", "broke", "close", "closed"]

TABLE: dict[State, dict[Happening, State]] = {
    "new": {"open": "opening", "close": "closed"},
    "opening": {"opened": "open", "broke": "lost", "close": "closing"},
    "open": {"broke": "lost", "close": "closing"},
    "closing": {"broke": "closing", "close": "closing", "closed": "closed"},
    "lost": {"broke": "lost", "close": "closed"},
    "closed": {"broke": "closed", "close": "closed", "closed": "closed"},
}
# In these, steps may be sent.
USABLE: frozenset[State] = frozenset({"opening", "open"})


def after(state: State, happening: Happening) -> State:
    """The state that follows. Raises RuntimeError for what cannot happen in `state`."""
    found = TABLE[state].get(happening)
    if found is None:
        raise RuntimeError(f"a connection that is {state} cannot see {happening!r}")
    return found
