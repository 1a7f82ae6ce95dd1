"""Where the datasets of a run stand, asked of each worker that reads them, and put where the steps that were made end.

A replica may have taken batches for steps that were never made. Where replicas read the same batches, each its part,
what it took beyond the steps that were made is given back (`data.iterator.rewound`). Where no replica is left, or more
was taken than was kept, those who go on make anew, and leave out, what the steps since the last change took. Where each
reads batches of its own, all go on from the furthest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbflow.data.iterator import advanced, rewound
from nbflow.data.snapshot import pack, unpack
from nbflow.data.state import save_state
from nbflow.device import DeviceSpec
from nbflow.errors import NbflowError
from nbflow.graph import Graph, Node, Tensor, ancestors
from nbflow.rewrite import copy_nodes, new_like
from nbflow.session import Session
from nbflow.train.checkpoint import place_iterators

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """Where the data go on: iterator -> packed state. `inexact`: those that do not go on just after the last step."""

    states: Mapping[str, np.ndarray[Any, Any]]
    inexact: tuple[str, ...] = ()


class Places:
    """The iterators behind `step` and `others`, which run with it now and then."""

    def __init__(self, session: Session, step: Node, others: Sequence[Node | Tensor]) -> None:
        self._session = session
        mine = ancestors([step])
        more = ancestors([step, *(t if isinstance(t, Node) else t.node for t in others)])
        self._holders = [n for n in more if n.op == "iterator"]
        # Elements a step, of those of which every step takes as many.
        self._taken: dict[str, int] = {}
        for holder in self._holders:
            readers = [n for n in more if n.op == "iterator_next" and n.inputs[0].node is holder]
            if all(n in mine for n in readers):
                self._taken[holder.name] = len(readers)
        self._begun: dict[str, State] = {}

    def begin(self, devices: Iterable[DeviceSpec]) -> None:
        """Steps begin now, with replicas on `devices`."""
        self._begun = {name: _furthest(found) for name, found in self._read(devices).items() if found}

    def find(self, devices: Iterable[DeviceSpec], made: int, *, in_step: bool) -> Found:
        """After `made` steps since `begin`, where the data go on, as the workers of `devices` know it; those that
        cannot be reached are left out. `in_step`: the replicas read the same batches, each its part."""
        states, inexact = {}, []
        for name, found in self._read(devices).items():
            exact = self._exact(name, found, made) if in_step else None
            if exact is None:
                inexact.append(name)
                if name in self._begun:
                    found.append(advanced(self._begun[name], 0 if found else made))
                exact = _furthest(found) if found else None
            if exact is not None:
                states[name] = pack(exact)
        return Found(states, tuple(inexact))

    def put(self, found: Found) -> None:
        """Puts the iterators of all workers there."""
        if found.states:
            place_iterators(self._session, [n for n in self._holders if n.name in found.states], found.states)

    def _exact(self, name: str, found: Sequence[State], made: int) -> State | None:
        if name not in self._taken or name not in self._begun:
            return None
        taken, begun = made * self._taken[name], self._begun[name]
        target = int(begun["position"]) + taken
        tries = (rewound(state, int(state["position"]) - target) for state in found)
        return next((state for state in tries if state is not None), advanced(begun, taken))

    def _read(self, devices: Iterable[DeviceSpec]) -> dict[str, list[State]]:
        """Iterator -> its state on each task of `devices` that answers."""
        tasks: dict[str, DeviceSpec] = {}
        for device in devices:
            tasks.setdefault(device.task_name, device)
        found: dict[str, list[State]] = {n.name: [] for n in self._holders}
        for device in tasks.values() if self._holders else ():
            graph, tensors = self._beside(device)
            try:
                values = self._session.look(self._session.beside(graph, tensors))
            except NbflowError:
                continue  # gone, or without a place to continue from: the others know
            for holder, value in zip(self._holders, values, strict=True):
                found[holder.name].append(unpack(value))
        return found

    def _beside(self, device: DeviceSpec) -> tuple[Graph, list[Tensor]]:
        """A graph that asks the holders on `device`."""
        graph = new_like(self._session.graph)
        nodes: dict[str, Node] = {}

        def there(old: Node, new: Node) -> None:
            new.device, new.colocate = device, ()
            new.attrs["shared"] = old.name

        copy_nodes(self._holders, graph, {}, nodes, rename=lambda name: f"on_a_worker/{name}", change=there)
        return graph, [save_state(nodes[n.name]) for n in self._holders]


def _furthest(states: Sequence[State]) -> State:
    found = max(states, key=lambda state: int(state["position"]))
    return {key: value for key, value in found.items() if key != "handed"}
