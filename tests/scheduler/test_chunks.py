"""ChunkPlan and never_fits: how a step's budget is shared, and that no request waits for ever."""

import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.config import Role, SchedulerConfig
from headway.request import Request, Span
from headway.sampling import SamplingParams
from headway.scheduler.fitting import never_fits
from headway.scheduler.passes.chunk_plan import ChunkPlan, end_of_chunk
from headway.scheduler.state.encoder_cache import EncoderCache
from tests.examples import examples

SAMPLING = SamplingParams()


def config_of(**options: Any) -> SchedulerConfig:
    base = {"max_num_seqs": 4, "max_num_batched_tokens": 100, "block_size": 4, "max_model_len": 1000}
    return SchedulerConfig(**{**base, "long_prefill_token_threshold": 0, **options})


def prompt_of(length: int, *spans: Span, uid: int = 1, max_tokens: int = 1) -> Request:
    return Request(
        uid=uid,
        request_id=str(uid),
        prompt=np.zeros(length, dtype=np.int32),
        sampling=SAMPLING,
        max_tokens=max_tokens,
        spans=spans,
    )


def image(start: int, length: int, digest: bytes = b"image", size: int | None = None) -> Span:
    return Span(start, length, digest, length if size is None else size)


def plan_of(budget: int | None = None, encoder: EncoderCache | None = None, **options: Any) -> ChunkPlan:
    config = config_of(**options)
    cache = encoder or EncoderCache(config.encoder_budget)
    return ChunkPlan(config, cache, config.max_num_batched_tokens if budget is None else budget)


def offer(plan: ChunkPlan, key: int, left: int, start: int = 0) -> int:
    return plan.offer(prompt_of(start + left, uid=key), key, start, start + left)


# -- budget ---------------------------------------------------------------------------------------------------------


def test_who_is_offered_first_gets_what_it_can_use_and_the_next_the_rest() -> None:
    plan = plan_of()
    assert [offer(plan, 7, 60), offer(plan, 3, 60), offer(plan, 5, 60)] == [60, 40, 0]
    assert plan.counts == {7: 60, 3: 40} and list(plan.counts) == [7, 3] and plan.budget == 0


def test_a_newcomer_finds_room_while_there_is_budget() -> None:
    plan = plan_of()
    offer(plan, 1, 99)
    assert plan.has_room_for(0, 50)
    offer(plan, 2, 1)
    assert not plan.has_room_for(0, 50) and not plan.has_room_for(49, 50)


# -- long prompts ---------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_capped_while_others_have_use_for_the_budget() -> None:
    plan = plan_of(long_prefill_token_threshold=40)
    assert [offer(plan, 1, 500), offer(plan, 2, 30), offer(plan, 3, 40)] == [40, 30, 30]
    plan.top_up(lambda _key: False)
    assert plan.counts == {1: 40, 2: 30, 3: 30}


def test_what_no_other_request_uses_goes_to_the_long_prompts_in_order() -> None:
    plan = plan_of(long_prefill_token_threshold=20, max_long_partial_prefills=2)
    assert [offer(plan, 1, 45), offer(plan, 2, 500), offer(plan, 3, 10)] == [20, 20, 10]
    plan.top_up(lambda _key: False)
    assert plan.counts == {1: 45, 2: 45, 3: 10} and list(plan.counts) == [1, 2, 3] and plan.budget == 0


def test_a_prompt_is_long_by_what_is_left_of_it() -> None:
    plan = plan_of(long_prefill_token_threshold=40)
    assert offer(plan, 1, 40, start=500) == 40
    assert offer(plan, 2, 41) == 40


def test_without_a_threshold_no_prompt_is_long() -> None:
    plan = plan_of(long_prefill_token_threshold=0)
    assert offer(plan, 1, 900) == 100


def test_by_default_half_the_budget_makes_a_prompt_long() -> None:
    plan = plan_of(long_prefill_token_threshold=None)
    assert offer(plan, 1, 900) == 50


def test_short_prompts_pass_the_long_ones_that_wait() -> None:
    plan = plan_of(long_prefill_token_threshold=20, max_long_partial_prefills=1)
    assert [offer(plan, 1, 300), offer(plan, 2, 300), offer(plan, 3, 20)] == [20, 0, 20]
    assert not plan.has_room_for(0, 21) and plan.has_room_for(0, 20)
    plan.top_up(lambda _key: False)
    assert plan.counts == {1: 80, 3: 20}


def test_a_long_prompt_that_is_topped_up_to_its_end_makes_room_for_another() -> None:
    plan = plan_of(long_prefill_token_threshold=20, max_num_partial_prefills=1)
    offer(plan, 1, 60)
    assert not plan.has_room_for(0, 21)
    plan.top_up(lambda _key: False)
    assert plan.counts == {1: 60} and plan.has_room_for(0, 21)
    assert offer(plan, 2, 50) == 20


# -- partial prefills -----------------------------------------------------------------------------------------------


def test_so_many_chunks_may_leave_their_prompt_part_way_computed() -> None:
    plan = plan_of(long_prefill_token_threshold=20, max_long_partial_prefills=9, max_num_partial_prefills=2)
    assert [offer(plan, key, 50) for key in (1, 2, 3)] == [20, 20, 0]
    assert offer(plan, 4, 20) == 20
    assert not plan.has_room_for(0, 21) and plan.has_room_for(0, 20)


def test_a_prompt_refused_for_that_leaves_the_budget_to_the_next() -> None:
    plan = plan_of(long_prefill_token_threshold=60, max_num_partial_prefills=1)
    assert [offer(plan, 1, 200), offer(plan, 2, 50), offer(plan, 3, 40)] == [60, 0, 40]


# -- deterministic mode ---------------------------------------------------------------------------------------------


def test_deterministic_chunks_end_at_multiples_or_with_the_known_tokens() -> None:
    plan = plan_of(deterministic=True, deterministic_chunk_size=16)
    assert offer(plan, 1, 30, start=10) == 30
    assert offer(plan, 2, 500, start=5) == 59  # to 64; 70 are left
    assert plan.budget == 11
    assert offer(plan, 3, 500) == 0
    assert offer(plan, 4, 500, start=6) == 10
    assert not plan.has_room_for(0, 2) and offer(plan, 5, 1) == 1 and not plan.has_room_for(0, 1)


def test_where_a_deterministic_chunk_ends_depends_on_the_budget_through_multiples_only() -> None:
    ends = {end_of_chunk((), 5, 100, limit, 16) for limit in range(200)}
    assert ends == {5, 16, 32, 48, 64, 80, 96, 100}


def test_the_cap_of_long_prompts_never_keeps_one_from_the_next_multiple() -> None:
    plan = plan_of(deterministic=True, deterministic_chunk_size=16, long_prefill_token_threshold=5)
    assert offer(plan, 1, 300) == 16
    assert offer(plan, 2, 6) == 6  # long, and still complete


# -- spans ----------------------------------------------------------------------------------------------------------


def test_no_chunk_ends_within_a_span() -> None:
    plan = plan_of(budget=50)
    assert plan.offer(prompt_of(300, image(30, 40)), 1, 0, 300) == 30
    assert plan.offer(prompt_of(300, image(0, 40), uid=2), 2, 0, 300) == 0
    assert plan.offer(prompt_of(300, image(10, 10), uid=3), 3, 0, 300) == 20


def test_a_span_whose_beginning_is_cached_is_computed_to_its_end() -> None:
    plan = plan_of(budget=50)
    assert plan.offer(prompt_of(300, image(0, 70)), 1, 16, 300) == 0
    assert plan.offer(prompt_of(300, image(0, 60), uid=2), 2, 16, 300) == 50


def test_the_cap_of_long_prompts_never_keeps_one_from_the_end_of_a_span() -> None:
    plan = plan_of(long_prefill_token_threshold=5)
    assert plan.offer(prompt_of(300, image(0, 30)), 1, 0, 300) == 30
    assert plan_of(long_prefill_token_threshold=5).offer(prompt_of(300, image(3, 30)), 1, 0, 300) == 3


def test_a_deterministic_chunk_prefers_a_multiple_outside_all_spans() -> None:
    spans = (image(20, 20),)
    ends = {limit: end_of_chunk(spans, 0, 100, limit, 16) for limit in (15, 16, 20, 32, 40, 47, 48)}
    assert ends == {15: 0, 16: 16, 20: 16, 32: 16, 40: 16, 47: 16, 48: 48}


def test_a_span_over_all_multiples_in_reach_is_gone_around_at_its_boundaries() -> None:
    spans = (image(10, 10), image(20, 30))
    assert end_of_chunk(spans, 0, 100, 16, 16) == 10
    assert end_of_chunk(spans, 10, 100, 16, 16) == 20
    assert end_of_chunk(spans, 20, 100, 30, 16) == 50
    assert end_of_chunk(spans, 50, 100, 16, 16) == 64


def test_a_boundary_just_in_reach_is_taken_where_no_multiple_is() -> None:
    plan = plan_of(budget=10, deterministic=True, deterministic_chunk_size=16)
    assert plan.offer(prompt_of(100, image(10, 10)), 1, 0, 100) == 10


# -- encoder --------------------------------------------------------------------------------------------------------


def test_the_spans_of_a_chunk_are_encoded_and_no_others() -> None:
    encoder = EncoderCache(100)
    spans = (image(0, 4, b"computed"), image(4, 4, b"cached in part"), image(10, 4, b"whole"), image(20, 4, b"later"))
    plan = plan_of(budget=12, encoder=encoder)
    assert plan.offer(prompt_of(100, *spans), 9, 6, 100) == 12
    assert encoder.take_changes()[0] == [(1, spans[1]), (1, spans[2])]


def test_spans_with_nothing_to_encode_need_nothing() -> None:
    encoder = EncoderCache(0)
    plan = plan_of(budget=20, encoder=encoder)
    assert plan.offer(prompt_of(100, image(5, 10, size=0)), 1, 0, 100) == 20
    assert encoder.take_changes() == ([], [])


def test_a_chunk_ends_before_the_span_for_which_the_encoder_has_no_room() -> None:
    encoder = EncoderCache(10)
    plan = plan_of(encoder=encoder)
    assert plan.offer(prompt_of(60, image(5, 8, b"a"), image(20, 8, b"b")), 1, 0, 60) == 20
    assert [span.digest for _, span in encoder.take_changes()[0]] == [b"a"]


def test_a_span_that_the_chunk_does_not_reach_after_all_is_not_encoded() -> None:
    encoder = EncoderCache(10)
    plan = plan_of(encoder=encoder, deterministic=True, deterministic_chunk_size=16)
    request = prompt_of(60, image(17, 4, b"a"), image(22, 8, b"b"))
    assert plan.offer(request, 1, 0, 60) == 16
    assert encoder.take_changes() == ([], []) and encoder.room == 10


def test_a_refused_prompt_has_nothing_encoded() -> None:
    encoder = EncoderCache(100)
    plan = plan_of(encoder=encoder, long_prefill_token_threshold=20, max_num_partial_prefills=1)
    offer(plan, 1, 50)
    assert plan.offer(prompt_of(60, image(0, 4), uid=2), 2, 0, 60) == 0
    assert encoder.take_changes() == ([], []) and encoder.room == 100


def test_behind_a_request_that_must_wait_for_encoder_room_no_other_takes_any() -> None:
    encoder = EncoderCache(10)
    encoder.need(9, image(0, 5, b"in flight"))
    plan = plan_of(encoder=encoder)
    assert plan.offer(prompt_of(20, image(0, 6, b"a")), 1, 0, 20) == 0
    assert plan.offer(prompt_of(20, image(2, 5, b"b"), uid=2), 2, 0, 20) == 2
    assert plan.offer(prompt_of(20, image(0, 5, b"in flight"), uid=3), 3, 0, 20) == 20
    assert offer(plan, 4, 20) == 20


def test_one_who_got_on_its_way_leaves_encoder_room_to_others() -> None:
    plan = plan_of(encoder=EncoderCache(10))
    assert plan.offer(prompt_of(20, image(0, 6, b"a"), image(8, 6, b"b")), 1, 0, 20) == 8
    assert plan.offer(prompt_of(20, image(0, 4, b"c"), uid=2), 2, 0, 20) == 20


# -- every rule as a property ---------------------------------------------------------------------------------------


def in_span(spans: tuple[Span, ...], place: int) -> bool:
    return any(span.start < place < span.end for span in spans)


def expected_end(spans: tuple[Span, ...], start: int, end: int, limit: int, grain: int) -> int:
    """The rule read off place by place."""
    reach = range(start + 1, min(start + limit, end) + 1)
    if end in reach:
        return end
    multiples = [place for place in reach if place % grain == 0 and not in_span(spans, place)]
    boundaries = [place for place in reach for span in spans if place in (span.start, span.end)]
    return max(multiples or boundaries or [start])


@st.composite
def span_lists(draw: st.DrawFn, prompt: int, longest: int, encoder_budget: int) -> tuple[Span, ...]:
    spans, place = [], 0
    for i in range(draw(st.integers(0, 6))):
        start = place + draw(st.integers(0, 12))
        length = draw(st.integers(1, longest))
        if start + length > prompt:
            break
        size = draw(st.integers(0, encoder_budget))
        spans.append(Span(start, length, bytes([draw(st.sampled_from([i, 100, 101])), size]), size))
        place = start + length
    return tuple(spans)


@st.composite
def configs(draw: st.DrawFn) -> SchedulerConfig:
    max_num_seqs = draw(st.integers(1, 6))
    deterministic = draw(st.booleans())
    grain = draw(st.integers(1, 16))
    return SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + draw(st.integers(grain if deterministic else 0, 40)),
        max_model_len=128,
        num_blocks=64,
        max_num_partial_prefills=draw(st.integers(0, 3)),
        long_prefill_token_threshold=draw(st.one_of(st.none(), st.integers(0, 20))),
        max_long_partial_prefills=draw(st.integers(1, 2)),
        deterministic=deterministic,
        deterministic_chunk_size=grain,
        encoder_cache_size=draw(st.integers(0, 12)),
    )


@st.composite
def requests(draw: st.DrawFn, config: SchedulerConfig, uid: int) -> Request:
    """One that can be served."""
    prompt = draw(st.integers(1, 100))
    spans = draw(span_lists(prompt, config.smallest_chunk_budget, config.encoder_budget))
    request = prompt_of(prompt, *spans, uid=uid, max_tokens=8)
    assert never_fits(config, request) is None
    return request


@given(st.data(), st.integers(0, 100), st.integers(1, 100), st.integers(-5, 120), st.integers(1, 20))
@examples(4)
def test_a_chunk_ends_where_the_rule_says(data: st.DataObject, start: int, left: int, limit: int, grain: int) -> None:
    spans = data.draw(span_lists(start + left, 30, 0))
    end = start + left
    found = end_of_chunk(spans, start, end, limit, grain)
    assert found == expected_end(spans, start, end, limit, grain)
    longest = max((span.length for span in spans), default=1)
    if limit >= max(grain, longest):
        assert found > start


@given(st.data(), configs())
@examples(3)
def test_a_plan_keeps_every_limit(data: st.DataObject, config: SchedulerConfig) -> None:
    budget = data.draw(st.integers(0, config.max_num_batched_tokens))
    encoder = EncoderCache(config.encoder_budget)
    if data.draw(st.booleans()):  # something is held by a step in flight
        encoder.need(99, Span(0, 1, b"in flight", data.draw(st.integers(0, config.encoder_budget))))
        encoder.take_changes()
    plan = ChunkPlan(config, encoder, budget)
    threshold = config.long_prefill_tokens
    grain = config.deterministic_chunk_size if config.deterministic else 1
    offers: dict[int, tuple[Request, int, int]] = {}
    for uid in range(1, data.draw(st.integers(1, 6)) + 1):
        request = data.draw(requests(config, uid))
        end = len(request.prompt) + data.draw(st.integers(0, 7))  # after a preemption, output is known too
        start = data.draw(st.integers(0, end - 1))
        room, budget_before = plan.has_room_for(start, end), plan.budget
        given = plan.offer(request, uid, start, end)
        offers[uid] = (request, start, end)
        is_long = 0 < threshold < end - start
        here = max((span.end - start for span in request.spans if span.start <= start < span.end), default=0)
        assert 0 <= given <= end - start and given == budget_before - plan.budget
        if is_long:
            assert given <= max(threshold, grain, here)
        if not request.spans:
            assert room == (given > 0)
        if uid == 1 and not encoder.room < encoder.budget and budget >= config.smallest_chunk_budget:
            assert given > 0
    capped = dict(plan.counts)
    plan.top_up(lambda _key: False)
    assert list(plan.counts) == list(capped) and all(plan.counts.values())
    assert plan.budget == budget - sum(plan.counts.values()) >= 0

    encoded = [(uid, span) for uid, span in encoder.take_changes()[0]]
    assert sum(span.num_encoder_tokens for _, span in encoded) <= encoder.budget
    covered = set()
    num_partial = num_long = 0
    for uid, count in plan.counts.items():
        request, start, end = offers[uid]
        stop = start + count
        is_long = 0 < threshold < end - start
        assert not in_span(request.spans, stop)
        boundaries = {place for span in request.spans for place in (span.start, span.end)}
        assert stop == end or stop % grain == 0 or stop in boundaries
        if count != capped[uid]:
            assert is_long and count > capped[uid]
        inside = [span for span in request.spans if start < span.end and span.start < stop]
        covered |= {span.digest for span in inside if span.num_encoder_tokens}
        if stop < end:
            num_partial += 1
            num_long += is_long
            if is_long:  # work is conserved: with what is left it could not have come further
                rest = [s for s in request.spans if s.num_encoder_tokens and s.start >= stop]
                if not rest:
                    assert expected_end(request.spans, start, end, count + plan.budget, grain) == stop
    assert {span.digest for _, span in encoded} == covered
    assert not config.max_num_partial_prefills or num_partial <= config.max_num_partial_prefills
    assert num_long <= config.max_long_partial_prefills
    encoder.audit([99, *plan.counts])


@given(configs(), st.data())
@examples(2)
def test_every_prompt_that_fits_is_computed_whatever_else_runs(config: SchedulerConfig, data: st.DataObject) -> None:
    """Steps overlap, decodes take all they may, and short prompts with media keep coming in behind."""
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    depth = data.draw(st.integers(1, 2))
    encoder = EncoderCache(config.encoder_budget)
    line = [data.draw(requests(config, uid)) for uid in range(1, data.draw(st.integers(1, 4)) + 1)]
    ours = {request.uid for request in line}
    progress = dict.fromkeys(ours, 0)
    in_flight: list[list[tuple[Request, int, int]]] = []
    passes = 0
    while ours:
        passes += 1
        assert passes < 1500, f"{ours} wait for ever, at {progress}"
        if len(line) < 6:
            size = rng.randint(0, config.encoder_budget)
            length = rng.randint(1, min(4, config.smallest_chunk_budget))
            line.append(prompt_of(length, Span(0, length, b"%d" % passes, size), uid=100 + passes))
            progress[100 + passes] = 0
        taken = rng.choice([config.smallest_chunk_budget, config.smallest_chunk_budget, config.max_num_batched_tokens])
        plan = ChunkPlan(config, encoder, taken)
        waiting = [request for request in line if progress[request.uid] < len(request.prompt)]
        for request in waiting:
            plan.offer(request, request.uid, progress[request.uid], len(request.prompt))
        plan.top_up(lambda _key: False)
        chunks = []
        for request in waiting:
            if count := plan.counts.get(request.uid, 0):
                chunks.append((request, progress[request.uid], count))
                progress[request.uid] += count
        encoder.take_changes()
        in_flight.append(chunks)
        if len(in_flight) == depth:
            for request, start, count in in_flight.pop(0):
                for span in request.spans:
                    if start < span.end <= start + count:
                        encoder.done(request.uid, span.digest)
        line = [request for request in line if progress[request.uid] < len(request.prompt)]
        ours = {request.uid for request in line if request.uid in ours}


# -- what can never be served ---------------------------------------------------------------------------------------


def test_what_fits_to_the_last_token_is_let_through() -> None:
    config = config_of(encoder_cache_size=97)
    assert never_fits(config, prompt_of(999)) is None
    assert never_fits(config, prompt_of(1, max_tokens=999)) is None
    assert never_fits(config, prompt_of(110, image(0, 97), image(97, 13))) is None


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (prompt_of(0), "the prompt has no tokens, it needs at least 1"),
        (prompt_of(5, max_tokens=0), "max_tokens must be at least 1, got 0"),
        (prompt_of(5, max_tokens=996), r"prompt \(5 tokens\) \+ max_tokens \(996\) exceed max_model_len \(1000\)"),
        (prompt_of(9, image(0, 0)), "span 0 must be at least 1 token long, got 0"),
        (prompt_of(9, image(-1, 3)), "span 0 starts at -1, before 0, where the prompt starts"),
        (prompt_of(9, image(2, 3), image(4, 1)), "span 1 starts at 4, before 5, where the one before it ends"),
        (prompt_of(9, image(4, 2), image(1, 2)), "span 1 starts at 1, before 6, where the one before it ends"),
        (prompt_of(9, image(7, 3)), r"span 0 ends at 10, past the prompt \(9 tokens\)"),
        (prompt_of(200, image(0, 98)), "span 0 has 98 tokens and must fit in one step; .* room for 97"),
        (prompt_of(200, image(0, 9), image(9, 9, size=51)), "span 1 takes 51 tokens .* 0 to 50"),
        (prompt_of(200, image(0, 9, size=-1)), "span 0 takes -1 tokens"),
    ],
)
def test_what_can_never_be_served_is_told_why(request_: Request, reason: str) -> None:
    assert re.match(reason, never_fits(config_of(encoder_cache_size=50), request_) or "it fits")


def test_a_prefill_engine_has_the_whole_budget_for_a_span() -> None:
    config = config_of(role=Role.PREFILL, encoder_cache_size=100)
    assert never_fits(config, prompt_of(200, image(0, 100))) is None
    assert never_fits(replace(config, role=Role.MIXED), prompt_of(200, image(0, 100))) is not None
