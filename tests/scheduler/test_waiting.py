"""WaitingQueue: priority, then arrival; the dead take no place for long."""

from headway.request import Request, RequestStatus, SamplingParams
from headway.scheduler.entry import Entry
from headway.scheduler.waiting import WaitingQueue
from tests.oracle_device import prompt_of


def entry(seniority: int, priority: int = 0) -> Entry:
    request = Request(
        uid=seniority, request_id=str(seniority), prompt=prompt_of([1]), sampling=SamplingParams(), max_tokens=1,
        priority=priority,
    )  # fmt: skip
    return Entry(request, seniority, request.prompt, b"")


def test_lower_priority_values_first_then_first_come() -> None:
    queue = WaitingQueue()
    for one in (entry(1, 5), entry(2, 0), entry(3, 0), entry(4, 1)):
        queue.push(one)
    assert [queue.pop().seniority for _ in range(4)] == [2, 3, 4, 1]
    assert queue.head() is None


def test_a_preempted_request_returns_to_its_place() -> None:
    queue = WaitingQueue()
    early, late = entry(1), entry(2)
    queue.push(late)
    early.status = RequestStatus.PREEMPTED
    queue.push(early)
    assert queue.head() is early


def test_one_who_ended_is_not_counted_and_not_served() -> None:
    queue = WaitingQueue()
    first, second = entry(1), entry(2)
    queue.push(first)
    queue.push(second)
    first.status = RequestStatus.FINISHED
    queue.forget(first)
    assert len(queue) == 1 and queue.pop() is second


def test_the_dead_behind_a_living_head_are_cleared_away() -> None:
    queue = WaitingQueue()
    entries = [entry(i) for i in range(1000)]
    for one in entries:
        queue.push(one)
    for one in entries[1:]:
        one.status = RequestStatus.FINISHED
        queue.forget(one)
    assert len(queue) == 1 and len(queue._heap) < 100
    assert queue.pop() is entries[0]
