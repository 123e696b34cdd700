"""The figures of a run: what they mean, and which are refused."""

import pytest

from headway.bench.load import LoadResult, Outcome
from headway.bench.report import block, figures, percentile


def outcome(ttft_s=0.1, itl_s=(0.02, 0.04), prompt_tokens=10, output_tokens=3, **more):
    latency_s = ttft_s + sum(itl_s)
    return Outcome(ttft_s, list(itl_s), latency_s, prompt_tokens, output_tokens, **more)


@pytest.mark.parametrize(("percent", "enough"), [(50, 2), (90, 10), (95, 20), (99, 100), (99.9, 1000)])
def test_a_percentile_takes_as_many_samples_as_it_speaks_of(percent, enough):
    assert percentile([1.0] * enough, percent) == 1.0
    assert percentile([1.0] * (enough - 1), percent) is None


def test_percentiles_are_those_of_the_samples():
    samples = [float(i) for i in range(101)]
    assert percentile(samples, 50) == 50
    assert percentile(samples, 99) == 99


def test_throughput_and_latencies_are_computed_from_the_outcomes():
    row = figures(LoadResult([outcome(), outcome(ttft_s=0.3)], duration_s=2.0, send_lag_s=0.001))
    assert row["successful_requests"] == 2
    assert row["total_input_tokens"] == 20
    assert row["total_generated_tokens"] == 6
    assert row["request_throughput_req_per_s"] == 1.0
    assert row["output_throughput_tok_per_s"] == 3.0
    assert row["total_throughput_tok_per_s"] == 13.0
    assert row["mean_ttft_ms"] == pytest.approx(200)
    assert row["median_ttft_ms"] == pytest.approx(200)
    assert row["mean_tpot_ms"] == pytest.approx(30)
    assert row["mean_itl_ms"] == pytest.approx(30)
    assert row["mean_e2el_ms"] == pytest.approx(260)
    assert row["max_send_lag_ms"] == pytest.approx(1)
    assert row["p99_ttft_ms"] is None
    assert "right_answers" not in row


def test_failed_requests_count_as_failed_and_for_nothing_else():
    row = figures(LoadResult([outcome(), Outcome(error="HTTP 503")], 1.0, 0.0))
    assert (row["successful_requests"], row["failed_requests"]) == (1, 1)
    assert row["total_generated_tokens"] == 3


def test_an_answer_of_one_token_has_no_time_between_tokens():
    row = figures(LoadResult([outcome(itl_s=(), output_tokens=1)], 1.0, 0.0))
    assert row["mean_tpot_ms"] is None
    assert row["mean_itl_ms"] is None
    assert row["mean_ttft_ms"] == pytest.approx(100)


def test_graded_answers_are_counted():
    row = figures(LoadResult([outcome(right=True), outcome(right=True), outcome(right=False)], 1.0, 0.0))
    assert (row["right_answers"], row["wrong_answers"]) == (2, 1)


def test_the_block_is_the_one_that_vllm_prints():
    row = figures(LoadResult([outcome(right=True) for _ in range(100)], 4.0, 0.0))
    text = block(row | {"request_rate_req_per_s": 8.0, "max_concurrency": 4})
    lines = text.splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[-1] == "=" * 50
    assert "---------------Time to First Token----------------" in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert "---------------Inter-token Latency----------------" in lines
    assert "----------------End-to-end Latency----------------" in lines
    for line in (
        "Successful requests:                     100",
        "Failed requests:                         0",
        "Maximum request concurrency:             4",
        "Request rate configured (RPS):           8.00",
        "Benchmark duration (s):                  4.00",
        "Request throughput (req/s):              25.00",
        "Output token throughput (tok/s):         75.00",
        "Total token throughput (tok/s):          325.00",
        "P99 TTFT (ms):                           100.00",
        "Right answers:                           100",
    ):
        assert line in lines


def test_the_block_says_which_figures_it_refuses():
    lines = block(figures(LoadResult([outcome()], 1.0, 0.0))).splitlines()
    assert "P99 E2EL (ms):                           n/a" in lines
    assert lines[-1] == "n/a: too few samples; a mean takes 1, a median 2, a P99 100."
