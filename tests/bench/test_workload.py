"""Turning the shape of traffic into concrete requests."""

import math

import numpy as np
import pytest

from headway.bench.traces import TraceRequest
from headway.bench.workload import SyntheticTraffic, arrival_times, from_trace, synthetic

TOKENS = np.arange(100, 160, dtype=np.int32)


def prompts(requests):
    return [r.prompt.tolist() for r in requests]


def test_the_same_seed_makes_the_same_requests_and_another_seed_others():
    traffic = SyntheticTraffic(num_requests=20, rate=5, prompt_tokens=(3, 30), output_tokens=(1, 9))
    one, again, other = (synthetic(traffic, TOKENS, seed) for seed in (1, 1, 2))
    assert prompts(one) == prompts(again)
    assert [(r.arrival_s, r.output_tokens) for r in one] == [(r.arrival_s, r.output_tokens) for r in again]
    assert prompts(one) != prompts(other)
    assert [r.arrival_s for r in one] != [r.arrival_s for r in other]


def test_lengths_cover_their_range_and_tokens_come_from_the_vocabulary():
    traffic = SyntheticTraffic(num_requests=500, prompt_tokens=(3, 5), output_tokens=(2, 4))
    made = synthetic(traffic, TOKENS, 0)
    assert {len(r.prompt) for r in made} == {3, 4, 5}
    assert {r.output_tokens for r in made} == {2, 3, 4}
    assert {token for prompt in prompts(made) for token in prompt} == set(TOKENS.tolist())
    assert all(r.prompt.dtype == np.int32 and not r.prompt.flags.writeable for r in made)


def test_the_shared_prefix_is_shared_and_the_rest_is_not():
    traffic = SyntheticTraffic(num_requests=8, prompt_tokens=(40, 40), shared_prefix_tokens=24)
    made = synthetic(traffic, TOKENS, 0)
    assert len({tuple(p[:24]) for p in prompts(made)}) == 1
    assert len({tuple(p[24:]) for p in prompts(made)}) == 8


def test_an_infinite_rate_sends_everything_at_once():
    assert not arrival_times(5, math.inf, 1.0, 0).any()


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 8.0])
def test_the_mean_gap_is_that_of_the_rate_and_its_spread_that_of_the_burstiness(burstiness):
    times = arrival_times(50_000, 20.0, burstiness, 3)
    gaps = np.diff(times)
    assert times[0] == 0
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.03)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: arrival_times(3, 0.0, 1.0, 0), "rate must be above 0 requests per second, got 0.0"),
        (lambda: arrival_times(3, math.nan, 1.0, 0), "rate must be above 0 requests per second, got nan"),
        (lambda: arrival_times(3, 1.0, 0.0, 0), "burstiness must be above 0 and finite, got 0.0"),
        (lambda: SyntheticTraffic(num_requests=0), "num_requests must be at least 1, got 0"),
        (
            lambda: SyntheticTraffic(num_requests=1, prompt_tokens=(0, 4)),
            "prompt_tokens must be a range from at least 1, got 0 to 4",
        ),
        (
            lambda: SyntheticTraffic(num_requests=1, output_tokens=(5, 4)),
            "output_tokens must be a range from at least 1, got 5 to 4",
        ),
        (
            lambda: SyntheticTraffic(num_requests=1, prompt_tokens=(8, 9), shared_prefix_tokens=8),
            "shared_prefix_tokens must be in .0, 7., .* got 8",
        ),
    ],
)
def test_traffic_that_makes_no_sense_is_refused(make, problem):
    with pytest.raises(ValueError, match=problem):
        make()


def traced(prompt_tokens: int, *prefix_ids: int, block_tokens: float = 8) -> TraceRequest:
    return TraceRequest(0.0, prompt_tokens, 2, prefix_ids, block_tokens)


def test_equal_prefix_ids_are_equal_tokens_and_different_ids_are_different_ones():
    a, b, c = prompts(from_trace([traced(24, 1, 2, 3), traced(24, 1, 2, 9), traced(24, 4, 2, 3)], TOKENS, 0))
    assert a[:16] == b[:16]
    assert a[16:] != b[16:]
    assert a[:8] != c[:8]
    assert a[8:] == c[8:]


def test_a_block_that_one_request_cuts_short_still_shares_what_both_have():
    short, long = prompts(from_trace([traced(11, 1, 2), traced(16, 1, 2)], TOKENS, 0))
    assert short == long[:11]


def test_blocks_of_a_fraction_of_tokens_keep_prefixes_equal():
    requests = [traced(length, *range(40), block_tokens=2.7) for length in (107, 100, 61)]
    a, b, c = prompts(from_trace(requests, TOKENS, 0))
    assert (len(a), len(b), len(c)) == (107, 100, 61)
    assert a[:100] == b
    assert a[:61] == c


def test_tokens_that_no_prefix_id_covers_are_each_requests_own():
    a, b = prompts(from_trace([traced(20, 1), traced(20, 1)], TOKENS, 0))
    assert a[:8] == b[:8]
    assert a[8:] != b[8:]
    c, d = prompts(from_trace([traced(20), traced(20)], TOKENS, 0))
    assert c != d


def test_a_replay_is_the_same_for_the_same_seed_only():
    requests = [traced(30, 1, 2), traced(30, 1, 5)]
    assert prompts(from_trace(requests, TOKENS, 7)) == prompts(from_trace(requests, TOKENS, 7))
    assert prompts(from_trace(requests, TOKENS, 7)) != prompts(from_trace(requests, TOKENS, 8))
