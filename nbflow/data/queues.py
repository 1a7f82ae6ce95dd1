"""`nf.queue`: elements that some steps put in and others take out, in one process or several.

    q = nf.queue(100, {"x": ("float32", (3,)), "y": ("int64", ())}, shuffle=True, min_after_dequeue=50)
    put = q.enqueue({"x": x, "y": y})          # an op: waits while the queue is full
    batch = q.dequeue_many(32)                 # tensors: wait until there are as many

The queue is state on one device; steps that wait for each other run beside each other when they come from different
threads (`nf.feed` is one that puts a dataset in). A wait ends with the step: when it is cancelled, when its deadline
passes, when the queue is closed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbflow.data.specs import described
from nbflow.errors import DataError
from nbflow.graph import Graph, Node, Tensor, get_graph
from nbflow.ops._build import build, build_node, convert
from nbflow.spec import TensorSpec


class Queue:
    """A queue of elements. Made by `nf.queue`; its methods add ops to the graph.

    An element is a dict, a tuple or one tensor, as `specs` was; `enqueue` takes, and `dequeue` gives, the same.
    """

    __slots__ = ("_names", "_node", "_specs", "_structure")

    def __init__(self, node: Node, specs: tuple[TensorSpec, ...], names: tuple[str, ...], structure: type) -> None:
        self._node = node
        self._specs = specs
        self._names = names
        self._structure = structure

    def __repr__(self) -> str:
        parts = ", ".join(f"{n}: {s}" if n else str(s) for n, s in zip(self._names, self._specs, strict=True))
        return f"<Queue {self.name} of {self.capacity}, {parts}, from {self._node.where}>"

    @property
    def name(self) -> str:
        return self._node.name

    @property
    def node(self) -> Node:
        """The op that holds the queue."""
        return self._node

    @property
    def graph(self) -> Graph:
        return self._node.graph

    @property
    def capacity(self) -> int:
        return int(self._node.attrs["capacity"])

    @property
    def element_spec(self) -> Any:
        """Specs of an element, in its structure."""
        return self._nest(self._specs)

    def enqueue(self, element: Any, name: str | None = None) -> Node:
        """Puts one element in, and waits while the queue is full. Raises DataError when the queue is closed."""
        return self._put("queue_enqueue", element, name)

    def enqueue_many(self, elements: Any, name: str | None = None) -> Node:
        """Puts the rows of `elements` in, one by one, as there is room."""
        return self._put("queue_enqueue_many", elements, name)

    def dequeue(self, name: str | None = None) -> Any:
        """Takes one element out, as soon as there is one. Raises EndOfData when the queue is closed and empty."""
        return self._take("queue_dequeue", {}, name)

    def dequeue_many(self, n: int, name: str | None = None) -> Any:
        """Takes `n` elements out at once, along a first axis. Raises EndOfData when the queue is closed and has fewer;
        those stay."""
        return self._take("queue_dequeue_many", self._count(n), name)

    def dequeue_up_to(self, n: int, name: str | None = None) -> Any:
        """As `dequeue_many`, but a closed queue gives what is left. Raises EndOfData when that is nothing."""
        return self._take("queue_dequeue_up_to", self._count(n), name)

    def size(self, name: str | None = None) -> Tensor:
        """How many elements are in, int64 ()."""
        return build("queue_size", self._node.outputs, name=name)

    def is_closed(self, name: str | None = None) -> Tensor:
        """Whether it was closed, bool ()."""
        return build("queue_is_closed", self._node.outputs, name=name)

    def close(self, cancel_pending_enqueues: bool = False, name: str | None = None) -> Node:
        """An op after which nothing more goes in; what is in still comes out.

        `cancel_pending_enqueues`: those that wait for room now fail with DataError; otherwise they are let in.
        """
        attrs = {"cancel_pending_enqueues": bool(cancel_pending_enqueues)}
        return build_node("queue_close", self._node.outputs, attrs, name=name)

    # --- inside ---------------------------------------------------------------------------------------------------

    @property
    def _kinds(self) -> dict[str, Any]:
        return {"dtypes": tuple(s.dtype for s in self._specs), "shapes": tuple(s.shape for s in self._specs)}

    def _count(self, n: int) -> dict[str, Any]:
        kept = int(self._node.attrs["min_after_dequeue"])
        if not 1 <= n <= self.capacity - kept:
            raise DataError(
                f"queue {self.name!r} cannot give {n} elements at once: it holds {self.capacity}"
                + (f", of which {kept} stay" if kept else "")
            )
        return {"n": int(n), "padding": bool(self._node.attrs["padding"])}

    def _put(self, op: str, element: Any, name: str | None) -> Node:
        parts = self._flat(element)
        values = [convert(p, s.dtype) for p, s in zip(parts, self._specs, strict=True)]
        return build_node(op, (*self._node.outputs, *values), self._kinds, name=name)

    def _take(self, op: str, attrs: Mapping[str, Any], name: str | None) -> Any:
        return self._nest(build_node(op, self._node.outputs, {**self._kinds, **attrs}, name=name).outputs)

    def _flat(self, element: Any) -> Sequence[Any]:
        if self._structure is dict:
            if not isinstance(element, Mapping) or set(element) != set(self._names):
                got = sorted(map(str, element)) if isinstance(element, Mapping) else type(element).__name__
                raise DataError(f"an element of queue {self.name!r} is a dict of {list(self._names)}, not {got}")
            return [element[name] for name in self._names]
        if self._structure is tuple:
            if not isinstance(element, (tuple, list)) or len(element) != len(self._specs):
                raise DataError(
                    f"an element of queue {self.name!r} is a tuple of {len(self._specs)}, not {element!r:.60}"
                )
            return element
        return [element]

    def _nest(self, parts: Sequence[Any]) -> Any:
        if self._structure is dict:
            return dict(zip(self._names, parts, strict=True))
        return tuple(parts) if self._structure is tuple else parts[0]


def queue(
    capacity: int,
    specs: Any,
    shuffle: bool = False,
    min_after_dequeue: int = 0,
    seed: int | None = None,
    padding: bool = False,
    name: str | None = None,
) -> Queue:
    """A queue of at most `capacity` elements.

    - `specs`: what an element is: a `TensorSpec`, or (dtype, shape); or a dict, or a tuple, of these.
    - `shuffle`: elements come out in random order; `min_after_dequeue` of them stay in until the queue is closed, so
      that there is something to choose from. `seed` None: from the graph's seed and the queue's name.
    - `padding`: elements may differ in dimensions that are None; `dequeue_many` pads them with zeros to the largest.

    Raises DataError for a capacity or a minimum that leaves no room, and for specs of unknown rank.
    """
    if capacity < 1 or not 0 <= min_after_dequeue < capacity:
        raise DataError(
            f"a queue holds at least 1 element and keeps fewer than it holds, not capacity {capacity} and "
            f"min_after_dequeue {min_after_dequeue}"
        )
    if min_after_dequeue and not shuffle:
        raise DataError("min_after_dequeue is for shuffle=True: a queue in order has nothing to choose from")
    names, found, structure = described(specs, "queue")
    node = build_node(
        "queue",
        (),
        {
            "capacity": int(capacity),
            "dtypes": tuple(s.dtype for s in found),
            "shapes": tuple(s.shape for s in found),
            "shuffle": bool(shuffle),
            "min_after_dequeue": int(min_after_dequeue),
            "seed": "" if seed is None else int(seed),
            "padding": bool(padding),
        },
        name=name,
        graph=get_graph(),
    )
    return Queue(node, found, names, structure)
