"""What /metrics tells of KV that moves between engines."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx

from headway.scheduler.snapshot import Snapshot
from headway.server.prefill_engines import PrefillEngines
from headway.transfer.counts import PeerState
from headway.wire.to_client import Status, TransferCounts
from tests.server.conftest import Api
from tests.server.fakes import settled, status
from tests.server.test_metrics import page, series

MakeApi = Callable[..., Api]

COUNTS = TransferCounts(
    peers={state.value: number for number, state in enumerate(PeerState)},
    borrowers=2,
    bytes_read={"shared-memory": 100, "tcp": 30},
    bytes_sent={"tcp": 7},
    seconds={"shared-memory": 0.5, "tcp": 0.25},
    failures={"gone": 3, "peer_down": 0},
    num_refused=4,
    num_bad_messages=5,
)


def pulse(transfers: TransferCounts) -> Status:
    return Status(Snapshot(), False, None, 0, transfers)


async def test_what_the_connector_counts_is_on_the_page_by_its_labels(api: Api) -> None:
    api.link.say(pulse(COUNTS))
    await settled()
    values = await page(api)
    expected = {
        series("kv_transfer_bytes_total", transport="shared-memory", direction="received"): 100,
        series("kv_transfer_bytes_total", transport="tcp", direction="received"): 30,
        series("kv_transfer_bytes_total", transport="tcp", direction="sent"): 7,
        series("kv_transfer_seconds_total", transport="shared-memory"): 0.5,
        series("kv_transfer_seconds_total", transport="tcp"): 0.25,
        series("kv_transfer_failures_total", reason="gone"): 3,
        series("kv_transfer_failures_total", reason="peer_down"): 0,
        series("kv_borrowers"): 2,
        series("kv_peer_errors_total", kind="refused"): 4,
        series("kv_peer_errors_total", kind="bad_message"): 5,
    } | {series("kv_peers", state=state.value): number for number, state in enumerate(PeerState)}
    assert {name: values.get(name) for name in expected} == expected


async def test_an_engine_that_moves_no_kv_has_no_series_of_transfers(api: Api) -> None:
    api.link.say(status())
    await settled()
    values = await page(api)
    absent = ("headway:kv_transfer", "headway:kv_peer", "headway:kv_borrowers", "headway:prefill_requests")
    assert not [name for name in values if name.startswith(absent)]
    assert values[series("kv_leases", state="claimed")] == 0


async def test_leases_are_shown_by_state_and_by_end(api: Api) -> None:
    api.link.say(
        status(
            num_leases_unclaimed=1,
            num_leases_claimed=2,
            num_leases_consumed=3,
            num_leases_released=4,
            num_leases_expired=5,
            num_leases_revoked=6,
        )
    )
    await settled()
    values = await page(api)
    assert [values[series("kv_leases", state=state)] for state in ("unclaimed", "claimed")] == [1, 2]
    reasons = ("consumed", "released", "expired", "revoked")
    assert [values[series("kv_leases_ended_total", reason=reason)] for reason in reasons] == [3, 4, 5, 6]


async def test_after_the_engines_death_counters_stay_and_nothing_is_connected(api: Api) -> None:
    api.link.say(pulse(COUNTS))
    await settled()
    api.link.end("killed by SIGKILL")
    await api.client.dead.wait()
    values = await page(api)
    assert values[series("kv_transfer_bytes_total", transport="tcp", direction="received")] == 30
    assert values[series("kv_borrowers")] == values[series("kv_peers", state="connected")] == 0


async def test_requests_to_prefill_engines_are_counted_by_what_came_of_them(make_api: MakeApi) -> None:
    lent = json.dumps({"choices": [], "kv_transfer_params": {"remote_reference": "a"}})
    answers = {
        1: httpx.Response(200, text=f"data: {lent}\n\ndata: {lent}\n\ndata: [DONE]\n\n"),
        2: httpx.Response(200, text='data: {"choices": []}\n\n'),
        3: httpx.Response(400, json={}),
        4: httpx.Response(200, text=f'data: {lent}\n\ndata: {{"error": "died"}}\n\n'),
        5: httpx.Response(500, json={}),
    }

    async def answer(request: httpx.Request) -> httpx.Response:
        return answers[json.loads(request.content)["prompt"][0]]

    transport = httpx.MockTransport(answer)
    prefill = PrefillEngines(["http://p"], timeout=5.0, least_tokens=1, transport=transport, clock=lambda: 0.0)
    for first in (1, 1, 1, 2, 2, 3, 4, 5):
        await prefill.ask([first] * 4, {}, lambda params: None)
    values = await page(make_api(prefill=prefill))
    outcomes = ("lent", "not_lent", "refused", "failed")
    assert [values[series("prefill_requests_total", outcome=outcome)] for outcome in outcomes] == [3, 2, 1, 2]
