"""The table of a connection's life."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow_workers import protocol, rpc
from nbflow_workers.proto import worker_pb2

STATES = get_args(protocol.State)
HAPPENINGS = get_args(protocol.Happening)


def test_the_table_has_all_states_and_only_those() -> None:
    assert set(protocol.TABLE) == set(STATES)
    for row in protocol.TABLE.values():
        assert set(row) <= set(HAPPENINGS)
        assert set(row.values()) <= set(STATES)


def test_the_docstring_shows_the_table() -> None:
    lines = (protocol.__doc__ or "").splitlines()
    header = next(line for line in lines if line.split() == list(HAPPENINGS))
    columns = [header.index(h) for h in HAPPENINGS]
    for state in STATES:
        rows = lines[lines.index(header) + 1 :]
        line = next(line for line in rows if line.split()[:1] == [state]).ljust(120)
        shown = {h: line[c : c + 14].strip() for h, c in zip(HAPPENINGS, columns, strict=True)}
        assert {h: s for h, s in shown.items() if s} == protocol.TABLE[state]


def test_every_state_can_be_closed_and_closed_is_final() -> None:
    for state in STATES:
        following = protocol.after(state, "close")
        assert following in ("closing", "closed")
    assert set(protocol.TABLE["closed"].values()) == {"closed"}


@given(st.lists(st.sampled_from(HAPPENINGS), max_size=12))
def test_a_lost_connection_is_never_usable_again(happenings: list[protocol.Happening]) -> None:
    state: protocol.State = "new"
    lost = False
    for happening in happenings:
        if happening not in protocol.TABLE[state]:
            with pytest.raises(RuntimeError, match=state):
                protocol.after(state, happening)
            continue
        state = protocol.after(state, happening)
        lost = lost or state in ("lost", "closing", "closed")
        assert not (lost and state in protocol.USABLE)


def test_the_methods_are_those_of_the_proto() -> None:
    declared = worker_pb2.DESCRIPTOR.services_by_name["Worker"].methods
    table = {m.name: m for m in rpc.METHODS.values()}
    assert set(table) - {m.name for m in declared} == {"Steps"}
    for method in declared:
        row = table[method.name]
        assert row.request.DESCRIPTOR.full_name == method.input_type.full_name
        assert row.reply.DESCRIPTOR.full_name == method.output_type.full_name
        assert (row.request_stream, row.reply_stream) == (method.client_streaming, method.server_streaming)
    assert worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name == rpc.SERVICE
    assert len(set(itertools.chain(m.path for m in rpc.METHODS.values()))) == len(rpc.METHODS)
