"""Deadlines: at most one for each, in order; what does not hold any more is neither told nor kept."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.scheduler.state.deadlines import Deadlines


def test_without_deadlines_there_is_no_next() -> None:
    deadlines = Deadlines()
    assert deadlines.next is None and deadlines.expired(math.inf) == [] and len(deadlines) == 0


def test_they_expire_in_the_order_of_their_moments_and_once() -> None:
    deadlines = Deadlines()
    for uid, when in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 9.0)):
        deadlines.set(uid, when)
    assert deadlines.next == 1.0
    assert deadlines.expired(5.0) == [2, 3, 1]
    assert deadlines.expired(5.0) == []
    assert deadlines.next == 9.0 and len(deadlines) == 1


def test_the_lowest_uid_first_at_the_same_moment() -> None:
    deadlines = Deadlines()
    for uid in (3, 1, 2):
        deadlines.set(uid, 1.0)
    assert deadlines.expired(1.0) == [1, 2, 3]


def test_a_thread_that_sleeps_until_the_next_finds_it_expired() -> None:
    deadlines = Deadlines()
    deadlines.set(1, 0.1 + 0.2)
    assert deadlines.next is not None
    assert deadlines.expired(math.nextafter(deadlines.next, 0)) == []
    assert deadlines.expired(deadlines.next) == [1]


@pytest.mark.parametrize("later", [True, False])
def test_a_new_deadline_replaces_the_old_one(later: bool) -> None:
    deadlines = Deadlines()
    old, new = (1.0, 2.0) if later else (2.0, 1.0)
    deadlines.set(7, old)
    deadlines.set(7, new)
    assert len(deadlines) == 1 and deadlines.next == new
    assert deadlines.expired(1.5) == ([] if later else [7])
    assert deadlines.expired(3.0) == ([7] if later else [])


def test_back_to_a_moment_that_was_set_before_it_expires_once() -> None:
    deadlines = Deadlines()
    for when in (1.0, 2.0, 1.0):
        deadlines.set(7, when)
    assert deadlines.expired(3.0) == [7] and deadlines.next is None


def test_a_cleared_deadline_does_not_expire() -> None:
    deadlines = Deadlines()
    deadlines.set(1, 1.0)
    deadlines.set(2, 2.0)
    deadlines.clear(1)
    assert deadlines.next == 2.0 and len(deadlines) == 1
    assert deadlines.expired(9.0) == [2]


def test_a_deadline_at_zero_can_be_cleared() -> None:
    deadlines = Deadlines()
    deadlines.set(0, 0.0)
    deadlines.clear(0)
    assert deadlines.next is None


def test_clearing_what_is_not_there_does_nothing() -> None:
    deadlines = Deadlines()
    deadlines.set(1, 1.0)
    deadlines.clear(2)
    deadlines.expired(1.0)
    deadlines.clear(1)
    assert len(deadlines) == 0


def test_a_moment_that_is_no_number_would_break_the_order() -> None:
    with pytest.raises(AssertionError, match="uid 5 is not a number"):
        Deadlines().set(5, math.nan)


def test_what_does_not_hold_any_more_does_not_pile_up() -> None:
    deadlines = Deadlines()
    deadlines.set(0, 0.0)  # holds, so that nothing behind it comes up
    for uid in range(1, 10_000):
        deadlines.set(uid, float(uid))
        deadlines.clear(uid)
    assert len(deadlines._heap) < 100
    for when in range(10_000):
        deadlines.set(1, 1.0 + when)
    assert len(deadlines._heap) < 100
    for _ in range(10_000):
        deadlines.set(1, 1.0)
    assert len(deadlines._heap) < 100
    assert deadlines.expired(1e9) == [0, 1]


def test_many_that_are_cleared_at_once_leave_nothing_behind() -> None:
    deadlines = Deadlines()
    for uid in range(10_000):
        deadlines.set(uid, float(uid))
    for uid in range(1, 10_000):
        deadlines.clear(uid)
    assert len(deadlines._heap) < 100 and deadlines.next == 0.0


MOMENTS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, math.inf])
OPERATIONS = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 5), MOMENTS),
    st.tuples(st.just("clear"), st.integers(0, 5), st.none()),
    st.tuples(st.just("expired"), st.none(), MOMENTS),
    st.tuples(st.just("storm"), st.integers(0, 5), st.none()),
)


@given(st.lists(OPERATIONS, max_size=40))
def test_like_a_dict_that_is_searched(operations: list[tuple[str, int, float]]) -> None:
    deadlines, model = Deadlines(), {}
    for operation, uid, when in operations:
        if operation == "set":
            deadlines.set(uid, when)
            model[uid] = when
        elif operation == "clear":
            deadlines.clear(uid)
            model.pop(uid, None)
        elif operation == "storm":  # enough to clear the heap of what does not hold
            for i in range(80):
                deadlines.set(uid, 10.0 + i)
            model[uid] = 89.0
        else:
            due = sorted((at, one) for one, at in model.items() if at <= when)
            assert deadlines.expired(when) == [one for _, one in due]
            model = {one: at for one, at in model.items() if at > when}
        assert deadlines.next == min(model.values(), default=None)
        assert len(deadlines) == len(model)
        assert len(deadlines._heap) <= 2 * len(model) + 64
