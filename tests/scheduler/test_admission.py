"""Who is let in, and when: slots and blocks, the bounded bypass, and what is kept in reserve."""

from dataclasses import replace

import pytest

from headway.config import Role
from headway.scheduler import Policies, PreemptAll, StaticAllocation
from headway.scheduler.policies.reserve import BlocksReserve, NoReserve, PeakReserve
from tests.scheduler.driver import Driver, config


class TestRoom:
    def test_waits_for_a_slot(self) -> None:
        driver = Driver(config(max_num_seqs=2))
        for start in range(3):
            driver.add([start, start], max_tokens=3)
        batch = driver.step()
        assert batch is not None and len(batch) == 2
        assert driver.core.snapshot().num_waiting == 1
        driver.run()
        driver.assert_answered()

    def test_waits_for_blocks(self) -> None:
        driver = Driver(config(num_blocks=9, reserve="none"))
        driver.add(range(14), max_tokens=2)  # 4 of 8 blocks
        driver.step()
        waits = driver.add(range(20, 37), max_tokens=1)  # 5 blocks
        driver.step()
        assert driver.admissions() == [1]
        driver.run()
        driver.assert_answered(waits)

    def test_takes_the_last_block_there_is(self) -> None:
        driver = Driver(config(num_blocks=9, reserve="none"))
        driver.add(range(14), max_tokens=2)
        driver.step()
        fits = driver.add(range(20, 36), max_tokens=1)  # the other 4
        driver.launch()
        assert driver.admissions() == [1, fits.uid]
        assert driver.core.snapshot().num_blocks_free == 0

    def test_blocks_that_it_would_share_are_not_counted_twice(self) -> None:
        driver = Driver(config(num_blocks=9))
        driver.add(range(20), max_tokens=2)
        driver.run()
        driver.add([*range(20), *range(8)], max_tokens=2)
        driver.run()
        driver.assert_answered()

    def test_blocks_that_others_use_need_not_be_there_again(self) -> None:
        driver = Driver(config(num_blocks=9, reserve="none"))
        driver.add(range(20), max_tokens=9)  # 5 of 8 blocks, and soon 6
        driver.step()
        twin = driver.add(range(20), max_tokens=1)  # 5 blocks, 4 of them shared
        driver.step()
        assert driver.history.started[twin.uid] == 16

    def test_is_looked_at_again_when_others_have_computed_its_beginning(self) -> None:
        """It lacked 3 of 6 blocks. Then the cache has 5 of them, and the one that is needed was there before."""
        driver = Driver(config(num_blocks=9, reserve="none", max_num_batched_tokens=32))
        driver.add(range(20), max_tokens=9)
        second = driver.add([*range(20), 30], max_tokens=2)
        driver.step()
        assert driver.core.snapshot().num_waiting == 1
        driver.step()
        assert driver.history.started[second.uid] == 20
        driver.run()
        driver.assert_answered()

    def test_is_not_looked_up_again_while_nothing_has_changed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        driver = Driver(config(num_blocks=9, reserve="none"))
        driver.add(range(20), max_tokens=9)
        driver.step()
        driver.step()
        driver.add(range(12, 29), max_tokens=2)
        driver.step()
        lookups = []
        match = driver.state.prefix.match
        monkeypatch.setattr(driver.state.prefix, "match", lambda *args: lookups.append(1) or match(*args))
        driver.step()
        driver.step()
        assert driver.core.snapshot().num_waiting == 1 and not lookups

    def test_goes_by_priority(self) -> None:
        driver = Driver(config(max_num_seqs=1))
        driver.add([1], max_tokens=2, priority=-1)
        driver.step()
        late, urgent = driver.add([2], priority=1), driver.add([3], priority=0)
        driver.run()
        assert driver.admissions() == [1, urgent.uid, late.uid]

    def test_more_tiny_requests_than_one_look_along_the_queue_come_in_in_one_pass(self) -> None:
        driver = Driver(config(max_num_seqs=50, max_num_batched_tokens=64, num_blocks=80))
        for i in range(45):
            driver.add([i], max_tokens=2)
        batch = driver.step()
        assert batch is not None and len(batch) == 45
        driver.run()
        driver.assert_answered()

    def test_so_they_do_behind_one_that_lacks_blocks(self) -> None:
        driver = Driver(
            config(max_num_seqs=50, max_num_batched_tokens=64, max_model_len=64, num_blocks=53, max_bypass=100)
        )
        driver.add(range(50), max_tokens=2)  # 13 of 52 blocks
        driver.step()
        for i in range(30):
            driver.add([i], max_tokens=3)
        driver.add(range(10, 60), max_tokens=1, priority=-1)  # 13 blocks, and there are 39: it comes in
        driver.add(range(20, 63), max_tokens=1, priority=-1)
        big = driver.add(range(1, 64), max_tokens=1, priority=-1)  # 16: it does not
        batch = driver.step()
        assert batch is not None and big.uid not in driver.admissions()
        assert set(driver.admissions()) >= set(range(2, 13))
        driver.run()
        driver.assert_answered()


class TestBypass:
    """One that waits for blocks is passed by others that fit, `max_bypass` times and not once more."""

    def crowd(self, max_bypass: int, num_small: int = 6) -> Driver:
        """20 blocks, of which a decoding request holds 13 for five steps more; the head wants 10, the others 1 each."""
        driver = Driver(
            config(
                max_num_seqs=16,
                max_num_batched_tokens=64,
                max_model_len=64,
                num_blocks=21,
                reserve="none",
                max_bypass=max_bypass,
                long_prefill_token_threshold=0,
            )
        )
        driver.add(range(46), max_tokens=6)
        driver.step()
        driver.add(range(1, 40), max_tokens=2)
        for i in range(num_small):
            driver.add([i], max_tokens=1)
        return driver

    @pytest.mark.parametrize("max_bypass", [0, 1, 3, 5])
    def test_is_bounded_exactly(self, max_bypass: int) -> None:
        driver = self.crowd(max_bypass)
        driver.run()
        small = list(range(3, 9))
        assert driver.admissions() == [1, *small[:max_bypass], 2, *small[max_bypass:]]
        driver.assert_answered()

    def test_is_counted_over_passes(self) -> None:
        driver = self.crowd(max_bypass=3, num_small=2)
        driver.step()
        assert driver.admissions() == [1, 3, 4]
        for i in range(3):
            driver.add([i], max_tokens=1)
        driver.run()
        assert driver.admissions() == [1, 3, 4, 5, 2, 6, 7]

    def test_never_starves_the_head_whatever_comes(self) -> None:
        driver = self.crowd(max_bypass=4, num_small=0)
        for i in range(40):
            driver.add([i % 50, 1], max_tokens=3)
            driver.step()
            if 2 in driver.admissions():
                break
        assert driver.admissions().index(2) == 1 + 4
        driver.run()
        driver.assert_answered()

    def test_counts_for_each_that_is_passed(self) -> None:
        driver = self.crowd(max_bypass=2, num_small=0)
        driver.add(range(2, 41), max_tokens=2)  # wants 10 too
        for i in range(4):
            driver.add([i], max_tokens=1)
        driver.run()
        assert driver.admissions() == [1, 4, 5, 2, 3, 6, 7]
        driver.assert_answered()

    def test_of_one_that_was_let_in_starts_over_if_it_must_wait_again(self) -> None:
        driver = self.crowd(max_bypass=3)
        while 2 not in driver.admissions():
            driver.step()
        driver.tell(PreemptAll())
        assert [entry.num_bypassed for entry in driver.state.waiting] == [0] * len(driver.state.waiting)
        driver.run()
        driver.assert_answered()

    @pytest.mark.parametrize("max_bypass", [0, 2])
    def test_is_bounded_on_p_too(self, max_bypass: int) -> None:
        """There no request waits for budget, and everything said to it is an occasion to admit one."""
        driver = Driver(
            config(role=Role.PREFILL, max_num_seqs=16, num_blocks=9, max_bypass=max_bypass, max_num_batched_tokens=20)
        )
        driver.add(range(20), max_tokens=1)  # 5 of 8 blocks
        driver.add(range(1, 21), max_tokens=1)
        for i in range(4):
            driver.add([i], max_tokens=1)
        assert driver.core.snapshot().num_running == 1 + max_bypass
        driver.run()
        small = [3, 4, 5, 6]
        assert driver.admissions() == [1, *small[:max_bypass], 2, *small[max_bypass:]]
        driver.assert_answered()

    def test_there_is_none_for_want_of_a_slot(self) -> None:
        driver = Driver(config(max_num_seqs=1, reserve="none"))
        driver.add([1], max_tokens=4)
        driver.step()
        for i in range(3):
            driver.add([i, i], max_tokens=1)
        driver.run()
        assert driver.admissions() == [1, 2, 3, 4]


class TestReserve:
    """A decoding request holds 2 of 8 blocks, and 3 from the next step on; a newcomer wants one."""

    def passes_waited(self, driver: Driver, prompt: range = range(40, 43)) -> int:
        driver.add(range(8), max_tokens=24)
        driver.step()
        newcomer = driver.add(prompt, max_tokens=1)
        for waited in range(30):
            driver.launch()
            driver.answer()
            if newcomer.uid in driver.admissions():
                return waited
        return 30

    def test_none_lets_in_every_request_that_fits(self) -> None:
        assert self.passes_waited(Driver(config(num_blocks=9, reserve="none"))) == 0

    def test_by_peak_keeps_what_requests_that_decode_will_take(self) -> None:
        """5 blocks more up to its limit, and one for safety; the request grows as fast as that falls."""
        assert self.passes_waited(Driver(config(num_blocks=10, reserve="peak"))) > 15  # till no request decodes
        assert self.passes_waited(Driver(config(num_blocks=11, reserve="peak"))) == 0

    @pytest.mark.parametrize("reason", ["stop", "abort"])
    def test_by_peak_learns_from_answers_that_end_for_whatever_reason(self, reason: str) -> None:
        """Answers of two tokens: one block more at most, and one for safety."""
        driver = Driver(config(num_blocks=10, reserve="peak"))
        for i in range(300):
            request = driver.add([i], max_tokens=24 if reason == "abort" else 2)
            driver.step()
            driver.step()
            if reason == "abort":
                driver.abort(request.uid)
        assert self.passes_waited(driver) == 0

    def test_by_blocks_keeps_so_many_each(self) -> None:
        options = config(num_blocks=9)
        for per_request, waited in ((5.0, 0), (6.0, 1), (7.0, 2)):  # one less with every step
            policies = replace(Policies.of(options), reserve=BlocksReserve(per_request, decay=1.0))
            assert self.passes_waited(Driver(options, policies=policies)) == waited

    def test_by_blocks_is_sixteen_each_at_first(self) -> None:
        assert self.passes_waited(Driver(config(num_blocks=20, reserve="blocks"))) > 15  # till no request decodes
        assert self.passes_waited(Driver(config(num_blocks=21, reserve="blocks"))) == 0  # 3 + 16 + 1

    def test_is_asked_of_newcomers_only_while_a_request_decodes(self) -> None:
        driver = Driver(config(num_blocks=9, reserve="blocks", max_num_batched_tokens=32))
        driver.add(range(12), max_tokens=2)
        driver.add(range(20, 32), max_tokens=2)
        driver.launch()
        assert driver.admissions() == [1, 2]

    def test_decays_with_steps_and_not_with_turns(self) -> None:
        options = config()
        reserve = BlocksReserve(10.0, decay=1.0)
        driver = Driver(options, policies=replace(Policies.of(options), reserve=reserve))
        for _ in range(5):
            assert driver.launch() is None
        assert reserve.per_request == 10.0
        driver.add([1], max_tokens=3)
        driver.run()
        assert reserve.per_request == 7.0

    @pytest.mark.parametrize("depth", [1, 2])
    def test_is_put_right_by_a_preemption_for_want_of_blocks(self, depth: int) -> None:
        options = config(num_blocks=9)
        reserve = BlocksReserve(0.4, decay=0.01)
        driver = Driver(options, depth=depth, policies=replace(Policies.of(options), reserve=reserve))
        driver.add(range(8), max_tokens=24)
        driver.add(range(10, 18), max_tokens=24)
        while not driver.core.snapshot().num_preemptions:
            last, batch = reserve.per_request, driver.launch()
            if batch is None or len(driver.in_flight) == depth:
                driver.answer()
        assert last < 0.35 and reserve.per_request == pytest.approx(0.39)  # the step of that pass counts again

    def test_is_not_touched_by_a_displacement_or_a_pause(self) -> None:
        options = config(max_num_seqs=1)
        reserve = BlocksReserve(5.0, decay=1.0)
        driver = Driver(options, policies=replace(Policies.of(options), reserve=reserve))
        driver.add([1], priority=1)
        driver.step()
        driver.add([2], max_tokens=1)
        driver.step()
        driver.tell(PreemptAll())
        assert driver.core.snapshot().num_preemptions == 1 and reserve.per_request == 3.0

    def test_is_counted_once_in_a_pass_however_many_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        options, counted = config(num_blocks=20, reserve="blocks"), []
        policies = Policies.of(options)
        count = policies.reserve.blocks
        monkeypatch.setattr(policies.reserve, "blocks", lambda *args: counted.append(1) or count(*args))
        driver = Driver(options, policies=policies)
        driver.add(range(8), max_tokens=24)
        driver.step()
        for start in range(20):
            driver.add([start], max_tokens=1, priority=start % 3)
        driver.step()
        assert driver.admissions() == [1] and len(counted) == 1
        driver.step()
        assert driver.admissions() == [1] and len(counted) == 2

    def test_does_not_shut_out_a_request_that_may_displace_the_requests_it_is_kept_for(self) -> None:
        driver = Driver(config(num_blocks=20, reserve="blocks"))
        driver.add(range(8), max_tokens=24, priority=1)
        driver.step()
        driver.add([30], max_tokens=1, priority=1)
        urgent = driver.add([40], max_tokens=1)
        driver.step()
        assert driver.admissions() == [1, urgent.uid]
        assert not driver.core.snapshot().num_preemptions

    def test_is_looked_at_again_when_others_have_computed_its_beginning(self) -> None:
        """It wants 5 blocks, and 1 when 4 are cached. 5 are held, 16 are kept: 0 or 1 is left."""
        for num_blocks, comes in ((22, False), (23, True)):
            driver = Driver(config(num_blocks=num_blocks, reserve="blocks", max_num_batched_tokens=17))
            driver.add(range(16), max_tokens=9)  # 5 blocks with its output
            second = driver.add([*range(16), 30], max_tokens=1)
            driver.launch()
            assert driver.admissions() == [1]
            driver.launch()
            assert (second.uid in driver.admissions()) == comes

    def test_under_static_allocation_is_none(self) -> None:
        options = config(num_blocks=17, reserve="blocks")
        assert isinstance(Policies.of(options, StaticAllocation()).reserve, NoReserve)
        assert isinstance(Policies.of(options).reserve, BlocksReserve)
        assert isinstance(Policies.of(config()).reserve, PeakReserve)
        driver = Driver(options, StaticAllocation())
        driver.add(range(8), max_tokens=24)
        driver.step()
        driver.add(range(8, 16), max_tokens=24)  # the other 8 of 16 blocks
        driver.launch()
        assert driver.admissions() == [1, 2]
