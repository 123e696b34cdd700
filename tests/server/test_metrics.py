"""What /metrics tells of requests, also of requests that end without an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from headway.wire import to_engine
from tests.server.conftest import Api
from tests.server.fakes import MODEL, settled, status

MakeApi = Callable[..., Api]

# Histograms of vLLM's source that no panel of its dashboards shows; `test_dashboards.py` has the others.
HISTOGRAMS = ["request_inference_time_seconds", "request_params_max_tokens", "request_params_n"]


async def page(api: Api) -> dict[str, float]:
    lines = (await api.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def series(name: str, **labels: str) -> str:
    pairs = sorted({"engine": "0", "model_name": MODEL, **labels}.items())
    return "vllm:" + name + "{" + ",".join(f'{key}="{value}"' for key, value in pairs) + "}"


async def test_histograms_that_no_dashboard_shows_are_there_too(api: Api) -> None:
    await api.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3})
    values = await page(api)
    for name in HISTOGRAMS:
        assert values[series(f"{name}_count")] == 1, name


async def test_an_http_request_counts_with_its_status_and_duration_when_it_is_over(api: Api) -> None:
    await api.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3, "stream": True})
    values = await page(api)
    assert values['http_requests_total{handler="/v1/completions",method="POST",status="2xx"}'] == 1
    assert values['http_request_duration_seconds_count{handler="/v1/completions",method="POST"}'] == 1


async def test_a_server_of_several_at_one_address_says_on_each_line_which_it_is(make_api: MakeApi) -> None:
    api = make_api(api_replica="10.0.0.7:99")
    await api.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3})
    lines = [line for line in (await api.get("/metrics")).text.splitlines() if not line.startswith("#")]
    assert len(lines) > 100 and all('api_replica="10.0.0.7:99"' in line for line in lines)


async def test_the_counts_of_a_request_are_those_of_its_prompt_and_answers(api: Api) -> None:
    await api.post("/v1/completions", json={"prompt": [1, 2, 3], "max_tokens": 4, "n": 2})
    values = await page(api)
    sums = {
        "request_prompt_tokens": 3,
        "request_prefill_kv_computed_tokens": 1,
        "request_generation_tokens": 8,
        "request_max_num_generation_tokens": 4,
        "request_params_n": 2,
        "request_params_max_tokens": 4,
        "iteration_tokens_total": 8 + 2 * 3,
    }
    assert {name: values[series(f"{name}_sum")] for name in sums} == sums
    assert values[series("request_success_total", finished_reason="length")] == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_is_counted_as_an_abort(make_api: MakeApi, stream: bool) -> None:
    api = make_api(silent=True)
    body = {"prompt": "abc", "stream": stream, "n": 2}
    asking = asyncio.create_task(api.post("/v1/completions", json=body))
    while not api.link.sent_of(to_engine.AddGroup):
        await asyncio.sleep(0)
    asking.cancel()
    await settled()
    values = await page(api)
    assert values[series("request_success_total", finished_reason="abort")] == 2
    assert values[series("e2e_request_latency_seconds_count")] == 1
    assert values[series("request_prompt_tokens_sum")] == 3
    assert values[series("time_to_first_token_seconds_count")] == 0
    assert values[series("request_decode_time_seconds_count")] == 0


async def test_requests_that_the_death_of_the_engine_ends_are_counted_as_errors(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    asking = asyncio.create_task(api.post("/v1/completions", json={"prompt": "abc"}))
    while not api.link.sent_of(to_engine.AddGroup):
        await asyncio.sleep(0)
    api.link.end("killed by SIGKILL")
    assert (await asking).status_code == 503
    values = await page(api)
    assert values[series("request_success_total", finished_reason="error")] == 1
    assert values[series("request_success_total", finished_reason="abort")] == 0


async def test_a_refused_request_is_no_abort(make_api: MakeApi) -> None:
    api = make_api(refuse=("QueueFullError", "full"))
    await api.post("/v1/completions", json={"prompt": "abc"})
    values = await page(api)
    assert values[series("request_success_total", finished_reason="abort")] == 0
    assert values[series("e2e_request_latency_seconds_count")] == 0


async def test_after_the_engines_death_nothing_runs_and_counters_stay(api: Api) -> None:
    gauges = {"num_running": 3, "num_waiting": 2, "num_preparing": 1, "num_reserved": 1, "num_sending": 1}
    api.link.say(status(**gauges, num_blocks_total=10, num_blocks_free=5, num_preemptions=4, num_prompt_tokens=9))
    await settled()
    before = await page(api)
    assert before[series("num_requests_running")] == 3 and before[series("kv_cache_usage_perc")] == 0.5
    api.link.end("killed by SIGKILL")
    await api.client.dead.wait()
    after = await page(api)
    names = [f"num_requests_{what}" for what in ("running", "waiting", "preparing", "reserved", "sending")]
    assert {after[series(name)] for name in (*names, "kv_cache_usage_perc")} == {0}
    assert {after[series("num_requests_waiting_by_reason", reason=name)] for name in ("capacity", "deferred")} == {0}
    assert (after[series("num_preemptions_total")], after[series("prompt_tokens_total")]) == (4, 9)


async def test_paths_that_are_not_served_share_one_series(api: Api) -> None:
    for number in range(3):
        await api.get(f"/nothing/{number}")
    assert (await page(api))['http_requests_total{handler="none",method="GET",status="4xx"}'] == 3


async def test_prompt_tokens_by_source_add_up_to_the_prompt_tokens(api: Api) -> None:
    """The engine counts a prompt whole when it starts, its cached part included."""
    api.link.say(
        status(num_prompt_tokens=36, num_prefill_tokens=50, num_prefix_query_tokens=36, num_prefix_hit_tokens=8)
    )
    await settled()
    values = await page(api)
    assert values[series("prompt_tokens_total")] == 36
    assert values[series("prompt_tokens_by_source_total", source="local_compute")] == 28
    assert values[series("prompt_tokens_by_source_total", source="local_cache_hit")] == 8
    assert values[series("prompt_tokens_by_source_total", source="external_kv_transfer")] == 0
    assert values[series("prompt_tokens_cached_by_source_total", source="device")] == 8


async def test_waiting_requests_by_reason_add_up_to_the_waiting_requests(api: Api) -> None:
    api.link.say(status(num_waiting=3, num_preparing=2))
    await settled()
    values = await page(api)
    reasons = [values[series("num_requests_waiting_by_reason", reason=name)] for name in ("capacity", "deferred")]
    assert reasons == [3, 2] and values[series("num_requests_waiting")] == 5
