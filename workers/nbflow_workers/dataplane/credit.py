"""How much may be under way to a peer: credit, as in HTTP/2 (RFC 9113, section 5.2). No I/O, no threads.

The sender has a `Window`: what it sent and what is not freed at the other end yet stays below a limit. The receiver has
an `Account` for each peer: memory of tensors that came, which is told back as credit when the last array on it is gone.

A tensor that finds no room waits at the sender, which says so (`stalled`). The receiver lets it come all the same
(`granted`) when a program of that step has nothing to do but wait, for an arrival or for credit of its own. So the
limit never stops a step: take the first unfinished step of a lane. Whoever of its programs is not at work is waiting,
so all that is held back for those comes; what is left to wait for is what would be waited for without any limit. The
price: while a step can do nothing else, one tensor a sender at a time may come beyond the limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

# Per peer and session. A tensor larger than this goes alone.
WINDOW_BYTES = 256 * 2**20
# What the smallest tensor counts: its array, and its place in the rendezvous.
LEAST_BYTES = 512
# Credit is told back when this much, or so many tensors, are free: each time costs a message.
CREDIT_BYTES = 4 * 2**20
CREDIT_TENSORS = 64


def charge(nbytes: int) -> int:
    """What a tensor of `nbytes` counts."""
    return max(nbytes, LEAST_BYTES)


class Window:
    """The sender's side. Not safe by itself: its owner holds a lock. `news`: how often credit came."""

    __slots__ = ("limit", "news", "used")

    def __init__(self, limit: int = WINDOW_BYTES) -> None:
        self.limit = limit
        self.used = 0
        self.news = 0

    def take(self, nbytes: int, *, granted: bool = False) -> bool:
        """Room for a tensor that counts `nbytes`; False when it must wait."""
        if self.used and self.used + nbytes > self.limit and not granted:
            return False
        self.used += nbytes
        return True

    def give(self, nbytes: int) -> None:
        """Credit came. A peer that gives more than it was sent gets no further than an empty window."""
        self.used = max(0, self.used - nbytes)
        self.news += 1


class Account:
    """The receiver's side, for one peer. `wake(self)` is called when there is credit to tell; from any thread, and
    from finalizers, which can run at any moment: it must not take a lock."""

    __slots__ = ("_freed", "_known", "_taken", "_wake", "impatient")

    def __init__(self, wake: Callable[[Account], None]) -> None:
        self._wake = wake
        # Finalizers only append: that is atomic, and cannot wait for whatever they interrupted.
        self._freed: deque[int] = deque()
        self._taken = 0
        self._known = 0
        self.impatient = False  # the peer waits for credit: tell it at once

    def took(self, nbytes: int) -> None:
        """A tensor that counts `nbytes` came. Called from the one thread that receives."""
        self._taken += nbytes

    def free(self, nbytes: int) -> None:
        """A tensor is gone. Safe in finalizers."""
        self._freed.append(nbytes)
        if self.impatient or nbytes >= CREDIT_BYTES or len(self._freed) >= CREDIT_TENSORS:
            self._wake(self)

    def settle(self) -> int:
        """The credit to tell now; called from one thread at a time."""
        total = 0
        while self._freed:
            total += self._freed.popleft()
        self._known += total
        return total

    def held(self) -> int:
        """Bytes that came and are not free yet."""
        return self._taken - self._known - sum(tuple(self._freed))
