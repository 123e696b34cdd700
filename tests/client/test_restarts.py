"""What outlives an engine process, and what does not: a client in front of fake engines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from headway.client.engine_client import EngineStartError, PendingRequest
from headway.client.link import Link
from headway.client.restart_budget import RestartBudget
from headway.client.totals import COUNTERS, Totals
from headway.config import SchedulerConfig
from headway.errors import EngineDeadError, EngineRestartingError
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.scheduler.snapshot import Snapshot
from headway.wire import to_client, to_engine
from tests.server.fakes import FakeLink, fake_client, settled, status


class Engines:
    """Fake engines, one after the other. Each new one starts when `gate` is set."""

    def __init__(self, restarts: int) -> None:
        self.client, first = fake_client(silent=True, reopen=self.reopen, restarts=RestartBudget(restarts))
        self.links = [first]
        self.paused: list[bool] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures = 0  # how many of the next starts fail

    async def reopen(self, paused: bool) -> tuple[Link, SchedulerConfig]:
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise EngineStartError("no memory")
        assert self.links[-1].killed, "the old process must be gone before the next one starts"
        self.paused.append(paused)
        self.links.append(FakeLink(self.links[0].tokens))
        return self.links[-1], self.client.config

    def submit(self, request_id: str) -> PendingRequest:
        new = NewRequest(
            request_id=request_id, prompt=self.client.pack([1, 2]), sampling=SamplingParams(max_tokens=2, temperature=0)
        )
        return self.client.submit([new], stream=False)


def test_a_budget_allows_so_many_restarts_in_its_window_and_more_when_they_are_old() -> None:
    budget = RestartBudget(2, window=600)
    assert [budget.take(now) for now in (0, 10, 20, 599, 600, 601, 610)] == [
        True,
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert not RestartBudget().take(0)
    with pytest.raises(ValueError, match="engine_restarts must be at least 0, got -1"):
        RestartBudget(-1)


def test_counters_go_on_over_restarts_and_gauges_are_those_of_the_present_engine() -> None:
    totals = Totals()
    totals.take(to_client.Status(Snapshot(num_running=3, num_requests_added=5, step_id=9), False, None, 2))
    totals.end(paused=True)
    assert totals.snapshot == Snapshot(num_requests_added=5, step_id=9, paused=True)
    totals.take(to_client.Status(Snapshot(num_running=1, num_requests_added=1, step_id=1), False, None, 1))
    assert totals.snapshot == Snapshot(num_running=1, num_requests_added=6, step_id=10)
    assert totals.num_wire_errors == 3
    assert not {"num_running", "num_blocks_free", "paused", "next_deadline"} & set(COUNTERS)


def test_what_connectors_have_moved_goes_on_over_restarts_and_their_connections_do_not() -> None:
    totals = Totals()
    totals.take(to_client.Status(Snapshot(), False, None))
    assert totals.transfers is None, "an engine that moves no KV"
    totals.end(paused=False)
    assert totals.transfers is None
    moved = to_client.TransferCounts({"connected": 1}, 2, {"tcp": 5}, {}, {"tcp": 0.5}, {"gone": 1}, 1, 1)
    for _ in range(2):  # a pulse says how it stands, not what is new
        totals.take(to_client.Status(Snapshot(), False, None, 0, moved))
    totals.end(paused=False)
    assert totals.transfers == to_client.TransferCounts(
        {"connected": 0}, 0, {"tcp": 5}, {}, {"tcp": 0.5}, {"gone": 1}, 1, 1
    )
    totals.take(to_client.Status(Snapshot(), False, None, 0, moved))
    assert totals.transfers == to_client.TransferCounts(
        {"connected": 1}, 2, {"tcp": 10}, {}, {"tcp": 1.0}, {"gone": 2}, 2, 2
    )


def test_batches_of_kv_events_go_on_over_restarts() -> None:
    totals = Totals()
    totals.take(to_client.Status(Snapshot(), False, None))
    totals.end(paused=False)
    assert totals.kv_events is None, "an engine that publishes none"
    for expected in (5, 10):
        for _ in range(2):
            totals.take(to_client.Status(Snapshot(), False, None, 0, None, to_client.KVEventCounts(5, 1)))
        assert totals.kv_events == to_client.KVEventCounts(expected, expected // 5)
        totals.end(paused=False)
    assert totals.kv_events == to_client.KVEventCounts(10, 2)


async def test_without_a_budget_the_engine_stays_dead_and_this_is_critical(caplog: pytest.LogCaptureFixture) -> None:
    engines = Engines(restarts=0)
    pending = engines.submit("a")
    engines.links[0].end("killed by SIGKILL")
    await asyncio.wait_for(engines.client.dead.wait(), 60)
    with pytest.raises(EngineDeadError, match="SIGKILL"):
        await anext(pending)
    (record,) = (record for record in caplog.records if record.levelno == logging.CRITICAL)
    assert "killed by SIGKILL" in record.message and "1 open requests fail" in record.message
    assert engines.client.why_unhealthy() is not None
    await engines.client.shutdown()


@pytest.mark.parametrize(
    "die",
    [
        lambda link: link.end("killed by SIGKILL"),
        lambda link: link.end("exit status 1"),
        lambda link: link.say(
            status("the engine stopped: OwnershipError: block 3 is owned twice", num_requests_added=4)
        ),
    ],
    ids=["kill", "exit", "invariant"],
)
async def test_a_restart_resubmits_nothing_and_refuses_until_the_new_engine_is_there(
    die: Callable[[FakeLink], None],
) -> None:
    engines = Engines(restarts=1)
    engines.links[0].say(status(num_requests_added=4, num_running=1))
    engines.gate.clear()
    pending = engines.submit("a")
    await settled()
    die(engines.links[0])
    await settled()
    with pytest.raises(EngineRestartingError):
        await anext(pending)
    with pytest.raises(EngineRestartingError, match="is being restarted"):
        engines.submit("b")
    assert engines.client.snapshot.num_running == 0 and engines.client.why_unhealthy() is not None
    engines.gate.set()
    await settled()
    assert engines.client.why_unhealthy() is None and engines.client.num_restarts == 1
    assert engines.links[1].sent_of(to_engine.AddGroup) == []
    (updates,) = [updates async for updates in engines.submit("a")]  # the same id is free again
    assert updates[0].output.finished
    engines.links[1].say(status(num_requests_added=1))
    await settled()
    assert engines.client.snapshot.num_requests_added == 5
    assert not engines.client.dead.is_set()
    die(engines.links[1])
    await settled()
    assert engines.client.dead.is_set(), "the budget is one"
    await engines.client.shutdown()


async def test_an_engine_that_does_not_start_again_uses_the_budget_up() -> None:
    engines = Engines(restarts=2)
    engines.failures = 5
    engines.links[0].end("exit status 1")
    await asyncio.wait_for(engines.client.dead.wait(), 60)
    assert engines.failures == 3
    assert "could not be restarted: no memory" in str(engines.client.why_unhealthy())
    await engines.client.shutdown()


@pytest.mark.parametrize("answered", [True, False], ids=["paused", "pausing"])
async def test_a_pause_outlives_the_engine_that_was_paused_or_about_to_be(answered: bool) -> None:
    engines = Engines(restarts=2)
    if answered:
        engines.links[0].ask = lambda call: None
    pausing = asyncio.create_task(engines.client.pause())
    await settled()
    engines.links[0].end("killed by SIGKILL")
    await settled()
    if answered:
        await pausing
    else:
        with pytest.raises(EngineRestartingError):
            await pausing
    assert engines.paused == [True]
    engines.links[1].ask = lambda call: None
    await engines.client.resume()
    engines.links[1].end("killed by SIGKILL")
    await settled()
    assert engines.paused == [True, False]
    await engines.client.shutdown()


async def test_a_pause_that_a_dead_engine_refuses_does_not_outlive_it() -> None:
    engines = Engines(restarts=1)
    engines.gate.clear()
    engines.links[0].end("killed by SIGKILL")
    await settled()
    with pytest.raises(EngineRestartingError):
        await engines.client.pause()
    engines.gate.set()
    await settled()
    assert engines.paused == [False]
    await engines.client.shutdown()


async def test_a_client_that_shuts_down_while_the_engine_restarts_ends() -> None:
    engines = Engines(restarts=1)
    engines.gate.clear()
    engines.links[0].end("killed by SIGKILL")
    await settled()
    await asyncio.wait_for(engines.client.shutdown(), 60)
    assert len(engines.links) == 1
