"""What a batch tells an owner that keeps books of its own: who was preempted, and whether the decodes are the same.

The driver checks both against the state of the core, for each batch of every test of this folder.
"""

from __future__ import annotations

import pytest

from headway.config import Role
from headway.scheduler import HoldAdmissions, PreemptAll
from tests.scheduler.driver import Driver, config


class TestWhoWasPreempted:
    def test_for_want_of_blocks_is_told_in_the_batch_of_that_pass(self) -> None:
        driver = Driver(config(num_blocks=9))
        driver.add(range(8), max_tokens=24)
        victim = driver.add(range(10, 18), max_tokens=24)
        while not driver.core.snapshot().num_preemptions:
            batch = driver.launch()
            driver.answer()
        assert batch is not None and batch.preempted == (victim.uid,) and not batch.admissions
        assert [batch.preempted for batch in driver.batches[:-1]] == [()] * (len(driver.batches) - 1)

    def test_is_told_also_if_it_is_admitted_again_in_the_same_pass(self) -> None:
        """An urgent request displaces the small one, which is not enough, and the large one, which is too much."""
        driver = Driver(config(num_blocks=13, max_num_batched_tokens=64, max_model_len=48, reserve="none"))
        large = driver.add(range(30), max_tokens=9, priority=5)
        small = driver.add(range(40, 46), max_tokens=9, priority=6)
        driver.step()
        urgent = driver.add(range(50, 68), max_tokens=2, priority=0)
        batch = driver.launch()
        assert batch is not None and batch.preempted == (small.uid, large.uid)
        assert [admission.request.uid for admission in batch.admissions] == [urgent.uid, small.uid]
        driver.run()
        driver.assert_answered()

    def test_is_told_once_before_the_next_batch_if_the_owner_asks(self) -> None:
        driver = Driver(config())
        requests = [driver.add([i, 1], max_tokens=9) for i in range(3)]
        driver.step()
        driver.tell(PreemptAll())
        assert driver.take_preempted() == tuple(request.uid for request in requests)
        assert driver.take_preempted() == ()
        batch = driver.launch()
        assert batch is not None and batch.preempted == () and len(batch.admissions) == 3

    def test_is_told_when_there_is_no_batch_for_a_long_time_and_each_request_once(self) -> None:
        driver = Driver(config(role=Role.PREFILL, max_num_batched_tokens=8))
        request = driver.add(range(20), max_tokens=1)
        driver.step()
        driver.tell(PreemptAll())
        driver.tell(PreemptAll())  # between the two it was admitted again
        batch = driver.launch()
        assert driver.core.snapshot().num_preemptions == 2
        assert batch is not None and batch.preempted == (request.uid,)
        assert [admission.request.uid for admission in batch.admissions] == [request.uid]

    def test_is_told_also_if_it_has_ended_since(self) -> None:
        driver = Driver(config())
        request, other = driver.add([1, 2], max_tokens=9), driver.add([3, 4], max_tokens=9)
        driver.step()
        driver.tell(PreemptAll())
        driver.abort(request.uid)
        batch = driver.launch()
        assert batch is not None and batch.preempted == (request.uid, other.uid)


class TestTheDecodeSet:
    def test_is_the_same_while_the_same_requests_decode_and_greater_after_a_change(self) -> None:
        driver = Driver(config(max_num_seqs=4))
        driver.add([1, 2], max_tokens=20)
        driver.add([3, 4], max_tokens=10)
        sets = []
        while driver.step() is not None:
            batch = driver.batches[-1]
            sets.append((batch.num_decodes, batch.decode_set))
        assert sets == [(0, 0)] + [(2, 1)] * 9 + [(1, 2)] * 10

    def test_is_the_same_while_other_requests_come_and_compute_their_prompts(self) -> None:
        driver = Driver(config(max_num_batched_tokens=8))
        driver.add([1, 2], max_tokens=20)
        driver.step()
        driver.step()
        driver.add(range(20), max_tokens=2)
        for _ in range(3):
            driver.step()
        assert [(len(batch) - batch.num_decodes, batch.decode_set) for batch in driver.batches[1:]] == [
            (0, 1),
            (1, 1),
            (1, 1),
            (1, 1),
        ]
        driver.step()
        assert driver.batches[-1].num_decodes == 2 and driver.batches[-1].decode_set == 2

    @pytest.mark.parametrize("depth", [1, 2])
    def test_changes_when_a_slot_goes_to_another_request(self, depth: int) -> None:
        driver = Driver(config(max_num_seqs=1), depth=depth)
        for i in range(2):
            driver.add([i, 1], max_tokens=4)
        driver.run()
        decodes = [batch for batch in driver.batches if batch.num_decodes]
        assert len({batch.decode_set for batch in decodes}) == 2

    def test_changes_when_a_request_comes_back_after_a_preemption(self) -> None:
        driver = Driver(config())
        driver.add([1, 2], max_tokens=9)
        driver.step()
        driver.step()
        driver.tell(PreemptAll())
        driver.step()
        driver.step()
        assert [(batch.num_decodes, batch.decode_set) for batch in driver.batches] == [(0, 0), (1, 1), (0, 2), (1, 3)]

    def test_stays_the_same_over_passes_without_a_batch(self) -> None:
        driver = Driver(config())
        driver.add([1, 2], max_tokens=2)
        driver.run()
        driver.tell(HoldAdmissions())
        assert driver.launch() is None
        assert driver.batches[-1].decode_set == 1
