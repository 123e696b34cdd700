"""The line: strict, or with waiting time worth something; either way an order that time does not change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.config import SchedulerConfig
from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler.policies.line import AgedPriority, StrictPriority, line_of

PROMPT = np.ones(1, dtype=np.int32)


def request(priority: int = 0, arrival_time: float = 0.0) -> Request:
    return Request(
        uid=1, request_id="1", prompt=PROMPT, sampling=SamplingParams(), max_tokens=1, priority=priority,
        arrival_time=arrival_time,
    )  # fmt: skip


def test_strictly_a_higher_priority_is_first_however_long_others_wait() -> None:
    line = StrictPriority()
    assert line.rank(request(priority=1, arrival_time=1e9)) < line.rank(request(priority=2, arrival_time=0.0))


def test_strictly_equals_are_equal_so_that_who_came_first_is_first() -> None:
    line = StrictPriority()
    assert line.rank(request(priority=1, arrival_time=5.0)) == line.rank(request(priority=1, arrival_time=6.0))


def test_a_level_of_priority_is_worth_so_many_seconds() -> None:
    line = AgedPriority(seconds_per_level=32.0)
    waits = line.rank(request(priority=2, arrival_time=100.0))
    assert line.rank(request(priority=1, arrival_time=131.0)) < waits
    assert line.rank(request(priority=1, arrival_time=132.0)) == waits
    assert line.rank(request(priority=1, arrival_time=133.0)) > waits


def test_aged_equals_are_served_as_they_came() -> None:
    line = AgedPriority(seconds_per_level=30.0)
    assert line.rank(request(arrival_time=5.0)) < line.rank(request(arrival_time=5.001))


@given(
    st.lists(st.tuples(st.integers(-10, 10), st.integers(0, 1000)), min_size=2, max_size=2),
    st.sampled_from([0.5, 4.0, 64.0]),
    st.integers(1000, 10_000),
)
def test_the_order_is_that_of_priority_less_what_waiting_is_worth_at_any_time(
    requests: list[tuple[int, int]], seconds_per_level: float, now: int
) -> None:
    """In binary fractions, so that equal is equal."""
    line = AgedPriority(seconds_per_level)
    (one, other), (one_now, other_now) = (
        [line.rank(request(priority, arrival)) for priority, arrival in requests],
        [priority - (now - arrival) / seconds_per_level for priority, arrival in requests],
    )
    assert (one < other, one == other) == (one_now < other_now, one_now == other_now)


def test_ageing_seconds_chooses() -> None:
    assert isinstance(line_of(SchedulerConfig()), StrictPriority)
    aged = line_of(SchedulerConfig(ageing_seconds=10.0))
    assert aged.rank(request(priority=3, arrival_time=20.0)) == 5.0


@pytest.mark.parametrize("line", [StrictPriority(), AgedPriority(10.0)])
def test_a_rank_is_a_float(line: StrictPriority | AgedPriority) -> None:
    assert type(line.rank(request(priority=3))) is float
