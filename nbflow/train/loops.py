"""The loops of a run: which run now, how far each is, and whether those that count have ended. A table; no I/O, no
threads, no lock: the run has one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from nbflow.events import RunState
from nbflow.train.planning import Member
from nbflow.transport import Loop

ENDED = ("done", "stopped", "failed")


class Loops:
    """The loops of `members`, which run in stretches: all together, from one halt to the next."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self.progress = [m.loop.first - 1 for m in members]  # steps done, a member
        self.stretch = 0
        self._running: dict[str, tuple[int, Loop]] = {}  # loop id -> member, loop
        self._states: dict[str, RunState] = {}

    # --- how far they are ---------------------------------------------------------------------------------------------

    @property
    def counted(self) -> list[int]:
        """The steps done by each member whose steps count."""
        return [done for done, m in zip(self.progress, self.members, strict=True) if m.counts]

    @property
    def states(self) -> list[tuple[Loop, RunState]]:
        """What the loops that count said last, of those that said anything in this stretch."""
        found = {k: loop for k, (n, loop) in self._running.items() if self.members[n].counts}
        return [(loop, self._states[k]) for k, loop in found.items() if k in self._states]

    @property
    def over(self) -> bool:
        """Whether all that count have ended. Nobody waits for one that only gives to others: it may be stuck."""
        count = sum(self.members[n].counts for n, _ in self._running.values())
        ended = [state for _, state in self.states if state.status in ENDED]
        return len(ended) == count

    @property
    def early(self) -> bool:
        """Whether one has ended by itself before its last step: its data did."""
        return any(s.status == "done" and s.step < loop.first + loop.steps - 1 for loop, s in self.states)

    @property
    def detail(self) -> str:
        """The first thing that one had to say."""
        return next((s.detail for _, s in self.states if s.detail), "")

    def running(self, *, everyone: bool) -> list[tuple[str, str]]:
        """Leader and id of each loop that runs; without `everyone`, of those that count."""
        return [
            (self.members[n].leader, loop.id)
            for n, loop in self._running.values()
            if everyone or self.members[n].counts
        ]

    # --- what happens to them -----------------------------------------------------------------------------------------

    def begin(self, end: Callable[[Member, int], int] | None, without: Collection[str]) -> list[tuple[Member, Loop]]:
        """The loops of the next stretch, but those led by `without`. `end`: the step up to which a member that counts
        runs, from the steps that it has done; None: each to its end, in the only stretch."""
        self._states, self._running = {}, {}
        for index, member in enumerate(self.members):
            done = self.progress[index]
            if done < member.last and member.leader not in without:
                loop = member.loop if end is None else self._next(member, done, end)
                self._running[loop.id] = (index, loop)
        self.stretch += 1
        return [(self.members[index], loop) for index, loop in self._running.values()]

    def _next(self, member: Member, done: int, end: Callable[[Member, int], int]) -> Loop:
        last = end(member, done) if member.counts else member.last
        # A loop's id names its lane and its steps, which workers remember: never used twice.
        return replace(member.loop, id=f"{member.loop.id}.{self.stretch}", first=done + 1, steps=last - done)

    def adopt(self) -> None:
        """They run already, started by another process."""
        if not self._running:
            self._running = {m.loop.id: (index, m.loop) for index, m in enumerate(self.members)}

    def follow(self, loop_id: str) -> None:
        """Where this is a later stretch of an adopted loop, goes on with that."""
        base, _, stretch = loop_id.partition(".")
        for known, (index, loop) in list(self._running.items()):
            if known.partition(".")[0] == base and int(stretch or 0) > int(known.partition(".")[2] or -1):
                del self._running[known]
                self._running[loop_id] = (index, replace(loop, id=loop_id))
                return

    def drop(self, leader: str) -> None:
        """Nobody hears of the loops of `leader` any more."""
        for loop_id in [k for k, (n, _) in self._running.items() if self.members[n].leader == leader]:
            del self._running[loop_id]
            self._states.pop(loop_id, None)

    def note(self, event: RunState) -> Member | None:
        """A loop said something; whose it is, when it runs and had not said something newer."""
        before = self._states.get(event.loop)
        if event.loop not in self._running or (before is not None and before.wall_s > event.wall_s):
            return None  # another stretch's, or read after what was heard
        self._states[event.loop] = event
        index = self._running[event.loop][0]
        self.progress[index] = max(self.progress[index], event.step)
        return self.members[index]

    def replace(self, members: Sequence[Member]) -> None:
        """The run goes on with these."""
        self.members = list(members)
        self.progress = [m.loop.first - 1 for m in members]
        self._states, self._running = {}, {}

    def release(self) -> None:
        """The workers may free their plans, but those of loops that nobody waits for, which have yet to say goodbye."""
        self.members = [replace(m, plans=() if m.counts else m.plans, opening=None) for m in self.members]
