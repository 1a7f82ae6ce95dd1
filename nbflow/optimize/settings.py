"""Which passes run: by a session's own choice, else those set for the process, else those of `NBFLOW_PASSES`.

A choice is a sequence of names, or a text: `cse,fold` (only these), `-cse` (the usual ones without it), `+matmul` (and
it), `all` (the usual ones), `none`. Terms apply from left to right.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nbflow.errors import GraphError

# In the order in which they run. The second part: they change the last bits of results, so they are off by default.
EXACT = ("trim", "fold", "simplify", "transposes", "cse", "schedule")
INEXACT = ("power", "layout", "matmul")
ORDER = ("trim", "fold", "simplify", "power", "layout", "transposes", "matmul", "cse", "schedule")

VARIABLE = "NBFLOW_PASSES"

Choice = str | Sequence[str] | None

_lock = threading.Lock()
_set: tuple[str, ...] | None = None


def chosen(passes: Choice = None) -> tuple[str, ...]:
    """The passes to run, in their order. None: those set by `set_passes`, else by the environment, else the exact
    ones. Raises GraphError for a name that no pass has."""
    if passes is not None:
        return parse(passes)
    return _set if _set is not None else _parse_text(os.environ.get(VARIABLE, ""))


@functools.lru_cache(maxsize=8)
def _parse_text(passes: str) -> tuple[str, ...]:
    return parse(passes)  # every run asks for it


def parse(passes: str | Sequence[str]) -> tuple[str, ...]:
    """A choice as names in the order in which they run."""
    terms = [t.strip() for t in passes.split(",") if t.strip()] if isinstance(passes, str) else list(passes)
    # A text that only adds and removes starts from the usual ones, as an empty one does.
    relative = isinstance(passes, str) and all(t[0] in "+-" for t in terms)
    found = set(EXACT) if relative else set()
    for term in terms:
        name = term.lstrip("+-")
        if term == "all":
            found |= set(EXACT)
        elif term == "none":
            found = set()
        elif name not in ORDER:
            raise GraphError(f"no pass is called {name!r}; there are {', '.join(ORDER)}, and 'all' and 'none'")
        elif term.startswith("-"):
            found.discard(name)
        else:
            found.add(name)
    return tuple(name for name in ORDER if name in found)


def set_passes(passes: Choice) -> tuple[str, ...]:
    """Chooses the passes for all sessions of this process that have no choice of their own; None: the usual ones.

    Returns the names of the passes that run from now on. Runs that are prepared already stay as they are, but are
    prepared anew when they are asked for with other passes.
    """
    global _set
    with _lock:
        _set = None if passes is None else parse(passes)
    return chosen()


@contextmanager
def disabled(*names: str) -> Iterator[tuple[str, ...]]:
    """Without the passes `names` inside; all of them when none is named. For all threads of the process."""
    global _set
    with _lock:
        before = _set
    left = set(chosen()) - set(parse(names)) if names else set()
    set_passes(tuple(left))
    try:
        yield chosen()
    finally:
        with _lock:
            _set = before
