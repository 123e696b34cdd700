"""A prefix is shared while it is computed: equal prompts compute each block once, whatever becomes of the leader."""

from __future__ import annotations

from typing import Any

import pytest

from headway.config import Role, SchedulerConfig
from headway.request import FinishReason, Request, RequestStatus, Span
from headway.scheduler import AbortRequests, DeviceLost, Pause, PreemptAll, ResetPrefixCache
from tests.scheduler.driver import Driver

BOTH = pytest.mark.parametrize("same_step", [False, True])


def config(**changes: Any) -> SchedulerConfig:
    options: dict[str, Any] = {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "block_size": 4,
        "max_model_len": 128,
        "num_blocks": 600,
        "reserve": "none",
    }
    return SchedulerConfig(**{**options, **changes})


def computed(driver: Driver) -> int:
    return driver.core.snapshot().num_prefill_tokens


@BOTH
@pytest.mark.parametrize("budget", [16, 64, 512])
@pytest.mark.parametrize("threshold", [0, 8])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("most_long", [1, 4])
def test_equal_prompts_compute_each_block_once(
    same_step: bool, budget: int, threshold: int, depth: int, most_long: int
) -> None:
    """311 tokens in blocks of 16 become 79 in blocks of 4. Needed: the prompt once, and each other's last 3 tokens."""
    driver = Driver(
        config(
            max_num_batched_tokens=budget,
            long_prefill_token_threshold=threshold,
            max_long_partial_prefills=most_long,
            reads_same_step=same_step,
        ),
        depth=depth,
    )
    for _ in range(8):
        driver.add(range(79), max_tokens=1)
    driver.run()
    driver.assert_answered()
    assert computed(driver) <= 1.1 * (79 + 7 * 3)


@BOTH
@pytest.mark.parametrize(("budget", "length"), [(256, 1000), (512, 1000), (2048, 1000)])
def test_eight_equal_long_prompts_are_computed_once(same_step: bool, budget: int, length: int) -> None:
    driver = Driver(
        config(
            block_size=16,
            max_model_len=1024,
            max_num_batched_tokens=budget,
            long_prefill_token_threshold=128,
            max_long_partial_prefills=4,
            reads_same_step=same_step,
        ),
        depth=2,
    )
    for _ in range(8):
        driver.add(range(length), max_tokens=1)
    driver.run()
    driver.assert_answered()
    assert computed(driver) <= 1.1 * (length + 7 * (length % 16))


@BOTH
@pytest.mark.parametrize("budget", [8192, 32768])
def test_a_shared_beginning_is_computed_once(same_step: bool, budget: int) -> None:
    """32 prompts of 512 shared and 16 own tokens: 1,024 are needed."""
    driver = Driver(
        config(
            max_num_seqs=32,
            block_size=16,
            max_model_len=1024,
            num_blocks=2000,
            max_num_batched_tokens=budget,
            reads_same_step=same_step,
        )
    )
    for i in range(32):
        driver.add([*range(512), *range(1000 + i, 1016 + i)], max_tokens=1)
    driver.run()
    driver.assert_answered()
    assert computed(driver) <= 1.1 * 1024


@BOTH
@pytest.mark.parametrize("n", range(1, 17))
def test_n_answers_to_a_prompt_cost_one_prompt(same_step: bool, n: int) -> None:
    driver = Driver(config(block_size=16, max_model_len=512, max_num_batched_tokens=4096, reads_same_step=same_step))
    for _ in range(n):
        driver.add(range(311), max_tokens=1)
    driver.run()
    assert computed(driver) == 311 + (n - 1) * 7


def test_a_row_reads_in_the_same_step_only_where_the_executor_allows_it() -> None:
    for same_step, slots in ((False, [0]), (True, [0, 1])):
        driver = Driver(config(reads_same_step=same_step))
        driver.add(range(9), max_tokens=1)
        driver.add(range(9), max_tokens=1)
        batch = driver.launch()
        assert batch is not None and batch.slots.tolist() == slots
        driver.run()
        driver.assert_answered()


@BOTH
def test_a_follower_whose_leader_was_aborted_keeps_the_text_of_its_prompt(same_step: bool) -> None:
    """The tokens of a block are the block's: the follower is preempted and begins again from them."""
    driver = Driver(config(reads_same_step=same_step), depth=3)
    leader = driver.add(range(13), max_tokens=9)
    driver.launch()
    follower = driver.add(range(13), max_tokens=9)
    driver.launch()
    driver.tell(AbortRequests([leader.uid]))
    driver.answer()
    driver.answer()
    for _ in range(3):
        driver.step()
    driver.tell(PreemptAll())
    driver.run()
    driver.assert_answered(follower)
    assert driver.history.started[follower.uid] == 12


@BOTH
def test_the_blocks_of_an_aborted_leader_are_published_if_a_follower_holds_them(same_step: bool) -> None:
    driver = Driver(config(reads_same_step=same_step), depth=3)
    leader = driver.add(range(13), max_tokens=9)
    driver.launch()
    driver.add(range(13), max_tokens=2)
    driver.launch()
    driver.tell(AbortRequests([leader.uid]))
    driver.run()
    third = driver.add(range(13), max_tokens=1)
    driver.run()
    assert driver.history.started[third.uid] == 12


def test_a_pending_block_leaves_the_index_with_its_last_reference() -> None:
    driver = Driver(config(num_blocks=33), depth=2)
    leader = driver.add(range(13), max_tokens=2)
    driver.launch()
    driver.tell(AbortRequests([leader.uid]))
    assert not driver.state.pool.num_pending and not len(driver.state.prefix)
    other = driver.add(range(50, 63), max_tokens=2)  # takes the same blocks while the step is in flight
    driver.launch()
    same = driver.add(range(13), max_tokens=2)
    driver.run()
    driver.assert_answered(other, same)
    assert driver.history.started[other.uid] == driver.history.started[same.uid] == 0


class TestAStepFails:
    def begin(self, same_step: bool = False) -> tuple[Driver, Request, Request, Request]:
        """A leader in step 1; a follower of it and a follower of the follower in step 2."""
        driver = Driver(config(reads_same_step=same_step), depth=3)
        leader = driver.add(range(13), max_tokens=9)
        driver.launch()
        follower = driver.add([*range(12), *range(20, 30)], max_tokens=3)
        driver.launch()
        third = driver.add([*range(12), *range(20, 30), 40], max_tokens=3)
        driver.launch()
        return driver, leader, follower, third

    @BOTH
    def test_requests_that_shared_its_blocks_begin_again_and_are_right(self, same_step: bool) -> None:
        driver, leader, follower, third = self.begin(same_step)
        assert driver.history.started == {}
        driver.answer(error="it broke")
        assert driver.history.ends[leader.uid].reason is FinishReason.ERROR
        assert [e.status for e in driver.state.entries.values()] == [RequestStatus.PREEMPTED] * 2
        driver.core.audit()
        driver.run()
        driver.assert_answered(follower, third)

    def test_requests_that_shared_blocks_with_an_image_of_it_begin_again(self) -> None:
        """The image of the failed step stands in blocks that a later step was to fill, and a third request shares
        these. No chunk of the third has the image in it."""
        driver = Driver(config(encoder_cache_size=8), depth=3)
        image = Span(4, 4, b"i" * 32, 4)
        encodes = driver.add(range(50, 62), max_tokens=1, spans=[image])
        driver.launch()
        leader = driver.add(range(12), max_tokens=2, spans=[image])
        driver.launch()
        follower = driver.add([*range(12), 30], max_tokens=2, spans=[image])
        batch = driver.launch()
        assert batch is not None and batch.admissions[0].num_cached_tokens == 12
        driver.answer(error="it broke")
        assert driver.ended(encodes) == "error: it broke"
        driver.run()
        driver.assert_answered(leader, follower)

    def test_late_rows_publish_nothing(self) -> None:
        driver, *_ = self.begin()
        driver.answer(error="it broke")
        assert not driver.state.pool.num_pending and not len(driver.state.prefix)
        driver.answer()
        assert not len(driver.state.prefix)

    def test_a_second_failure_ends_them(self) -> None:
        driver, _, follower, third = self.begin()
        driver.answer(error="it broke")
        while driver.in_flight:
            driver.answer()
        leader = driver.add(range(40, 60), max_tokens=2, priority=-1)
        driver.launch()  # all three compute again
        driver.launch()
        assert driver.ended(third) is None
        driver.answer(error="it broke again")
        driver.answer()
        assert {leader.uid, follower.uid, third.uid} <= driver.history.ends.keys()
        driver.core.audit()


@BOTH
def test_what_answers_late_after_a_reset_is_not_published(same_step: bool) -> None:
    driver = Driver(config(reads_same_step=same_step), depth=2)
    driver.add(range(13), max_tokens=2)
    driver.launch()
    driver.ask(ResetPrefixCache)
    driver.device.change_weights({1})
    driver.run()
    driver.core.audit()
    later = driver.add(range(13), max_tokens=1)
    driver.run()
    assert driver.history.started[later.uid] == 0


@BOTH
def test_a_request_begins_again_if_a_step_fails_that_was_to_fill_its_blocks_before_a_reset(same_step: bool) -> None:
    """The cache shows the blocks no more, but the request still reads them."""
    driver = Driver(config(reads_same_step=same_step), depth=2)
    driver.add(range(13), max_tokens=2)
    driver.launch()
    follower = driver.add(range(13), max_tokens=3)
    driver.launch()
    driver.ask(ResetPrefixCache)
    driver.answer(error="it broke")
    driver.core.audit()
    driver.run()
    driver.assert_answered(follower)
    assert driver.history.started[follower.uid] == 12
    driver.core.audit()


def test_after_a_reset_a_running_request_waits_for_no_block_of_others() -> None:
    """What it would have looked for before the reset may come into the index again, with other KV."""
    driver = Driver(config(max_num_seqs=2, block_size=16, max_num_batched_tokens=3))
    driver.add(range(40), max_tokens=1)
    driver.step()
    driver.step()  # it looks for its first block here, and has not filled it
    driver.ask(ResetPrefixCache)
    state = driver.state
    (entry,) = state.prefilling
    block = state.pool.take(1)
    state.prefix.publish(state.prefix.root(None), entry.tokens[:16].tobytes(), block.tolist(), step_id=99)
    sharing = driver.core._sharing
    assert not sharing.waits(entry) and not sharing.is_announced(entry.slot)


def test_a_lost_device_and_a_pause_leave_nothing_pending() -> None:
    for message in (DeviceLost("gone"), Pause(abort=True, reset_prefix_cache=True)):
        driver = Driver(config(), depth=2)
        driver.add(range(13), max_tokens=2)
        driver.launch()
        driver.tell(message)
        assert not driver.state.pool.num_pending and not len(driver.state.prefix)
        driver.core.audit()


def test_other_salts_share_nothing_in_flight() -> None:
    driver = Driver(config(), depth=2)
    driver.add(range(13), max_tokens=1, cache_salt="a")
    driver.launch()
    other = driver.add(range(13), max_tokens=1, cache_salt="b")
    driver.run()
    assert driver.history.started[other.uid] == 0


def test_a_reservation_shares_published_blocks_only() -> None:
    for role in (Role.PREFILL, Role.DECODE):
        driver = Driver(config(role=role), depth=2)
        if role is Role.PREFILL:
            first = driver.make(range(13), max_tokens=1)
            assert driver.reserve(first) is not None
            driver.start_prefill(first.uid)
            driver.launch()
            assert driver.state.pool.num_pending
        reservation = driver.reserve(driver.make(range(13), max_tokens=2))
        assert reservation is not None and not reservation.num_cached_tokens


def test_prefill_matches_again_at_its_first_chunk() -> None:
    driver = Driver(config(role=Role.PREFILL), depth=2)
    first, second = driver.make(range(13), max_tokens=1), driver.make(range(13), max_tokens=1)
    assert driver.reserve(first) is not None and driver.reserve(second) is not None
    driver.start_prefill(first.uid)
    driver.launch()
    driver.start_prefill(second.uid)
    driver.launch()
    assert computed(driver) == 13 + 1


def test_a_prompt_counts_once_whatever_is_computed_again() -> None:
    """Four unrelated prompts and preemptions: no hit, and 4 x 9 prompt tokens."""
    driver = Driver(config())
    for i in range(4):
        driver.add(range(20 * i, 20 * i + 9), max_tokens=9)
    for _ in range(4):
        driver.step()
        driver.tell(PreemptAll())
    driver.run()
    snapshot = driver.core.snapshot()
    assert snapshot.num_prompt_tokens == snapshot.num_prefix_query_tokens == 36
    assert snapshot.num_prefix_hit_tokens == 0


def test_a_chunk_announces_its_blocks_once_and_again_only_if_it_was_made_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(config(max_num_batched_tokens=40, long_prefill_token_threshold=8, max_long_partial_prefills=4))
    announced: list[int] = []
    announce = driver.state.announce
    monkeypatch.setattr(
        driver.state, "announce", lambda entry, end: announced.append(entry.uid) or announce(entry, end)
    )
    short = [driver.add(range(100 * i, 100 * i + 6), max_tokens=1).uid for i in range(3)]
    long = driver.add(range(900, 950), max_tokens=1).uid
    batch = driver.launch()
    assert batch is not None and batch.num_new_tokens.tolist() == [6, 6, 6, 22]
    assert announced == [*short, long, long]  # 8 tokens of the long prompt, then what the step had left
    driver.run()
    driver.assert_answered()


def test_blocks_keep_the_tokens_that_decodes_have_filled_in_and_requests_the_rest() -> None:
    driver = Driver(config(), depth=1)
    request = driver.add(range(1, 10), max_tokens=9)  # two blocks and a token
    for _ in range(6):
        driver.step()
    blocks = driver.state.table.blocks_of(0).tolist()
    known = driver.core.known_tokens(request.uid)
    assert known is not None and len(known) == 15
    assert not driver.state.pool.tokens[blocks[:2]].any()
    assert driver.state.pool.tokens[blocks[2]].tolist() == known[8:12].tolist()
    driver.state.pool.tokens[blocks[:2]] = -1  # no reader looks there
    driver.tell(PreemptAll())
    driver.run()
    driver.assert_answered(request)
