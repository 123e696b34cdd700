"""How loaded an engine is, and how many engines that asks for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headway.cluster.ray.scaling import LOAD, LoadMeter, ScalingPolicy, engines_for


def meter() -> LoadMeter:
    return LoadMeter(ttft_target=2.0, max_num_seqs=10, max_num_batched_tokens=1000)


def test_prompts_that_wait_load_an_engine_by_the_time_that_they_take_it() -> None:
    one = meter()
    for second in range(60):  # it computes 500 tokens a second, with work left each time
        one.take(float(second), 500 * second, 4000)
    assert one.load(num_waiting_tokens=1000, num_busy=1, kv_usage=0.0) == pytest.approx(1.0, rel=0.05)
    assert one.load(num_waiting_tokens=4000, num_busy=1, kv_usage=0.0) == pytest.approx(4.0, rel=0.05)


def test_what_an_idle_engine_computes_is_no_measure_of_what_it_can() -> None:
    one = meter()
    before = one.load(num_waiting_tokens=1000, num_busy=1, kv_usage=0.0)
    for second in range(60):
        one.take(float(second), second, 0)
    assert one.load(num_waiting_tokens=1000, num_busy=1, kv_usage=0.0) == before


def test_slots_and_the_cache_load_an_engine_too() -> None:
    assert meter().load(num_waiting_tokens=0, num_busy=5, kv_usage=0.1) == 0.5
    assert meter().load(num_waiting_tokens=0, num_busy=0, kv_usage=0.9) == 0.9


@pytest.mark.parametrize(
    ("loads", "number"), [([0.0], 1), ([0.7], 1), ([0.71], 2), ([2.0], 3), ([0.3, 0.3], 1), ([0.5, 0.5], 2)]
)
def test_engines_share_the_load_so_that_each_has_the_target(loads: list[float], number: int) -> None:
    assert engines_for(loads, 0.7) == number


def test_the_policy_keeps_the_number_while_no_engine_has_reported() -> None:
    context = SimpleNamespace(aggregated_metrics={}, target_num_replicas=3)
    assert ScalingPolicy(0.7)(context) == (3, {})


def test_the_policy_adds_the_loads_that_engines_report() -> None:
    context = SimpleNamespace(aggregated_metrics={LOAD: {"a": 1.0, "b": 1.0}}, target_num_replicas=2)
    assert ScalingPolicy(0.7)(context) == (3, {})
