"""For want of blocks a request gives up slot and blocks: which, at what price, and that all get to their end."""

import random

import pytest

from headway.config import Role
from headway.scheduler import StaticAllocation
from tests.scheduler.driver import Driver, config


def small(depth: int = 1, num_blocks: int = 9, **changes: object) -> Driver:
    """Two requests fit at first; there is no room for both to the end."""
    driver = Driver(config(num_blocks=num_blocks, **changes), depth=depth)
    driver.add(range(8), max_tokens=24)
    driver.add(range(10, 18), max_tokens=24)
    return driver


def until_preempted(driver: Driver) -> None:
    while not driver.core.snapshot().num_preemptions:
        driver.step()


class TestTheVictim:
    @pytest.mark.parametrize("depth", [1, 2])
    @pytest.mark.parametrize("caching", [True, False])
    @pytest.mark.parametrize("output_caching", [True, False])
    @pytest.mark.parametrize("victim", ["least-waste", "last-in-line"])
    def test_and_the_others_get_their_answers(
        self, depth: int, caching: bool, output_caching: bool, victim: str
    ) -> None:
        changes = {"enable_prefix_caching": caching, "enable_output_caching": output_caching, "victim": victim}
        driver = small(depth, **changes)
        driver.run()
        assert driver.core.snapshot().num_preemptions > 0
        assert driver.history.ends.keys() == driver.requests.keys()
        driver.assert_answered()
        driver.assert_empty()

    def test_is_never_the_first_in_line(self) -> None:
        driver = small()
        driver.run()
        assert driver.admissions().count(1) == 1 and driver.admissions().count(2) > 1

    def test_is_the_older_one_if_it_is_less_urgent(self) -> None:
        driver = Driver(config(num_blocks=9))
        older = driver.add(range(8), max_tokens=24, priority=1)
        urgent = driver.add(range(10, 18), max_tokens=24, priority=0)
        driver.run()
        assert driver.admissions().count(urgent.uid) == 1 and driver.admissions().count(older.uid) > 1
        driver.assert_answered()

    def three(self, victim: str) -> Driver:
        """The prompt of the second is in the cache block by block, that of the third is not quite: so there is more to
        compute again of the third."""
        driver = Driver(
            config(
                num_blocks=9,
                max_num_batched_tokens=32,
                reserve="none",
                enable_output_caching=False,
                victim=victim,
            )
        )
        driver.add(range(8), max_tokens=9)
        driver.add(range(10, 18), max_tokens=9)
        driver.add(range(20, 27), max_tokens=9)
        until_preempted(driver)
        return driver

    def test_is_by_least_waste_the_request_with_the_least_to_compute_again(self) -> None:
        driver = self.three("least-waste")
        assert [entry.uid for entry in driver.state.waiting] == [2]
        driver.run()
        driver.assert_answered()

    def test_is_by_last_in_line_the_request_that_came_last(self) -> None:
        driver = self.three("last-in-line")
        assert [entry.uid for entry in driver.state.waiting] == [3]
        driver.run()
        driver.assert_answered()

    def test_may_be_in_the_middle_of_its_prompt(self) -> None:
        driver = Driver(config(num_blocks=9, max_num_batched_tokens=8, reserve="none", long_prefill_token_threshold=0))
        driver.add(range(8), max_tokens=20)
        driver.step()
        prefilling = driver.add(range(10, 30), max_tokens=2)  # 5 blocks, and 8 tokens a step
        driver.step()
        until_preempted(driver)
        assert [entry.uid for entry in driver.state.waiting] == [prefilling.uid]
        driver.run()
        driver.assert_answered()

    def test_is_no_request_under_static_allocation(self) -> None:
        driver = Driver(config(num_blocks=9), StaticAllocation())
        driver.add(range(8), max_tokens=24)
        driver.add(range(10, 18), max_tokens=24)
        driver.run()
        assert driver.core.snapshot().num_preemptions == 0
        driver.assert_answered()

    def test_alone_waits_until_there_is_one_block_more_than_it_had(self) -> None:
        driver = Driver(config(num_blocks=9, enable_prefix_caching=False))
        driver.add(range(8), max_tokens=24)
        driver.step()
        lent = driver.state.pool.take(6)  # as a reservation would
        assert driver.core.schedule() is None
        assert driver.core.schedule() is None, "with as many as it had it would come to the same end"
        driver.state.pool.release(lent)
        driver.run()
        driver.assert_answered()
        assert driver.core.snapshot().num_preemptions == 1


class TestAfterwards:
    def test_it_finds_its_own_blocks_in_the_cache(self) -> None:
        driver = small(num_blocks=15)
        driver.run()
        resumed = [a for b in driver.batches for a in b.admissions if len(a.tokens) > len(a.request.prompt)]
        assert resumed and any(a.num_cached_tokens for a in resumed)

    def test_it_is_told_as_started_only_once(self) -> None:
        driver = small()
        driver.run()  # the history refuses a second start
        assert driver.history.started.keys() == driver.requests.keys()

    def test_it_keeps_its_place_before_those_who_came_later(self) -> None:
        driver = small(reserve="none")
        until_preempted(driver)
        later = driver.add([40], max_tokens=1, priority=0)
        driver.run()
        order = [uid for uid in driver.admissions() if uid != 1]
        assert order[0] == 2 and order.index(later.uid) > 0
        driver.assert_answered()

    def test_no_newcomer_takes_the_blocks_in_the_pass_that_won_them(self) -> None:
        """The requests that go on would lack them again in the next."""
        driver = small(reserve="none", max_num_seqs=2)
        newcomer = driver.add([40], max_tokens=1)  # waits for a slot, and gets the victim's one step later
        until_preempted(driver)
        assert not driver.batches[-1].admissions
        driver.step()
        assert driver.admissions()[-1] == newcomer.uid
        driver.run()
        driver.assert_answered()

    @pytest.mark.parametrize("depth", [1, 2])
    def test_its_logits_are_those_of_prompt_and_output(self, depth: int) -> None:
        """What it is admitted with the second time is what was confirmed; what was in flight is computed again."""
        driver = small(depth)
        driver.run()
        for batch in driver.batches:
            for admission in batch.admissions:
                known = [*admission.request.prompt.tolist(), *driver.history.tokens[admission.request.uid]]
                assert admission.tokens.tolist() == known[: len(admission.tokens)]


@pytest.mark.parametrize("seed", range(12))
def test_a_pool_that_is_always_full_serves_all_requests(seed: int) -> None:
    """No request evicts others for ever: the first in line always gets on."""
    dice = random.Random(seed)
    driver = Driver(
        config(
            num_blocks=dice.choice((9, 11, 14)),
            max_num_batched_tokens=dice.choice((4, 9, 24)),
            reserve=dice.choice(("none", "peak")),
            victim=dice.choice(("least-waste", "last-in-line")),
            enable_prefix_caching=dice.random() < 0.5,
            ageing_seconds=dice.choice((0.0, 2.0)),
            role=dice.choice((Role.MIXED, Role.DECODE)),
        ),
        depth=dice.choice((1, 2)),
    )
    for _ in range(14):
        length = dice.randint(1, 20)
        driver.add(
            [dice.randint(0, 2) for _ in range(length)],
            max_tokens=dice.randint(1, 32 - length),
            priority=dice.randint(0, 2),
        )
        driver.wait(dice.random())
        for _ in range(dice.randint(0, 3)):
            driver.step()
    driver.run()
    driver.assert_answered()
    driver.assert_empty()
