"""The scheduler's behaviour, case by case."""

import numpy as np
import pytest

from headway.config import Role, SchedulerConfig
from headway.request import FinishReason
from headway.scheduler import AddRequest, Logprobs, PreemptAll, Scheduler, StepResult
from headway.scheduler.passes.decode_rows import DecodeRows
from headway.simulation.digests import answer_of
from tests.scheduler.driver import Driver, config


class TestASingleRequest:
    def test_gets_its_answer_and_gives_everything_back(self) -> None:
        driver = Driver(config())
        driver.add([5, 6, 7], max_tokens=10)
        driver.run()
        driver.assert_answered()
        driver.assert_empty()

    def test_of_one_output_token_takes_one_step(self) -> None:
        driver = Driver(config())
        driver.add([5, 6, 7], max_tokens=1)
        driver.run()
        assert len(driver.batches) == 1
        driver.assert_answered()

    def test_may_fill_max_model_len_to_the_last_token(self) -> None:
        driver = Driver(config(max_model_len=32))
        driver.add(range(20), max_tokens=12)
        driver.run()
        driver.assert_answered()

    def test_that_needs_more_than_max_model_len_is_refused_at_once_with_both_numbers(self) -> None:
        driver = Driver(config(max_model_len=32))
        request = driver.add(range(30), max_tokens=3)
        end = driver.history.ends[request.uid]
        assert end.reason is FinishReason.ERROR
        assert end.error == "prompt (30 tokens) + max_tokens (3) exceed max_model_len (32)"
        driver.assert_empty()

    def test_with_a_uid_in_use_changes_nothing(self) -> None:
        driver = Driver(config())
        request = driver.add([1, 2])
        with pytest.raises(ValueError, match="uid 1"):
            driver.core.apply(AddRequest(request))
        assert driver.core.snapshot().num_waiting == 1
        assert driver.core.requests() == [request]


class TestStopTokens:
    def test_end_a_request_at_the_token_itself(self) -> None:
        driver = Driver(config())
        free_run, _ = answer_of(driver.add([5, 6, 7], max_tokens=12))
        request = driver.add([5, 6, 7], max_tokens=12, stop_token_ids=(free_run[4],))
        driver.run()
        assert driver.history.tokens[request.uid] == free_run[: free_run.index(free_run[4]) + 1]
        assert driver.history.ends[request.uid].stop_token == free_run[4]
        driver.assert_answered()

    def test_may_be_the_very_first_token(self) -> None:
        driver = Driver(config())
        first = answer_of(driver.add([5, 6, 7]))[0][0]
        request = driver.add([5, 6, 7], stop_token_ids=(first,))
        driver.run()
        assert driver.history.tokens[request.uid] == [first]

    def test_do_not_count_before_min_tokens(self) -> None:
        driver = Driver(config(max_model_len=64, num_blocks=80))
        answer, _ = answer_of(driver.add([5, 6, 7], max_tokens=40))
        stops = tuple(set(answer))  # every token would stop it
        for min_tokens in (1, 2, 5):
            driver.add([5, 6, 7], max_tokens=40, min_tokens=min_tokens, stop_token_ids=stops)
        driver.run()
        driver.assert_answered()
        assert [len(driver.history.tokens[uid]) for uid in (2, 3, 4)] == [1, 2, 5]

    def test_win_over_the_length_when_both_come_with_the_same_token(self) -> None:
        driver = Driver(config())
        last = answer_of(driver.add([5, 6, 7], max_tokens=6))[0][-1]
        request = driver.add([5, 6, 7], max_tokens=6, stop_token_ids=(last,))
        driver.run()
        end = driver.history.ends[request.uid]
        assert end.reason is FinishReason.STOP


class TestChunkedPrefill:
    def test_splits_a_long_prompt_over_steps_within_the_budget(self) -> None:
        driver = Driver(config(max_num_batched_tokens=8))
        driver.add(range(20), max_tokens=2)
        driver.run()
        assert [b.num_new_tokens.tolist() for b in driver.batches] == [[8], [8], [4], [1]]
        assert [b.samples.tolist() for b in driver.batches] == [[False], [False], [True], [True]]
        driver.assert_answered()

    def test_decodes_come_first_and_the_chunk_takes_what_is_left(self) -> None:
        driver = Driver(config(max_num_batched_tokens=8))
        driver.add([1, 2], max_tokens=8)
        driver.step()
        driver.add(range(20), max_tokens=2)
        batch = driver.step()
        assert batch is not None and batch.num_decodes == 1
        assert batch.num_new_tokens.tolist() == [1, 7]
        driver.run()
        driver.assert_answered()

    def test_several_prompts_share_one_step(self) -> None:
        driver = Driver(config())
        for start in range(3):
            driver.add(range(start, start + 5), max_tokens=3)
        batch = driver.step()
        assert batch is not None and batch.num_new_tokens.tolist() == [5, 5, 5]
        assert len(batch.admissions) == 3
        driver.run()
        driver.assert_answered()

    def test_the_older_prompt_is_continued_before_a_newer_one_begins(self) -> None:
        driver = Driver(config(max_num_batched_tokens=8))
        driver.add(range(12), max_tokens=2)
        driver.add(range(50, 56), max_tokens=2)
        driver.step()
        batch = driver.step()
        assert batch is not None and batch.num_new_tokens.tolist() == [4, 4]
        driver.run()
        driver.assert_answered()


class TestPrefixCaching:
    def test_a_prompt_seen_before_is_computed_from_where_it_is_new(self) -> None:
        driver = Driver(config())
        driver.add([*range(10), 40], max_tokens=2)
        driver.run()
        second = driver.add([*range(10), 41], max_tokens=2)
        driver.run()
        assert driver.history.started[second.uid] == 8
        assert driver.batches[-2].positions.tolist() == [8]
        driver.assert_answered()

    def test_of_a_prompt_cached_whole_the_last_block_is_computed_again(self) -> None:
        driver = Driver(config())
        for _ in range(2):
            request = driver.add(range(8), max_tokens=2)
            driver.run()
        assert driver.history.started[request.uid] == 4
        driver.assert_answered()

    def test_output_is_found_too_when_a_conversation_goes_on(self) -> None:
        driver = Driver(config())
        first = driver.add(range(6), max_tokens=8)
        driver.run()
        second = driver.add([*range(6), *driver.history.tokens[first.uid], 30, 31], max_tokens=2)
        driver.run()
        assert driver.history.started[second.uid] == 12
        driver.assert_answered()

    def test_running_requests_share_blocks(self) -> None:
        driver = Driver(config())
        driver.add([*range(8), 40], max_tokens=20)
        driver.step()
        driver.add([*range(8), 41], max_tokens=20)
        driver.step()
        assert driver.core.snapshot().num_blocks_free == 39 - 3 - 1  # the second needs one block of its own
        driver.run()
        driver.assert_answered()

    def test_different_salts_share_nothing(self) -> None:
        driver = Driver(config())
        for salt in ("a", "b", None):
            request = driver.add(range(9), max_tokens=2, cache_salt=salt)
            driver.run()
            assert driver.history.started[request.uid] == 0
        driver.assert_answered()

    def test_can_be_switched_off(self) -> None:
        driver = Driver(config(enable_prefix_caching=False))
        for _ in range(2):
            request = driver.add(range(9), max_tokens=6)
            driver.run()
        assert driver.history.started[request.uid] == 0
        assert driver.core.snapshot().num_blocks_evictable == 0
        driver.assert_answered()

    def test_nothing_of_a_failed_step_is_published(self) -> None:
        driver = Driver(config())
        driver.add(range(9), max_tokens=2)
        driver.launch()
        driver.answer(error="out of memory")
        again = driver.add(range(9), max_tokens=2)
        driver.run()
        assert driver.history.started[again.uid] == 0
        driver.assert_answered(again)


class TestEnding:
    """From outside, at once. In which states, with which late messages: see test_states."""

    @pytest.mark.parametrize("steps", range(6))
    @pytest.mark.parametrize("depth", [1, 2])
    def test_an_abort_ends_a_request_at_once_whatever_it_is_doing(self, steps: int, depth: int) -> None:
        driver = Driver(config(max_num_batched_tokens=8, num_blocks=9), depth=depth)
        victim = driver.add(range(20), max_tokens=10)
        other = driver.add([1, 2, 3], max_tokens=20)
        for _ in range(steps):
            driver.step()
        effects = driver.abort(victim.uid)
        assert [(end.uid, end.reason) for end in effects.ended] == [(victim.uid, FinishReason.ABORT)]
        assert not driver.abort(victim.uid)  # idempotent
        driver.run()
        driver.assert_answered(other)
        driver.assert_empty()

    def test_unknown_uids_are_a_no_op(self) -> None:
        driver = Driver(config())
        assert not driver.abort(99) and not driver.finish(98)

    def test_a_row_dropped_beside_a_chunk_that_does_not_sample(self) -> None:
        driver = Driver(config(max_num_batched_tokens=4), depth=2)
        gone, kept = driver.add([1, 2], max_tokens=9), driver.add(range(9), max_tokens=2)
        driver.step()
        driver.launch()  # decodes the first, computes a part of the second
        driver.abort(gone.uid)
        driver.run()
        driver.assert_answered(kept)
        driver.assert_empty()

    def test_a_late_result_does_not_reach_the_slots_next_owner(self) -> None:
        driver = Driver(config(max_num_seqs=1), depth=2)
        first = driver.add([1, 2, 3], max_tokens=20)
        driver.step()
        driver.launch()  # a decode of the first is on the device
        driver.abort(first.uid)
        second = driver.add([4, 5, 6], max_tokens=5)
        driver.launch()
        assert driver.history.tokens[first.uid] == answer_of(first)[0][:1]
        driver.run()
        driver.assert_answered(second)
        driver.assert_empty()


class TestFailures:
    def test_a_failed_step_ends_its_requests_and_no_others(self) -> None:
        driver = Driver(config(max_num_seqs=2))
        first, second = driver.add([1, 2]), driver.add([3, 4])
        third = driver.add([5, 6])
        driver.launch()
        effects = driver.answer(error="RuntimeError: boom")
        assert [(e.uid, e.reason, e.error) for e in effects.ended] == [
            (first.uid, FinishReason.ERROR, "RuntimeError: boom"),
            (second.uid, FinishReason.ERROR, "RuntimeError: boom"),
        ]
        driver.run()
        driver.assert_answered(third)
        driver.assert_empty()

    def test_a_failed_step_takes_along_a_newcomer_that_had_no_chunk_in_it(self) -> None:
        driver = Driver(config(role=Role.PREFILL, max_num_batched_tokens=8))
        driver.add(range(8), max_tokens=1)
        newcomer = driver.add(range(20, 28), max_tokens=1)  # admitted, but the first fills the step
        batch = driver.launch()
        assert batch is not None and len(batch) == 1 and len(batch.admissions) == 2
        driver.answer(error="boom")
        assert newcomer.uid in driver.history.ends
        driver.assert_empty()

    @pytest.mark.parametrize("steps", [0, 1])
    def test_a_failed_step_spares_the_next_owner_of_a_slot(self, steps: int) -> None:
        driver = Driver(config(max_num_seqs=1), depth=2)
        gone = driver.add([1, 2], max_tokens=9)
        for _ in range(steps):
            driver.launch()
            driver.answer()
        driver.launch()
        driver.abort(gone.uid)
        kept = driver.add([3, 4], max_tokens=9)
        driver.launch()
        assert not driver.answer(error="boom").ended
        driver.run()
        driver.assert_answered(kept)

    def test_a_failed_step_spares_a_newcomer_that_was_sent_back_and_is_told_of_again(self) -> None:
        driver = Driver(config(), depth=2)
        request = driver.add(range(8), max_tokens=4)
        driver.launch()
        driver.tell(PreemptAll())
        batch = driver.launch()
        assert batch is not None and [admission.slot for admission in batch.admissions] == [0]
        assert not driver.answer(error="boom").ended
        driver.run()
        driver.assert_answered(request)

    def test_a_failed_step_takes_along_what_is_in_flight_behind_it(self) -> None:
        driver = Driver(config(), depth=2)
        driver.add([1, 2], max_tokens=20)
        driver.step()
        driver.launch()
        driver.answer(error="boom")
        while driver.in_flight:
            driver.answer()
        driver.assert_empty()

    def test_the_wrong_number_of_tokens_is_a_failed_step(self) -> None:
        driver = Driver(config())
        driver.add([1, 2])
        batch = driver.launch()
        assert batch is not None
        effects = driver.note(driver.core.apply(StepResult(batch.step_id, np.zeros(3, dtype=np.int32))))
        assert effects.ended[0].error == "the device returned 3 tokens for 1 rows"
        driver.assert_empty()

    def test_a_result_told_twice_counts_once(self) -> None:
        driver = Driver(config())
        request = driver.add([1, 2], max_tokens=4)
        driver.launch()
        result = driver.in_flight[0]
        driver.answer()
        assert not driver.core.apply(result)
        driver.run()
        driver.assert_answered(request)

    def test_a_lost_device_ends_what_ran_forgets_its_cache_and_serves_those_who_wait(self) -> None:
        driver = Driver(config(max_num_seqs=1))
        running, waiting = driver.add(range(9), max_tokens=9), driver.add(range(9), max_tokens=3)
        driver.step()
        driver.launch()
        effects = driver.lose_device()
        assert [(e.uid, e.error) for e in effects.ended] == [(running.uid, "the device is gone")]
        driver.run()
        assert driver.history.started[waiting.uid] == 0
        driver.assert_answered(waiting)
        driver.assert_empty()


class TestPrefillInstance:
    def test_admits_on_arrival_and_schedules_without_allocating(self) -> None:
        driver = Driver(config(role=Role.PREFILL))
        driver.add(range(10), max_tokens=1)
        snapshot = driver.core.snapshot()
        assert (snapshot.num_running, snapshot.num_waiting) == (1, 0)
        assert snapshot.num_blocks_free == 39 - 3
        driver.run()
        driver.assert_answered()
        driver.assert_empty()

    def test_spends_the_whole_budget_on_prefills(self) -> None:
        driver = Driver(config(role=Role.PREFILL, max_num_seqs=4))
        for start in range(4):
            driver.add(range(start * 6, start * 6 + 6), max_tokens=1)
        batch = driver.step()
        assert batch is not None and batch.num_tokens == 16 and batch.num_decodes == 0
        driver.run()
        driver.assert_answered()

    def test_lets_the_next_in_when_one_ends(self) -> None:
        driver = Driver(config(role=Role.PREFILL, max_num_seqs=1))
        first = driver.add([1, 2], max_tokens=1)
        driver.add([3, 4], max_tokens=1)
        assert driver.core.snapshot().num_waiting == 1
        driver.abort(first.uid)
        assert driver.core.snapshot().num_waiting == 0
        driver.run()

    def test_a_request_gone_before_its_first_step_is_not_told_to_the_device(self) -> None:
        driver = Driver(config(role=Role.PREFILL, max_num_seqs=1))
        first = driver.add(range(12), max_tokens=1)
        second = driver.add(range(20, 26), max_tokens=1)
        driver.abort(first.uid)
        batch = driver.step()
        assert batch is not None and [a.request.uid for a in batch.admissions] == [second.uid]
        assert batch.table_columns.tolist() == [0, 1]
        driver.assert_answered(second)

    def test_prefill_schedule_leaves_decodes_alone(self) -> None:
        driver = Driver(config())
        driver.add([1, 2], max_tokens=9)
        driver.step()
        batch = driver.core.prefill_schedule()
        assert batch is None


class TestLogprobs:
    def test_of_a_dropped_row_are_dropped_with_it(self) -> None:
        driver = Driver(config(), depth=2)
        gone, kept = driver.add([1, 2], max_tokens=9), driver.add([3, 4], max_tokens=9)
        driver.step()
        batch = driver.launch()
        assert batch is not None and len(batch) == 2
        driver.in_flight.clear()
        driver.abort(gone.uid)
        logprobs = Logprobs(
            rows=np.array([0, 1], dtype=np.int32),
            sampled=np.array([-1.0, -2.0], dtype=np.float32),
            ranks=np.array([1, 2], dtype=np.int32),
            top_ids=np.array([[7], [8]], dtype=np.int32),
            top=np.array([[-1.0], [-0.5]], dtype=np.float32),
        )
        effects = driver.core.apply(StepResult(batch.step_id - 1, np.array([10, 11], dtype=np.int32), logprobs))
        (outputs,) = effects.tokens
        assert outputs.uids.tolist() == [kept.uid] and outputs.logprobs is not None
        assert outputs.logprobs.rows.tolist() == [0] and outputs.logprobs.top_ids.tolist() == [[8]]


class TestSteadyState:
    def test_the_rows_are_gathered_once_while_no_request_comes_or_goes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        driver = Driver(config(max_model_len=64, num_blocks=80))
        for start in range(4):
            driver.add([start], max_tokens=60)
        driver.step()
        driver.step()
        gathered = []
        original = DecodeRows.of.__func__  # type: ignore[attr-defined]
        monkeypatch.setattr(DecodeRows, "of", classmethod(lambda cls, *a: gathered.append(1) or original(cls, *a)))
        for _ in range(40):
            batch = driver.step()
            assert batch is not None and batch.num_decodes == 4
        assert not gathered
        driver.run()
        driver.assert_answered()

    def test_the_same_messages_give_the_same_decisions(self) -> None:
        def run() -> list[tuple[object, ...]]:
            driver = Driver(config(num_blocks=12))
            for start in range(6):
                driver.add(range(start, start + 9), max_tokens=15, priority=start % 2)
            driver.run()
            return [
                (b.step_id, b.slots.tolist(), b.positions.tolist(), b.num_new_tokens.tolist(), b.table_blocks.tolist())
                for b in driver.batches
            ]

        assert run() == run()

    def test_the_snapshot_counts(self) -> None:
        driver = Driver(config())
        driver.add(range(9), max_tokens=4)
        driver.run()
        driver.add(range(9), max_tokens=4)
        driver.run()
        snapshot = driver.core.snapshot()
        assert (snapshot.num_prompt_tokens, snapshot.num_prefill_tokens) == (9 + 9, 9 + 1)
        assert snapshot.num_generation_tokens == 8
        assert (snapshot.num_prefix_query_tokens, snapshot.num_prefix_hit_tokens) == (18, 8)
        assert snapshot.num_slots == 4 and driver.core.slots.num_free_slots() == 4
        assert snapshot.kv_cache_usage == 0.0 and not snapshot.has_work
        assert Scheduler(SchedulerConfig()).snapshot().num_blocks_total == 4095
