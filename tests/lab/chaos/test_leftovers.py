"""What is left in an engine, and counters over the deaths of servers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from headway_lab.chaos import leftovers
from headway_lab.chaos.counters import Counters
from headway_lab.chaos.leftovers import wait_until_free

FREE = dict.fromkeys(("num_requests", "num_slots_used", "num_blocks_referenced", "num_leases"), 0)
REPORT = {"ok": True, "owners": [], **FREE}


def server(*reports: dict[str, Any], lent: int = 0) -> httpx.AsyncClient:
    """It answers with these reports in turn, and then with the last one for ever."""
    left = list(reports)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            return httpx.Response(200, text=f'headway:kv_blocks_lent{{engine="0"}} {lent}\n')
        return httpx.Response(200, json=left.pop(0) if len(left) > 1 else left[0])

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


async def test_it_waits_until_all_is_free() -> None:
    assert (await wait_until_free(server({**REPORT, "num_leases": 2}, REPORT), "http://d"))[1] is None


@pytest.mark.parametrize(
    "left", [{"num_leases": 1}, {"num_slots_used": 1}, {"num_blocks_referenced": 3}, {"ok": False}]
)
async def test_what_is_left_at_the_end_of_the_bound_is_a_leak(
    monkeypatch: pytest.MonkeyPatch, left: dict[str, Any]
) -> None:
    monkeypatch.setattr(leftovers, "BOUND_S", -leftovers.MARGIN_S)
    problem = (await wait_until_free(server({**REPORT, **left}), "http://d"))[1]
    assert problem is not None and next(iter(left)) in problem


async def test_blocks_that_stay_lent_are_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "BOUND_S", -leftovers.MARGIN_S)
    assert "kv_blocks_lent" in str((await wait_until_free(server(REPORT, lent=1), "http://d"))[1])


def test_a_counter_that_falls_belongs_to_a_new_life() -> None:
    counters = Counters(httpx.AsyncClient(), [], ())
    for value in (3.0, 5.0, 1.0, 4.0):
        counters.note("http://d", "tokens", value)
    assert counters.sums["tokens"] == 9
