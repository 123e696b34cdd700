"""With drafts a step returns several tokens for a request that decodes, or none. How many, the result says alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from headway.request import FinishReason, Request
from headway.scheduler import Batch, Effects, Logprobs, PreemptAll, StepResult
from headway.simulation.digests import answer_of
from tests.scheduler.driver import Driver, config

RUBBISH = 77  # a token that no request may get


def of(k: int = 3, depth: int = 1, **changes: object) -> Driver:
    return Driver(config(num_speculative_tokens=k, **{"max_num_batched_tokens": 64, **changes}), depth=depth)


def accepting(driver: Driver, *counts: int) -> Driver:
    """The device gives so many tokens for each decode, in turn, and the last number for ever."""
    left = list(counts)

    def accepted(batch: Batch) -> np.ndarray:
        count = left.pop(0) if len(left) > 1 and batch.num_decodes else left[0]
        return np.full(batch.num_decodes, count, dtype=np.int32)

    driver.device.accepts = accepted
    return driver


def decoding(driver: Driver, prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 20, **options: object) -> Request:
    """A request whose prompt is computed, and whose first token is known."""
    request = driver.add(prompt, max_tokens, **options)
    driver.step()
    return request


def answered(driver: Driver, counts: Sequence[int] | None, tokens: Sequence[int], **fields: object) -> Effects:
    """The result of the step in flight is this one."""
    step_id = driver.in_flight.popleft().step_id
    own = None if counts is None else np.array(counts, dtype=np.int32)
    return driver.tell(StepResult(step_id, np.array(tokens, dtype=np.int32), counts=own, **fields))  # type: ignore[arg-type]


def known(driver: Driver, request: Request) -> list[int]:
    tokens = driver.core.known_tokens(request.uid)
    assert tokens is not None
    return tokens.tolist()


# -- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_row_gets_its_tokens_in_order_and_goes_on_behind_them(count: int) -> None:
    driver = accepting(of(), count)
    request = decoding(driver)
    driver.launch()
    effects = driver.answer()
    (outputs,) = effects.tokens
    answer = answer_of(request)[0]
    assert outputs.uids.tolist() == [request.uid] * count and outputs.tokens.tolist() == answer[1 : 1 + count]
    assert known(driver, request) == [1, 2, 3, *answer[: 1 + count]]
    batch = driver.launch()
    assert batch is not None and batch.positions.tolist() == [3 + count]


def test_a_row_without_a_token_is_computed_again_where_it_was() -> None:
    driver = accepting(of(), 0, 0, 2)
    request = decoding(driver)
    for _ in range(2):
        batch = driver.launch()
        assert batch is not None and batch.positions.tolist() == [3]
        assert not driver.answer().tokens
    assert known(driver, request) == [1, 2, 3, answer_of(request)[0][0]]
    driver.run()
    driver.assert_answered()


def test_rows_of_one_step_go_on_by_numbers_of_their_own() -> None:
    driver = of()
    driver.device.accepts = lambda batch: np.arange(batch.num_decodes, dtype=np.int32)
    requests = [driver.add([7 * i, 1], max_tokens=20) for i in range(4)]
    driver.step()
    driver.launch()
    (outputs,) = driver.answer().tokens
    assert outputs.uids.tolist() == [requests[1].uid] + [requests[2].uid] * 2 + [requests[3].uid] * 3
    driver.device.accepts = lambda batch: 4 - np.arange(batch.num_decodes, dtype=np.int32)
    driver.run()
    driver.assert_answered()
    driver.assert_empty()


def test_a_result_without_counts_gives_one_token_each() -> None:
    driver = of()
    request = decoding(driver)
    driver.launch()
    effects = answered(driver, None, [5])
    assert effects.tokens[0].tokens.tolist() == [5] and known(driver, request)[-1] == 5


def test_a_chunk_in_the_same_step_gives_its_one_token_behind_those_of_the_decodes() -> None:
    driver = accepting(of(), 3)
    first = decoding(driver)
    second = driver.add([4, 5])
    driver.launch()
    (outputs,) = driver.answer().tokens
    assert outputs.uids.tolist() == [first.uid] * 3 + [second.uid]
    driver.run()
    driver.assert_answered()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_any_numbers_of_tokens_give_the_right_answers_under_preemption(k: int, caching: bool, depth: int) -> None:
    driver = of(k, depth, num_blocks=9, enable_prefix_caching=caching, reserve="none")
    for start in (0, 10, 20):
        driver.add(range(start, start + 6), max_tokens=26)
    driver.run()
    assert driver.core.snapshot().num_preemptions > 0
    driver.assert_answered()
    driver.assert_empty()


# -- ends ------------------------------------------------------------------------------------------------------------


def test_tokens_after_a_stop_token_are_dropped() -> None:
    driver = of()
    request = decoding(driver, stop_token_ids=(9,))
    driver.launch()
    effects = answered(driver, [4], [5, 9, RUBBISH, 9])
    assert effects.tokens[0].tokens.tolist() == [5, 9] and effects.tokens[0].uids.tolist() == [request.uid] * 2
    (end,) = effects.ended
    assert (end.uid, end.reason, end.stop_token) == (request.uid, FinishReason.STOP, 9)
    assert driver.core.snapshot().num_generation_tokens == 3


def test_a_stop_token_before_min_tokens_ends_nothing() -> None:
    driver = of()
    request = decoding(driver, stop_token_ids=(9,), min_tokens=4)
    driver.launch()
    effects = answered(driver, [4], [9, 9, 9, RUBBISH])  # the second to the fourth token of the output
    assert effects.tokens[0].tokens.tolist() == [9, 9, 9]
    assert [(end.uid, end.stop_token) for end in effects.ended] == [(request.uid, 9)]


def test_tokens_beyond_the_limit_are_dropped() -> None:
    driver = of()
    request = decoding(driver, max_tokens=3)
    driver.launch()
    effects = answered(driver, [4], [5, 6, RUBBISH, RUBBISH])
    assert effects.tokens[0].tokens.tolist() == [5, 6]
    assert [(end.uid, end.reason, end.stop_token) for end in effects.ended] == [
        (request.uid, FinishReason.LENGTH, None)
    ]


def test_a_stop_token_beyond_the_limit_stops_nothing() -> None:
    driver = of()
    decoding(driver, max_tokens=2, stop_token_ids=(9,))
    driver.launch()
    effects = answered(driver, [2], [5, 9])
    assert effects.tokens[0].tokens.tolist() == [5] and effects.ended[0].reason is FinishReason.LENGTH


def test_a_stop_token_that_is_the_last_token_stops() -> None:
    driver = of()
    decoding(driver, max_tokens=3, stop_token_ids=(9,))
    driver.launch()
    (end,) = answered(driver, [2], [5, 9]).ended
    assert (end.reason, end.stop_token) == (FinishReason.STOP, 9)


def test_each_end_belongs_to_its_own_row() -> None:
    driver = of()
    requests = [driver.add([i], max_tokens=9, stop_token_ids=(9,)) for i in range(3)]
    driver.step()
    driver.launch()
    effects = answered(driver, [2, 0, 3], [9, RUBBISH, 5, 6, 9])
    assert effects.tokens[0].uids.tolist() == [requests[0].uid] + [requests[2].uid] * 3
    assert [end.uid for end in effects.ended] == [requests[0].uid, requests[2].uid]


def test_tokens_of_a_request_that_has_left_are_dropped() -> None:
    driver = accepting(of(), 3)
    gone, stays = driver.add([1], max_tokens=9), driver.add([2], max_tokens=9)
    driver.step()
    driver.launch()
    driver.abort(gone.uid)
    (outputs,) = driver.answer().tokens
    assert outputs.uids.tolist() == [stays.uid] * 3
    driver.run()
    driver.assert_answered(stays)


def test_a_preemption_in_flight_drops_the_tokens_and_the_answer_stays_right() -> None:
    driver = accepting(of(), 3)
    request = decoding(driver)
    driver.launch()
    driver.tell(PreemptAll())
    assert not driver.answer().tokens
    driver.run()
    driver.assert_answered(request)


# -- logprobs --------------------------------------------------------------------------------------------------------


def test_logprobs_stay_with_their_tokens_when_others_are_dropped() -> None:
    driver = of()
    gone, stops = driver.add([1], max_tokens=9), driver.add([2], max_tokens=9, stop_token_ids=(9,))
    driver.step()
    driver.launch()
    driver.abort(gone.uid)
    column = np.arange(5, dtype=np.float32)
    logprobs = Logprobs(
        np.arange(5, dtype=np.int32), -column, column.astype(np.int32), np.zeros((5, 0), np.int32), np.zeros((5, 0))
    )
    (outputs,) = answered(driver, [2, 3], [RUBBISH, RUBBISH, 5, 9, RUBBISH], logprobs=logprobs).tokens
    assert outputs.uids.tolist() == [stops.uid] * 2 and outputs.logprobs is not None
    assert outputs.logprobs.rows.tolist() == [0, 1] and outputs.logprobs.sampled.tolist() == [-2, -3]


# -- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_blocks_that_fill_are_published_with_their_tokens_and_no_other_block_is(length: int, count: int) -> None:
    """With as many drafts as a block has places a step can fill two blocks."""
    driver = accepting(of(4, enable_output_caching=True), count)
    request = decoding(driver, range(length))
    driver.launch()
    driver.answer()
    progress = driver.progress(request)
    num_computed = length + count
    assert progress is not None and progress.num_computed_tokens == num_computed
    assert progress.num_published_blocks == num_computed // 4
    tokens, blocks = known(driver, request), driver.state.table.blocks_of(0)
    for column in range(length // 4, num_computed // 4):  # filled by decodes
        assert driver.state.pool.tokens[blocks[column]].tolist() == tokens[4 * column : 4 * column + 4]
    driver.abort(request.uid)
    again = driver.add([*tokens, 1], max_tokens=2)
    batch = driver.launch()
    assert batch is not None and batch.admissions[0].num_cached_tokens == num_computed // 4 * 4
    driver.run()
    driver.assert_answered(again)


def test_a_rejected_draft_is_neither_known_nor_published() -> None:
    driver = accepting(of(4), 1)
    request = decoding(driver, [1, 2])  # at position 2: the drafts reach into the second block
    driver.launch()
    driver.answer()
    progress = driver.progress(request)
    assert progress is not None and progress.num_published_blocks == 0 and progress.num_output_tokens == 2
    assert known(driver, request) == [1, 2, *answer_of(request)[0][:2]]
    other = driver.add([1, 2, *answer_of(request)[0][:3]], max_tokens=2)
    driver.launch()
    assert driver.batches[-1].admissions[0].num_cached_tokens == 0
    driver.run()
    driver.assert_answered(request, other)


def test_a_row_that_goes_far_gets_two_blocks_at_once() -> None:
    driver = accepting(of(4), 5)
    decoding(driver, range(7), max_tokens=24)  # places up to the end of a block are there
    driver.launch()
    driver.answer()
    driver.launch()
    growth = driver.batches[-1]
    assert growth.table_slots.tolist() == [0, 0] and growth.table_columns.tolist() == [3, 4]
    driver.run()
    driver.assert_answered()
    driver.assert_empty()


# -- steps in flight -------------------------------------------------------------------------------------------------


def test_one_step_with_decodes_is_in_flight_at_a_time() -> None:
    driver = of(depth=3)
    decoding(driver)
    assert driver.launch() is None and len(driver.in_flight) == 1
    other = driver.add([5, 6], max_tokens=2)
    assert driver.launch() is None, "not even for a newcomer"
    driver.answer()
    assert driver.launch() is not None
    driver.run()
    driver.assert_answered(other)


def test_chunks_may_be_in_flight_before_the_decodes() -> None:
    driver = of(depth=2, max_num_batched_tokens=16, long_prefill_token_threshold=0)
    driver.add(range(20), max_tokens=4)
    assert driver.launch() is not None and driver.launch() is not None
    driver.run()
    driver.assert_answered()


def test_decodes_are_asked_for_at_once_after_the_device_is_lost() -> None:
    driver = of(depth=2)
    decoding(driver)
    driver.lose_device()
    driver.add([5, 6], max_tokens=2)
    assert driver.launch() is not None


# -- wrong counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "tokens", "error"),
    [
        (
            [-1, 1],
            [],
            "the device returned -1 tokens for a decode; with num_speculative_tokens=3 a decode gives 0 to 4",
        ),
        ([5, 1], [1] * 6, "the device returned 5 tokens for a decode"),
        ([1, 0], [1], "the device returned 0 tokens for a prefill chunk, which gives 1"),
        ([1, 2], [1] * 3, "the device returned 2 tokens for a prefill chunk, which gives 1"),
        ([2, 1], [1] * 4, "the device returned 4 tokens, and counts of 3 together"),
        ([1], [1], "the device returned 1 counts for 2 rows"),
        (None, [1] * 3, "the device returned 3 tokens for 2 rows"),
    ],
)
def test_wrong_counts_fail_the_step(counts: list[int] | None, tokens: list[int], error: str) -> None:
    driver = of()
    first = decoding(driver)
    second = driver.add([4, 5])
    driver.launch()
    effects = answered(driver, counts, tokens)
    assert not effects.tokens and {end.uid for end in effects.ended} == {first.uid, second.uid}
    assert all(end.error is not None and end.error.startswith(error) for end in effects.ended)
    driver.run()
    driver.assert_empty()


@pytest.mark.parametrize(("counts", "is_right"), [([1], True), ([0], False), ([2], False)])
def test_without_drafts_each_row_gives_exactly_one_token(counts: list[int], is_right: bool) -> None:
    driver = of(0)
    decoding(driver)
    driver.launch()
    effects = answered(driver, counts, [5] * counts[0])
    assert bool(effects.tokens) == is_right and bool(effects.ended) != is_right
