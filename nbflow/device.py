"""Device strings: `/job:worker/task:1/gpu:0`, in full or in part.

The grammar is TensorFlow's: components in any order, each optional, a later one never repeated; `/device:GPU:0` and
bare `gpu:0` are accepted. A partial spec constrains only what it names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from nbflow.errors import PlacementError

_TYPES = ("cpu", "gpu", "null")
_COMPONENT = re.compile(
    r"(?:job:(?P<job>[^/:\s]+)|task:(?P<task>\d+)|(?:device:)?(?P<type>cpu|gpu|null)(?::(?P<index>\d+|\*))?)\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, order=True)
class DeviceSpec:
    """A possibly partial device. None means: anything."""

    job: str | None = None
    task: int | None = None
    type: str | None = None
    index: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.job is not None:
            parts.append(f"/job:{self.job}")
        if self.task is not None:
            parts.append(f"/task:{self.task}")
        if self.type is not None:
            parts.append(f"/{self.type}" + ("" if self.index is None else f":{self.index}"))
        return "".join(parts)

    @property
    def is_full(self) -> bool:
        return None not in (self.job, self.task, self.type, self.index)

    @property
    def task_name(self) -> str:
        """`/job:worker/task:1`: the process the device belongs to."""
        return f"/job:{self.job}/task:{self.task}"

    def merge(self, inner: DeviceSpec) -> DeviceSpec:
        """This spec overridden by what `inner` names (nested `nf.device` blocks)."""
        changes = {k: getattr(inner, k) for k in ("job", "task", "type", "index") if getattr(inner, k) is not None}
        if "type" in changes and "index" not in changes and changes["type"] != self.type:
            changes["index"] = None
        return replace(self, **changes)

    def matches(self, device: DeviceSpec) -> bool:
        """True when the full `device` satisfies this partial spec."""
        return all(
            mine is None or mine == theirs
            for mine, theirs in (
                (self.job, device.job),
                (self.task, device.task),
                (self.type, device.type),
                (self.index, device.index),
            )
        )


def parse_device(text: str | DeviceSpec | None) -> DeviceSpec:
    """A DeviceSpec from text. Raises PlacementError that shows the grammar for anything else."""
    if isinstance(text, DeviceSpec):
        return text
    found: dict[str, str | int] = {}
    for part in (text or "").strip().strip("/").split("/"):
        if not part:
            continue
        match = _COMPONENT.match(part)
        if match is None:
            raise PlacementError(
                f"not a device: {text!r} ({part!r} is not understood); "
                f"write for example '/job:worker/task:1/gpu:0', '/job:ps' or 'cpu:0'; types are {', '.join(_TYPES)}"
            )
        for key, value in match.groupdict().items():
            if value is None or value == "*":
                continue
            if key in found:
                raise PlacementError(f"not a device: {text!r} names {key} twice")
            found[key] = int(value) if key in ("task", "index") else (value.lower() if key == "type" else value)
    return DeviceSpec(**found)  # type: ignore[arg-type]  # keys come from the pattern's four groups


LOCAL = DeviceSpec("local", 0, "cpu", 0)
