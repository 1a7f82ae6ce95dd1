"""Stages with several children: side by side, one after the other, in turns."""

from __future__ import annotations

from collections.abc import Sequence

from nbflow.data import blocks
from nbflow.data.blocks import Columns
from nbflow.data.stages import Epoch, Stage, State, values


class Zip(Stage):
    """Elements side by side, until the first child ends."""

    def __init__(self, children: Sequence[Stage]) -> None:
        super().__init__(*(values(c) for c in children))
        self._ended = False

    def restart(self, epoch: Epoch) -> None:
        self._ended = False
        for child in self.children:
            child.restart(epoch)

    def next(self, limit: int) -> Columns | None:
        if self._ended:
            return None
        found: list[Columns] = []
        for child in self.children:
            part = _exactly(child, limit)
            if part is None:
                self._ended = True
                return None
            # Whoever gives fewer has ended: the others are not asked again.
            self._ended |= blocks.length(part) < limit
            limit = blocks.length(part)
            found.append(part)
        return tuple(column for part in found for column in blocks.cut(part, 0, limit))

    def save(self) -> State:
        return {"ended": self._ended, "children": [c.save() for c in self.children]}

    def load(self, state: State) -> None:
        self._ended = state["ended"]
        for child, kept in zip(self.children, state["children"], strict=True):
            child.load(kept)


def _exactly(stage: Stage, count: int) -> Columns | None:
    """`count` elements, fewer at the end, None when there are none."""
    parts: list[Columns] = []
    while count:
        part = stage.next(count)
        if part is None:
            break
        parts.append(part)
        count -= blocks.length(part)
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else blocks.join(parts)


class Concatenate(Stage):
    """One child after the other."""

    def __init__(self, children: Sequence[Stage]) -> None:
        super().__init__(*(values(c) for c in children))
        self._number = 0

    def restart(self, epoch: Epoch) -> None:
        self._number = 0
        for child in self.children:
            child.restart(epoch)

    def next(self, limit: int) -> Columns | None:
        while self._number < len(self.children):
            block = self.children[self._number].next(limit)
            if block is not None:
                return block
            self._number += 1
        return None

    def save(self) -> State:
        return {"number": self._number, "children": [c.save() for c in self.children]}

    def load(self, state: State) -> None:
        self._number = state["number"]
        for child, kept in zip(self.children, state["children"], strict=True):
            child.load(kept)


class Interleave(Stage):
    """`cycle` children at a time, `block` elements of each in turn; one that ends is followed by the next."""

    def __init__(self, children: Sequence[Stage], cycle: int, block: int) -> None:
        super().__init__(*(values(c) for c in children))
        self._cycle, self._block = cycle, block
        self._begin()

    def _begin(self) -> None:
        self._slots: list[int | None] = list(range(min(self._cycle, len(self.children))))
        self._opened = len(self._slots)
        self._turn = 0
        self._left = self._block

    def restart(self, epoch: Epoch) -> None:
        self._begin()
        for child in self.children:
            child.restart(epoch)

    def next(self, limit: int) -> Columns | None:
        parts: list[Columns] = []
        while limit and any(s is not None for s in self._slots):
            slot = self._slots[self._turn]
            block = None if slot is None else self.children[slot].next(min(limit, self._left))
            if block is None:
                self._replace(slot)
                continue
            parts.append(block)
            limit -= blocks.length(block)
            self._left -= blocks.length(block)
            if not self._left:
                self._advance()
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else blocks.join(parts)

    def _replace(self, ended: int | None) -> None:
        """The next child takes the turn of one that ended; when there is none the turn passes on."""
        if ended is not None and self._opened < len(self.children):
            self._slots[self._turn] = self._opened
            self._opened += 1
            self._left = self._block
        else:
            self._slots[self._turn] = None
            self._advance()

    def _advance(self) -> None:
        self._turn = (self._turn + 1) % len(self._slots)
        self._left = self._block

    def save(self) -> State:
        return {
            "slots": list(self._slots),
            "opened": self._opened,
            "turn": self._turn,
            "left": self._left,
            "children": [c.save() for c in self.children],
        }

    def load(self, state: State) -> None:
        self._slots, self._opened = list(state["slots"]), state["opened"]
        self._turn, self._left = state["turn"], state["left"]
        for child, kept in zip(self.children, state["children"], strict=True):
            child.load(kept)
