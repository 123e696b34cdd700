"""WaitingQueue: by place in line, whichever request comes back or leaves; a request that left does not stay behind."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.scheduler.state import waiting_queue
from headway.scheduler.state.waiting_queue import LOOKAHEAD, RUN_LENGTH, WaitingQueue


@dataclass(eq=False)
class Queued:
    """All of an entry that the queue looks at."""

    place_in_line: tuple[float, int]


def entry(seniority: int, rank: float = 0.0) -> Queued:
    return Queued((rank, seniority))


def queue_of(*entries: Queued) -> WaitingQueue:
    queue = WaitingQueue()
    for one in entries:
        queue.push(one)
    return queue


def served(queue: WaitingQueue) -> list[Queued]:
    """All requests, each taken when it is the head."""
    order = []
    while (head := queue.head()) is not None:
        queue.take(head)
        order.append(head)
    return order


def test_no_request_waits_in_a_new_queue() -> None:
    queue = WaitingQueue()
    assert len(queue) == 0 and queue.head() is None and queue.window() == [] and list(queue) == []


def test_lower_ranks_first_then_first_come() -> None:
    entries = [entry(1, 5), entry(2, 0), entry(3, 0), entry(4, 0.5)]
    assert [one.place_in_line[1] for one in served(queue_of(*entries))] == [2, 3, 4, 1]


def test_the_head_stays_queued() -> None:
    first, second = entry(1), entry(2)
    queue = queue_of(second, first)
    assert queue.head() is first and queue.head() is first and len(queue) == 2


def test_a_preempted_request_returns_to_its_place() -> None:
    first, second, third = entry(1), entry(2), entry(3)
    queue = queue_of(first, second, third)
    queue.take(second)
    assert list(queue) == [first, third]
    queue.push(second)
    assert queue.window() == [first, second, third] and len(queue) == 3


def test_a_request_that_comes_and_goes_is_there_once_or_not_at_all() -> None:
    others, one = [entry(i) for i in range(0, 200, 2)], entry(101)
    queue = queue_of(*others)
    for _ in range(5):
        queue.push(one)
        assert list(queue).count(one) == 1
        queue.take(one)
        assert one not in list(queue)
    queue.push(one)
    queue.take(one)
    assert served(queue) == others


def test_one_who_ended_is_not_counted_and_not_served() -> None:
    first, second = entry(1), entry(2)
    queue = queue_of(first, second)
    queue.take(first)
    assert len(queue) == 1 and served(queue) == [second]


def test_the_window_shows_the_first_in_order() -> None:
    entries = [entry(i) for i in range(3 * LOOKAHEAD)]
    queue = queue_of(*reversed(entries))
    assert queue.window() == entries[:LOOKAHEAD]
    for one in entries[: 2 * LOOKAHEAD + 4 : 2]:
        queue.take(one)
    left = [one for one in entries if one not in entries[: 2 * LOOKAHEAD + 4 : 2]]
    assert queue.window() == left[:LOOKAHEAD]


def test_the_window_shows_all_when_fewer_wait() -> None:
    entries = [entry(i) for i in range(LOOKAHEAD - 1)]
    assert queue_of(*entries).window() == entries


def test_the_window_is_whole_where_the_first_runs_have_become_short() -> None:
    entries = [entry(i) for i in range(4 * RUN_LENGTH)]
    queue = queue_of(*entries)
    left = entries[:: RUN_LENGTH // 7]
    for one in entries:
        if one not in left:
            queue.take(one)
    assert queue.window() == left[:LOOKAHEAD] and len(left) > LOOKAHEAD


def test_any_of_the_window_can_be_taken_while_walking_along_it() -> None:
    entries = [entry(i) for i in range(LOOKAHEAD + 8)]
    queue = queue_of(*entries)
    for one in queue.window():
        if one.place_in_line[1] % 2:
            queue.take(one)
    assert list(queue) == [one for one in entries if not (one.place_in_line[1] % 2 and one in entries[:LOOKAHEAD])]


def test_a_request_that_is_not_queued_cannot_be_taken() -> None:
    early, queued, late = entry(1), entry(2), entry(3)
    queue = queue_of(queued)
    for stranger in (early, late, entry(2)):
        with pytest.raises(AssertionError, match="waits at"):
            queue.take(stranger)
    assert list(queue) == [queued] and len(queue) == 1


def test_many_thousands_wait_in_short_runs_and_leave_nothing_behind() -> None:
    entries = [entry(i, rank=i * 7919 % 5) for i in range(20_000)]
    queue = queue_of(*entries)
    assert max(map(len, queue._runs)) <= RUN_LENGTH and len(queue._runs) < 4 * len(entries) / RUN_LENGTH
    assert list(queue) == sorted(entries, key=lambda one: one.place_in_line)
    for one in entries[1:]:
        queue.take(one)
    assert queue._runs == [[entries[0]]]
    queue.take(entries[0])
    assert queue._runs == []


@given(st.data())
def test_like_a_sorted_list(data: st.DataObject) -> None:
    """Runs of 4, so that they split, join in the window and vanish; ranks in a few levels, so that seniority counts."""
    ranks = data.draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=50, max_size=50))
    outside = [Queued((rank, i)) for i, rank in enumerate(ranks)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting_queue, "RUN_LENGTH", 4)
        queue = queue_of(*outside[25:])
        model = sorted(outside[25:], key=lambda one: one.place_in_line)
        del outside[25:]
        for operation in data.draw(st.lists(st.sampled_from(["push", "take", "drop"]), max_size=80)):
            if operation == "push" and outside:
                one = outside.pop(data.draw(st.integers(0, len(outside) - 1)))
                queue.push(one)
                model.append(one)
                model.sort(key=lambda one: one.place_in_line)
            elif operation == "take" and model:
                one = data.draw(st.sampled_from(queue.window()))
                queue.take(one)
                model.remove(one)
                outside.append(one)
            elif operation == "drop" and model:
                one = data.draw(st.sampled_from(model))
                queue.take(one)
                model.remove(one)
            assert len(queue) == len(model)
            assert queue.head() is (model[0] if model else None)
            assert queue.window() == model[:LOOKAHEAD]
            assert list(queue) == model
            assert all(0 < len(run) <= 4 for run in queue._runs)
