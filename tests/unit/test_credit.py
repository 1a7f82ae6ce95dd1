"""Credit: how much may be under way, as bookkeeping."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from nbflow_workers.dataplane.credit import CREDIT_BYTES, CREDIT_TENSORS, LEAST_BYTES, Account, Window, charge


def test_a_window_has_room_for_so_much() -> None:
    window = Window(1000)
    assert window.take(600)
    assert not window.take(600)
    assert window.take(400)
    window.give(700)
    assert window.used == 300
    assert window.take(600)


def test_a_tensor_larger_than_the_window_goes_alone() -> None:
    window = Window(1000)
    assert window.take(5000)
    assert not window.take(1)
    window.give(5000)
    assert window.take(1)


def test_what_is_granted_needs_no_room() -> None:
    window = Window(1000)
    assert window.take(1000)
    assert window.take(1000, granted=True)
    assert window.used == 2000


def test_a_peer_cannot_give_more_than_it_got() -> None:
    window = Window(1000)
    window.take(100)
    window.give(2**60)
    assert window.used == 0
    assert not (window.take(900) and window.take(200))


def test_credit_is_told_in_large_pieces_unless_the_peer_waits() -> None:
    told: list[int] = []
    account = Account(lambda a: told.append(a.settle()))
    for _ in range(CREDIT_TENSORS):
        account.took(charge(1))
        account.free(charge(1))
    assert told == [CREDIT_TENSORS * LEAST_BYTES]
    account.took(CREDIT_BYTES)
    account.free(CREDIT_BYTES)
    assert told[-1] == CREDIT_BYTES
    account.took(1000)
    account.free(1000)
    assert len(told) == 2
    account.impatient = True
    account.took(10)
    account.free(10)
    assert told[-1] == 1010
    assert account.held() == 0


@given(st.lists(st.tuples(st.integers(1, 3000), st.booleans()), max_size=60), st.integers(1, 4000))
def test_all_credit_comes_back(steps: list[tuple[int, bool]], limit: int) -> None:
    """Whatever the order: what is under way stays below the limit or is one tensor, and nothing is lost."""
    window, account = Window(limit), Account(lambda a: None)
    there: deque[int] = deque()
    for nbytes, frees in steps:
        if window.take(nbytes):
            account.took(nbytes)
            there.append(nbytes)
        if frees and there:
            account.free(there.popleft())
            window.give(account.settle())
        assert window.used == sum(there) == account.held()
        assert window.used <= limit or len(there) == 1
    while there:
        account.free(there.popleft())
    window.give(account.settle())
    assert window.used == account.held() == 0
