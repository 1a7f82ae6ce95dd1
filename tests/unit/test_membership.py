"""A worker's life, on a virtual clock."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow_workers import membership
from nbflow_workers.membership import LOST_AFTER_S, SUSPECT_AFTER_S, Change, Membership

A = "/job:worker/task:0"
STATES = get_args(membership.State)


@pytest.fixture
def members() -> Membership:
    made = Membership()
    assert made.join(A, "one", 0.0) == [Change(A, "left", "joining")]
    assert made.answered(A, "one", 0.0) == [Change(A, "joining", "ready")]
    return made


def test_the_table_is_complete() -> None:
    assert set(membership.TABLE) == set(STATES)
    for row in membership.TABLE.values():
        assert set(row) == set(get_args(membership.Happening))
        assert set(row.values()) <= set(STATES)


def test_the_docstring_shows_the_table() -> None:
    lines = (membership.__doc__ or "").splitlines()
    for state in STATES:
        line = next(line for line in lines if line.split()[:1] == [state] and len(line.split()) == 7)
        assert line.split()[1:] == list(membership.TABLE[state].values())


def test_silence_makes_suspect_then_lost(members: Membership) -> None:
    assert members.tick(SUSPECT_AFTER_S - 0.1) == []
    assert [(c.old, c.new) for c in members.tick(SUSPECT_AFTER_S)] == [("ready", "suspect")]
    assert members.alive([A]) == [A]
    assert members.tick(LOST_AFTER_S - 0.1) == []
    (change,) = members.tick(LOST_AFTER_S)
    assert (change.new, change.detail) == ("lost", "last heard 4.5 s ago")
    assert members.alive([A]) == []
    assert members.tick(100.0) == []


def test_lost_is_named_within_five_seconds() -> None:
    # A heartbeat each second, and the tick that follows it.
    assert LOST_AFTER_S <= 5.0


def test_an_answer_brings_it_back(members: Membership) -> None:
    members.tick(LOST_AFTER_S)
    assert members.answered(A, "one", 20.0) == [Change(A, "lost", "ready")]
    assert members.tick(21.0) == []


def test_busy_and_idle(members: Membership) -> None:
    assert members.answered(A, "one", 1.0, busy=True) == [Change(A, "ready", "busy")]
    assert members.answered(A, "one", 2.0, busy=True) == []
    assert members.answered(A, "one", 3.0) == [Change(A, "busy", "ready")]


def test_another_incarnation_is_a_loss_first(members: Membership) -> None:
    changes = members.answered(A, "two", 1.0)
    assert [c.new for c in changes] == ["lost", "joining", "ready"]
    assert "again" in changes[0].detail


def test_starting_takes_longer_than_answering() -> None:
    members = Membership()
    members.join(A, "one", 0.0)
    assert members.tick(30.0) == []
    assert [c.new for c in members.tick(membership.JOIN_TIMEOUT_S)] == ["lost"]


def test_our_own_stall_is_nobodys_silence(members: Membership) -> None:
    members.excuse(60.0)
    assert members.tick(60.0) == []
    assert [c.new for c in members.tick(60.0 + LOST_AFTER_S)] == ["lost"]


def test_who_left_stays_away(members: Membership) -> None:
    assert [c.new for c in members.leave(A)] == ["left"]
    assert members.leave(A) == []
    assert members.answered(A, "one", 1.0) == []
    assert members.exited(A, "gone") == []
    assert members.state(A) == "left"


def test_an_exit_is_seen_at_once(members: Membership) -> None:
    assert members.exited(A, "killed by SIGKILL") == [Change(A, "ready", "lost", "killed by SIGKILL")]
    assert members.exited(A, "killed by SIGKILL") == []


@given(st.lists(st.tuples(st.sampled_from(["answer", "busy", "tick", "exit", "again"]), st.floats(0, 3)), max_size=30))
def test_changes_join_up(steps: list[tuple[str, float]]) -> None:
    """Every change starts where the one before ended, and nobody is alive after 4.5 s of silence."""
    members, now, state, incarnation = Membership(), 0.0, "joining", "0"
    members.join(A, incarnation, now)
    heard = now
    for what, after in steps:
        now += after
        if what == "tick":
            changes = members.tick(now)
        elif what == "exit":
            changes = members.exited(A, "x")
        else:
            incarnation += "1" if what == "again" else ""
            changes = members.answered(A, incarnation, now, busy=what == "busy")
            heard = now
        for change in changes:
            assert change.old == state or (change.old, change.new) == ("lost", "joining")
            state = change.new
        assert members.state(A) == state
        if what == "tick" and now - heard >= LOST_AFTER_S and state != "joining":
            assert members.alive([A]) == []
