"""From a part to a `Plan`: numbered slots, frees, state keys, and buffers that are reused.

A buffer is given to the output of an op that can write into one (`out`), when its shape is known and nobody outside
the step sees it. It goes back when the last reader, of the value or of a view of it, is done, and is given on to who
waits for whatever those waited for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import Any

import numpy as np

from nbflow import op as ops
from nbflow.body import ARGUMENT, Body, bodies_of
from nbflow.errors import GraphError
from nbflow.graph import Graph, Node, Tensor
from nbflow.ops.waiting import WAITING
from nbflow.optimize.sharing import last_fitting
from nbflow.partition import CONTROL, Item, Part
from nbflow.plan import Constant, Feed, Fetch, Instruction, Plan
from nbflow.spec import TensorSpec

Value = tuple[str, int]  # (node name, output index)
# The order of a node's bodies in its instruction.
_BODY_ORDER = ("condition", "body", "then", "otherwise")
# What partition and compile put between the ops.
PLAN_OPS = ("send", "recv", "copy")


@dataclass(slots=True)
class _Draft:
    """An instruction in the making. `barrier`: it comes after everything before it."""

    item: Item
    inputs: list[int]
    outputs: list[int]
    after: set[int]
    op: str
    key: str = ""
    attrs: dict[str, object] = field(default_factory=dict)
    buffer: int = -1
    bodies: tuple[Plan, ...] = ()


def compile_part(part: Part, graph: Graph, fetches: Mapping[str, Value], *, tight: bool = False) -> Plan:
    """The plan of one part. `fetches`: fetch name -> value, for those whose node is in this part. `tight`: memory is
    given on to whoever is next, even where that makes one wait for what comes from elsewhere."""
    return _Compiler(part, graph, fetches, tight=tight).plan()


@dataclass(frozen=True, slots=True)
class _Names:
    """What stands before the names in a body: for people and transfers, and for random streams. They differ where a
    node draws what another one draws (attribute `origin`)."""

    shown: str = ""
    stream: str = ""

    def inside(self, node: Node) -> _Names:
        origin = node.attrs["origin"] or node.name
        return _Names(f"{self.shown}{node.name}/", f"{self.stream}{origin}/")


class _Compiler:
    def __init__(
        self,
        part: Part,
        graph: Graph,
        fetches: Mapping[str, Value],
        names: _Names | None = None,
        *,
        tight: bool = False,
    ) -> None:
        self.names = names or _Names()
        self.tight = tight
        self.part = part
        self.graph = graph
        self.fetches = fetches
        self.slots: dict[Value, int] = {}
        self.specs: list[TensorSpec | None] = []
        self.roots: list[int] = []  # slot -> the slot whose memory it may share
        self.fixed: set[int] = set()  # root slots whose memory outlives the step: constants, feeds, state
        self.constants: list[Constant] = []
        self.feeds: list[Feed] = []
        self.drafts: list[_Draft] = []
        self.index_of: dict[Item, int] = {}
        self.buffers: list[TensorSpec] = []

    def plan(self) -> Plan:
        for item in self.part.items:
            self.add(item)
        fetch_slots = {name: self.slots[value] for name, value in self.fetches.items()}
        self.give_buffers(set(fetch_slots.values()))
        frees = self.frees(set(fetch_slots.values()))
        return Plan(
            str(self.part.device),
            tuple(self.instruction(d, frees[i]) for i, d in enumerate(self.drafts)),
            len(self.specs),
            tuple(self.constants),
            tuple(self.feeds),
            tuple(Fetch(name, slot, self.shares(slot)) for name, slot in fetch_slots.items()),
            tuple(self.buffers),
            self.graph.seed,
        )

    def shares(self, slot: int) -> bool:
        """True when the value's memory may be overwritten, or seen, by somebody else after the step."""
        root = self.roots[slot]
        return root in self.fixed or root != slot

    def new_slot(self, value: Value, spec: TensorSpec | None, root: int | None = None) -> int:
        slot = len(self.specs)
        self.slots[value] = slot
        self.specs.append(spec)
        self.roots.append(slot if root is None else self.roots[root])
        return slot

    # --- items to drafts -----------------------------------------------------------------------------------------

    def add(self, item: Item) -> None:
        if item.kind == "node" and item.node.op == "constant":
            slot = self.new_slot((item.node.name, 0), item.node.outputs[0].spec)
            value = np.asarray(item.node.attrs["value"])
            self.constants.append(Constant(slot, np.ascontiguousarray(value).reshape(value.shape)))
            self.fixed.add(slot)
        elif item.kind == "node" and item.node.op == "placeholder":
            spec = item.node.outputs[0].spec
            slot = self.new_slot((item.node.name, 0), spec)
            self.feeds.append(Feed(item.node.name, slot, spec))
            self.fixed.add(slot)
        elif item.kind == "node" and item.node.op == ARGUMENT:
            spec = item.node.outputs[0].spec
            slot = self.new_slot((item.node.name, 0), spec)
            self.feeds.append(Feed(str(item.node.attrs["index"]), slot, spec))
            self.fixed.add(slot)
        elif item.kind in ("node", "remote") and item.node.definition.specialise is not None:
            self.add_control(item)
        elif item.kind == "node":
            self.add_node(item)
        elif item.kind == "send":
            inputs = [] if item.value[1] == CONTROL else [self.slots[item.value]]
            self.append(item, inputs, [], "send", attrs={"key": item.key, "destination": str(item.peer), **edge(item)})
        else:
            received = None if item.value[1] == CONTROL else item.node.outputs[item.value[1]].spec
            slot = self.new_slot(item.value, received)
            attrs: dict[str, object] = {"key": item.key, "source": str(item.peer), **edge(item)}
            if received is not None:
                attrs["dtype"] = received.dtype
            self.append(item, [], [slot], "recv", attrs=attrs)

    def add_node(self, item: Item) -> None:
        node, definition = item.node, item.node.definition
        inputs = [self.slots[(t.node.name, t.index)] for t in node.inputs]
        # Ops on a variable may return its memory; what a view op returns shares that of its first input.
        on_state = bool(node.inputs) and node.inputs[0].spec.resource
        root = inputs[0] if inputs and (definition.alias or on_state) else None
        outputs = [self.new_slot((node.name, t.index), t.spec, root) for t in node.outputs]
        if node.op == "variable":
            self.fixed.update(outputs)
        number = self.graph.generations.get(node.name, 0)
        key = f"{self.names.stream}{node.name}:{number}" if definition.stateful else ""
        self.append(item, inputs, outputs, node.op, key=key, attrs=dict(node.attrs))
        if item.copies:
            self.copy_output(item, outputs[0])

    def add_control(self, item: Item) -> None:
        """A loop or branch, or this device's part of one."""
        node = item.node
        inputs = [self.slots[(t.node.name, t.index)] for t in (node.inputs[i] for i in item.given)]
        remote = item.kind == "remote"
        # What comes out is copied where it could share memory with what went in: it is a value of its own.
        outputs = [] if remote else [self.new_slot((node.name, t.index), t.spec) for t in node.outputs]
        attrs = {
            k: v
            for k, v in node.attrs.items()
            if not isinstance(v, Body) and k not in ("origin", "extends", "invariants")
        }
        keys = [k for k in bodies_of(node) if k in ("condition", "body", "then", "otherwise")]
        attrs.update(
            given=item.given,
            home=str(item.peer) if remote else "",
            remotes=tuple(str(d) for d in item.remotes),
            key=f"{self.names.shown}{node.name}",
            tested="condition" in keys,
            inputs=len(node.inputs),
            stacked=() if remote else _stacked(node),
        )
        attrs.pop("condition", None)
        self.append(item, inputs, outputs, node.op, attrs=attrs)
        names = self.names.inside(node)
        self.drafts[-1].bodies = tuple(self.body(item, key, names) for key in sorted(keys, key=_BODY_ORDER.index))
        if remote or item.remotes:
            # Whoever is inside a loop answers nobody else: what comes before must be done (partition.gather_remotes).
            self.drafts[-1].after.update(range(len(self.drafts) - 1))

    def body(self, item: Item, key: str, names: _Names) -> Plan:
        part = item.bodies.get(key)
        body: Body = item.node.attrs[key]
        if part is None:
            if item.kind == "remote":
                return Plan(str(item.device), (), 0, seed=self.graph.seed)
            part = Part(item.device, [], body)
        outputs = {} if item.kind == "remote" else {str(n): (t.node.name, t.index) for n, t in enumerate(body.outputs)}
        plan = _Compiler(part, body.graph, outputs, names, tight=self.tight).plan()
        return replace(plan, seed=self.graph.seed)

    def copy_output(self, item: Item, source: int) -> None:
        value = (item.node.name, 0)
        target = self.new_slot(value, self.specs[source])
        before = self.index_of[item]
        self.append(item, [source], [target], "copy")
        self.drafts[-1].after = {before}

    def append(
        self,
        item: Item,
        inputs: list[int],
        outputs: list[int],
        op: str,
        *,
        key: str = "",
        attrs: dict[str, object] | None = None,
    ) -> None:
        after = {self.index_of[other] for other in item.after if other in self.index_of}
        self.index_of[item] = len(self.drafts)
        self.drafts.append(_Draft(item, inputs, outputs, after, op, key, attrs or {}))

    # --- memory --------------------------------------------------------------------------------------------------

    def last_readers(self) -> dict[int, list[int]]:
        """Root slot -> indices of the drafts that read its memory."""
        readers: dict[int, list[int]] = {}
        for index, draft in enumerate(self.drafts):
            for slot in draft.inputs:
                readers.setdefault(self.roots[slot], []).append(index)
        return readers

    def waits(self) -> list[int]:
        """For each draft what it may wait for, of what others decide when it comes: a set, as bits."""
        if self.tight:
            return [0] * len(self.drafts)
        found: list[int] = []
        bit = 1
        for draft in self.drafts:
            mask = 0
            for before in draft.after:
                mask |= found[before]
            if draft.op == "recv" or draft.op in WAITING:
                mask |= bit
                bit <<= 1
            found.append(mask)
        return found

    def give_buffers(self, fetched: set[int]) -> None:
        """Gives on the memory of values that nobody needs any more (`optimize.sharing`)."""
        kept = {self.roots[s] for s in fetched}
        readers = self.last_readers()
        waits = self.waits()
        free: dict[TensorSpec, list[tuple[int, list[int]]]] = {}  # spec -> (buffer, who read it last)
        waited: dict[TensorSpec, list[int]] = {}  # beside each of them what those waited for
        returned: dict[int, list[tuple[TensorSpec, int, list[int]]]] = {}  # draft index -> buffers free after it
        for index, draft in enumerate(self.drafts):
            if self.takes_buffer(draft, kept):
                slot = draft.outputs[0]
                spec = self.specs[slot]
                assert spec is not None  # takes_buffer saw to it
                users = readers.get(slot, [])
                found = last_fitting(waited.get(spec, ()), waits[index])
                if found is not None:
                    del waited[spec][found]
                    draft.buffer, before = free[spec].pop(found)
                    draft.after.update(before)
                else:
                    draft.buffer = len(self.buffers)
                    self.buffers.append(spec)
                last = max(users, default=index)
                returned.setdefault(last, []).append((spec, draft.buffer, users or [index]))
            for spec, buffer, users in returned.pop(index, ()):
                free.setdefault(spec, []).append((buffer, users))
                waited.setdefault(spec, []).append(reduce(or_, (waits[n] for n in users)))

    def takes_buffer(self, draft: _Draft, kept: set[int]) -> bool:
        if draft.op in PLAN_OPS or draft.bodies or len(draft.outputs) != 1:
            return False
        slot = draft.outputs[0]
        spec = self.specs[slot]
        definition = draft.item.node.definition
        return (
            definition.out
            and not definition.stateful
            and spec is not None
            and spec.is_static
            and bool(spec.shape)  # a scalar is cheaper to make than to look up
            and self.roots[slot] == slot
            and slot not in kept
        )

    def frees(self, fetched: set[int]) -> list[tuple[int, ...]]:
        last: dict[int, int] = {}
        for index, draft in enumerate(self.drafts):
            for slot in [*draft.inputs, *draft.outputs]:
                last[slot] = index
        constant = {c.slot for c in self.constants}
        frees: list[list[int]] = [[] for _ in self.drafts]
        for slot, index in last.items():
            if slot not in fetched and slot not in constant:
                frees[index].append(slot)
        return [tuple(f) for f in frees]

    def instruction(self, draft: _Draft, frees: tuple[int, ...]) -> Instruction:
        node = draft.item.node
        return Instruction(
            f"{self.names.shown}{node.name}",
            draft.op,
            tuple(draft.inputs),
            tuple(draft.outputs),
            draft.attrs,
            tuple(sorted(draft.after)),
            frees,
            draft.key,
            draft.buffer,
            node.where,
            draft.bodies,
        )


def edge(item: Item) -> dict[str, object]:
    """What the two ends of an edge agree on."""
    return {"compress": item.compress} if item.compress else {}


def _stacked(node: Node) -> tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]:
    """Shape and dtype of a row of each stacked output, for a loop that never runs; 0 where a dimension is unknown."""
    if node.op != "loop":
        return ()
    # Passes may have learnt more of the node's shapes than its body was told.
    stacked: list[Tensor] = []
    place = node.attrs["carried"] + 1
    for padded in node.attrs["padded"]:
        stacked.append(node.outputs[place])
        place += 1 + padded  # the sizes of its rows follow
    return tuple((tuple(d or 0 for d in (t.shape or ())[1:]), t.dtype) for t in stacked)


def check_plan(plan: Plan) -> None:
    """Raises GraphError unless every slot is written once, before it is read and freed; buffers do not overlap."""
    _check_buffers(plan)
    for body in itertools.chain.from_iterable(i.bodies for i in plan.instructions):
        check_plan(body)
    written = {c.slot for c in plan.constants} | {f.slot for f in plan.feeds}
    freed: dict[int, int] = {}
    for index, ins in enumerate(plan.instructions):
        for slot in ins.inputs:
            if slot not in written:
                raise GraphError(f"a slot is written, then read: {slot} is not, in {ins.node!r}", where=ins.where)
            if slot in freed:
                raise GraphError(f"a slot is not read after it was freed: {slot} is, in {ins.node!r}", where=ins.where)
        for slot in ins.outputs:
            if slot in written:
                raise GraphError(f"a slot is written once: {slot} is not, in {ins.node!r}", where=ins.where)
            written.add(slot)
        if any(before >= index for before in ins.after):
            raise GraphError(f"an instruction comes after earlier ones: {ins.node!r} does not", where=ins.where)
        if ins.buffer >= len(plan.buffers):
            raise GraphError(f"a buffer exists: {ins.buffer} of {ins.node!r} does not", where=ins.where)
        for slot in ins.frees:
            freed[slot] = index
    for fetch in plan.fetches:
        if fetch.slot not in written or fetch.slot in freed:
            raise GraphError(f"a fetch is there at the end: {fetch.name} is not")


def _check_buffers(plan: Plan) -> None:
    root: dict[int, int] = {}
    last_read: dict[int, int] = {}
    for index, ins in enumerate(plan.instructions):
        shares = ins.op not in PLAN_OPS and ops.get(ins.op).alias and bool(ins.inputs)
        for slot in ins.outputs:
            root[slot] = root.get(ins.inputs[0], ins.inputs[0]) if shares else slot
        for slot in ins.inputs:
            last_read[root.get(slot, slot)] = index
    fetched = {root.get(f.slot, f.slot) for f in plan.fetches}
    occupant: dict[int, int] = {}
    for index, ins in enumerate(plan.instructions):
        if ins.buffer < 0:
            continue
        before = occupant.get(ins.buffer)
        if before is not None and last_read.get(before, -1) >= index:
            raise GraphError(f"a buffer has one value at a time: {ins.node!r} overwrites what is still read")
        if ins.outputs[0] in fetched:
            raise GraphError(f"what is fetched is not overwritten: {ins.node!r} writes into a buffer")
        occupant[ins.buffer] = ins.outputs[0]


def bundles_by_task(plans: Sequence[tuple[str, Plan]]) -> dict[str, list[Plan]]:
    """Groups plans, given as (task, plan), by task; the order is kept."""
    found: dict[str, list[Plan]] = {}
    for task, plan in plans:
        found.setdefault(task, []).append(plan)
    return found
