"""Calls that are open at engine replicas, and the requests that share them."""

from __future__ import annotations

import asyncio

import pytest

from headway.cluster.ray import holds
from headway.cluster.ray.holds import Hold, Holds


def call() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def test_a_call_is_over_when_the_last_of_its_requests_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "LINGER_SECONDS", 0.0)
    over: list[Hold] = []
    calls = Holds(over.append, shares=True)
    one = calls.add("a", 1, call())
    assert calls.share("a") is one and calls.share("b") is None
    calls.leave(one)
    await asyncio.sleep(0.01)
    assert not over
    calls.leave(one)
    await asyncio.sleep(0.01)
    assert over == [one] and calls.share("a") is None


async def test_a_request_that_comes_while_a_call_lingers_keeps_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "LINGER_SECONDS", 0.01)
    over: list[Hold] = []
    calls = Holds(over.append, shares=True)
    one = calls.add("a", 1, call())
    calls.leave(one)
    assert calls.share("a") is one
    await asyncio.sleep(0.05)
    assert not over


async def test_of_two_calls_at_one_engine_the_first_is_shared_and_each_ends_once() -> None:
    over: list[Hold] = []
    calls = Holds(over.append, shares=True)
    first, second = calls.add("a", 1, call()), calls.add("a", 2, call())
    assert calls.share("a") is first
    calls.leave(second)
    assert over == [second]


async def test_a_call_that_is_lost_is_shared_no_more_and_another_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holds, "LINGER_SECONDS", 0.0)
    over: list[Hold] = []
    calls = Holds(over.append, shares=True)
    one = calls.add("a", 1, call())
    calls.leave(one)
    calls.lose(one)
    calls.lose(one)
    assert calls.share("a") is None
    other = calls.add("a", 2, call())
    await asyncio.sleep(0.01)
    assert not over and calls.share("a") is other


async def test_routers_that_count_calls_have_one_for_each_request() -> None:
    over: list[Hold] = []
    calls = Holds(over.append, shares=False)
    one = calls.add("a", 1, call())
    assert calls.share("a") is None
    calls.leave(one)
    assert over == [one]
