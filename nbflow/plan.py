"""The flat program of one device: straight-line instructions over numbered slots, and the buffers they reuse."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nbflow.op import AttrValue
from nbflow.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Instruction:
    """One op of a plan.

    - `inputs`, `outputs`: slot numbers. `frees`: slots nobody reads after this instruction.
    - `after`: indices of earlier instructions that must be complete (data, control and state order).
    - `key`: names the state and random stream of a stateful op; empty otherwise.
    - `buffer`: index into `Plan.buffers` for the only output of an op declared `out`; -1 for none.
    - `bodies`: what a loop or branch runs, on this device: plans whose feeds are named by argument number and whose
      fetches by output number.
    - ops `send` (attrs `key`, `destination`) and `recv` (attrs `key`, `source`) move tensors between devices.
    """

    node: str
    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attrs: Mapping[str, AttrValue]
    after: tuple[int, ...] = ()
    frees: tuple[int, ...] = ()
    key: str = ""
    buffer: int = -1
    where: str = ""
    bodies: tuple[Plan, ...] = ()


@dataclass(frozen=True, slots=True)
class Constant:
    """A value known when the plan is made."""

    slot: int
    value: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Feed:
    """A value that comes with each step. `spec` is checked."""

    name: str
    slot: int
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class Fetch:
    """A value that goes back with each step. `copy`: it may share memory with something a later step overwrites."""

    name: str
    slot: int
    copy: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One device's program for one (fetches, feeds) signature. `device` is full (`/job:ps/task:0/cpu:0`)."""

    device: str
    instructions: tuple[Instruction, ...]
    slots: int
    constants: tuple[Constant, ...] = ()
    feeds: tuple[Feed, ...] = ()
    fetches: tuple[Fetch, ...] = ()
    buffers: tuple[TensorSpec, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Bundle:
    """All plans of one task (process) for one signature: what `Transport.register` takes. `id` is unique a session."""

    id: str
    task: str
    plans: tuple[Plan, ...] = field(default=())


def new_bundle_id(*parts: object) -> str:
    """A short stable id from anything with a stable repr."""
    return hashlib.sha256("|".join(repr(p) for p in parts).encode()).hexdigest()[:24]
