"""What /metrics tells: the series of vLLM's dashboards, and requests that end without an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from headway.wire import to_engine
from tests.server.conftest import Api
from tests.server.fakes import MODEL, settled, status

MakeApi = Callable[..., Api]

# The series of vLLM's public Grafana dashboards, as cases found them missing, and further series of vLLM's source.
HISTOGRAMS = [
    "e2e_request_latency_seconds",
    "inter_token_latency_seconds",
    "iteration_tokens_total",
    "request_decode_time_seconds",
    "request_generation_tokens",
    "request_inference_time_seconds",
    "request_max_num_generation_tokens",
    "request_params_max_tokens",
    "request_params_n",
    "request_prefill_kv_computed_tokens",
    "request_prefill_time_seconds",
    "request_prompt_tokens",
    "request_queue_time_seconds",
    "request_time_per_output_token_seconds",
    "time_to_first_token_seconds",
]
OTHERS = [
    "generation_tokens_total",
    "kv_cache_usage_perc",
    "num_preemptions_total",
    "num_requests_running",
    "num_requests_waiting",
    "prefix_cache_hits_total",
    "prefix_cache_queries_total",
    "prompt_tokens_cached_total",
    "prompt_tokens_total",
]
LABELLED = {
    "num_requests_waiting_by_reason": ("reason", ["capacity", "deferred"]),
    "prompt_tokens_by_source_total": ("source", ["local_compute", "local_cache_hit"]),
    "request_success_total": ("finished_reason", ["stop", "length", "abort", "error"]),
}


async def page(api: Api) -> dict[str, float]:
    lines = (await api.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def series(name: str, **labels: str) -> str:
    pairs = sorted({"engine": "0", "model_name": MODEL, **labels}.items())
    return "vllm:" + name + "{" + ",".join(f'{key}="{value}"' for key, value in pairs) + "}"


async def test_every_panel_of_vllms_dashboards_has_its_series_after_one_request(api: Api) -> None:
    await api.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3})
    values = await page(api)
    for name in HISTOGRAMS:
        assert values[series(f"{name}_count")] >= 1, name
        assert series(f"{name}_bucket", le="+Inf") in values and series(f"{name}_sum") in values
    assert [name for name in OTHERS if series(name) not in values] == []
    for name, (label, labels) in LABELLED.items():
        assert [value for value in labels if series(name, **{label: value}) not in values] == [], name
    assert values['http_requests_total{handler="/v1/completions",method="POST",status="2xx"}'] == 1


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
