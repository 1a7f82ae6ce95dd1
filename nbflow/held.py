"""What the workers hold for a session: where each value lies, which variables are in pieces, and what was lost."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nbflow.device import DeviceSpec
from nbflow.errors import WorkerLost
from nbflow.graph import Graph
from nbflow.parallel import piece_name
from nbflow.placement import HOLDERS, Placed
from nbflow.prepare import state_key


@dataclass(frozen=True, slots=True)
class _Lost:
    """A value that went with the worker at `home`; should that come back with the same `life`, it is still there.
    `told`: the user knows."""

    home: DeviceSpec
    life: str
    told: bool = False


class Held:
    """State keys (`prepare.state_key`), and what is known of the value of each. No lock: the session has one."""

    def __init__(self) -> None:
        self.homes: dict[str, DeviceSpec] = {}  # key -> where it lives
        self.splits: dict[str, tuple[int, ...]] = {}  # key of a variable in pieces -> the rows of each
        self.initialised: set[str] = set()
        self.version = 0  # changes with any of it
        self._wholes: dict[str, str] = {}  # the name of a piece -> that of its variable
        self._lost: dict[str, _Lost] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables that have a value, sorted."""
        return tuple(sorted({self.whole_name(key) for key in self.initialised}))

    def keys_of(self, key: str) -> list[str]:
        """The keys under which the variable of `key` lies: its own, or those of its pieces."""
        if key not in self.splits:
            return [key]
        name, generation = key.rsplit(":", 1)
        return [f"{piece_name(name, n)}:{generation}" for n in range(len(self.splits[key]))]

    def whole_name(self, key: str) -> str:
        """The name of the variable whose state, or a piece of it, has this key."""
        name = key.rsplit(":", 1)[0]
        return self._wholes.get(name, name)

    def settle(self, graph: Graph, placement: Mapping[str, Placed]) -> bool:
        """Notes where the state of a placed graph lives from now on; whether something that had a home has moved."""
        replicas: dict[str, list[DeviceSpec]] = {}
        for node in graph.nodes.values():
            if node.op in HOLDERS:
                device, shared = placement[node.name].device, node.attrs.get("shared")
                key = state_key(graph, shared or node.name, node.name)
                if shared:
                    replicas.setdefault(key, []).append(device)
                elif key not in self.homes:
                    self.homes[key] = device
                    self.version += 1
        moved = False
        for key, devices in replicas.items():
            # All replicas of an iterator stand at one place: whoever asks for it must ask where one of them is.
            known = self.homes.get(key)
            if known not in devices:
                self.homes[key] = devices[0]
                self.version += 1
                moved = moved or known is not None
        return moved

    def split(self, sizes: Mapping[str, tuple[int, ...]]) -> None:
        """From now on these variables are in pieces: key -> the rows of each."""
        self.version += 1
        for key, rows in sizes.items():
            name = key.rsplit(":", 1)[0]
            self.splits[key] = rows
            self._wholes.update((piece_name(name, n), name) for n in range(len(rows)))

    def has(self, keys: Sequence[str]) -> None:
        """These have a value now."""
        self.version += 1
        self.initialised.update(keys)
        for key in keys:
            self._lost.pop(key, None)

    def drop(self, keys: Sequence[str]) -> list[str]:
        """Forgets these, pieces included; returns the keys of all that may have a value somewhere."""
        self.version += 1
        parts = [part for key in keys for part in self.keys_of(key)]
        known = [key for key in parts if key in self.homes]
        for key in known:
            del self.homes[key]
        self.initialised -= set(known)
        return parts

    def lose(self, tasks: Collection[str], lives: Mapping[str, str]) -> None:
        """What `tasks` held is not there; `lives` names the life (`Transport.life`) of each that it went with."""
        self.version += 1
        lost = {key for key, home in self.homes.items() if home.task_name in tasks}
        for key in lost:
            home = self.homes.pop(key)
            if key in self.initialised:
                self._lost[key] = _Lost(home, lives[home.task_name])
        self.initialised -= lost

    def find_again(self, lives: Mapping[str, str]) -> None:
        """What went with a worker that is back with the same life is there again."""
        self.version += 1
        back = {key for key, was in self._lost.items() if lives.get(was.home.task_name) == was.life}
        self.homes.update({key: self._lost.pop(key).home for key in back})
        self.initialised |= back

    def mourn(self, keys: Iterable[str]) -> None:
        """Says once that values are gone: trained weights must not turn into initial values without a word.

        Raises WorkerLost, the first time that one of the lost is among `keys`.
        """
        gone = {key: self._lost[key] for key in keys if key in self._lost and not self._lost[key].told}
        if not gone:
            return
        self._lost.update({key: replace(was, told=True) for key, was in gone.items()})
        variables = sorted({self.whole_name(key) for key in gone})
        names = ", ".join(variables[:5]) + (", …" if len(variables) > 5 else "")
        workers = ", ".join(sorted({was.home.task_name for was in gone.values()}))
        raise WorkerLost(
            f"the values of {len(variables)} variables ({names}) were lost with {workers}; "
            "run again to start them anew. If only the way to it broke, they are "
            "there when it is back, unless they were started anew",
            worker=workers,
        )
