"""Log-probabilities of prompts, from the device to the caller: every position from 1 on, once, in order, before the
first token of the answer."""

import pytest

from headway.request import Request
from headway.scheduler import PreemptAll
from tests.scheduler.driver import Driver, config

PROMPT = range(2, 25)


def add(driver: Driver, prompt=PROMPT, most: int = 2, **options: object) -> Request:
    """A request as the door makes it."""
    return driver.add(prompt, prompt_logprobs=most, reads_prefix_cache=False, **options)


def assert_judged(driver: Driver, *requests: Request) -> None:
    for request in requests:
        assert driver.history.judged[request.uid] == list(range(1, len(request.prompt)))
    driver.assert_answered()
    driver.assert_empty()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("budget", [5, 8, 64])
def test_come_once_and_in_order_whatever_the_chunks(depth: int, budget: int) -> None:
    driver = Driver(config(max_num_batched_tokens=budget), depth=depth)
    silent = driver.add(PROMPT)
    requests = [add(driver), add(driver, range(40, 49), most=0), add(driver, [7])]
    driver.run()
    assert_judged(driver, *requests)
    assert silent.uid not in driver.history.judged


def test_the_arrays_of_a_request_are_its_own() -> None:
    driver = Driver(config(max_num_batched_tokens=64))
    silent, one, two = driver.add([5, 6, 7]), add(driver, range(10), most=1), add(driver, range(20, 24), most=3)
    driver.launch()
    (outputs,) = driver.answer().prompt_logprobs
    assert silent.uid not in outputs.uids
    assert outputs.uids.tolist() == [one.uid, two.uid] and outputs.logprobs.rows.tolist() == [0, 1]
    assert outputs.logprobs.starts.tolist() == [1, 1] and outputs.logprobs.counts.tolist() == [9, 3]
    assert outputs.logprobs.top_ids.shape == outputs.logprobs.top.shape == (12, 3)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 6])
def test_a_preemption_neither_repeats_nor_loses_a_position(depth: int, after: int) -> None:
    driver = Driver(config(max_num_batched_tokens=6), depth=depth)
    requests = [add(driver), add(driver, range(30, 41))]
    for _ in range(after):
        driver.step()
    driver.tell(PreemptAll())
    driver.run()
    assert_judged(driver, *requests)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_tight_pool_neither_repeats_nor_loses_a_position(depth: int) -> None:
    """Some requests give way in the middle of their prompts, to urgent ones; some while they decode."""
    driver = Driver(config(num_blocks=9, max_num_batched_tokens=4), depth=depth)
    requests = [add(driver, range(8), max_tokens=24, priority=1), add(driver, range(10, 30), priority=2)]
    for _ in range(4):
        driver.step()
    requests += [add(driver, range(30, 48), max_tokens=14), add(driver, range(8), max_tokens=24, priority=1)]
    driver.run()
    assert driver.core.snapshot().num_preemptions > 0
    assert_judged(driver, *requests)


def test_a_step_whose_request_has_left_reports_the_others_alone() -> None:
    driver = Driver(config(max_num_batched_tokens=64))
    gone, stays = add(driver, range(9)), add(driver, range(20, 26))
    driver.launch()
    driver.abort(gone.uid)
    (outputs,) = driver.answer().prompt_logprobs
    assert outputs.uids.tolist() == [stays.uid] and outputs.logprobs.logprobs.shape == (5,)
    assert outputs.logprobs.starts.tolist() == [1] and outputs.logprobs.ranks.shape == (5,)
    driver.run()
    assert gone.uid not in driver.history.judged


def test_a_failed_step_ends_its_requests_and_the_device_judges_the_next_request_from_the_start() -> None:
    driver = Driver(config(max_num_batched_tokens=8))
    add(driver)
    driver.step()
    driver.launch()
    driver.answer(error="out of memory")
    late = add(driver)
    driver.run()
    assert driver.history.judged[late.uid] == list(range(1, len(PROMPT)))


def test_what_was_computed_is_found_by_other_requests() -> None:
    driver = Driver(config())
    add(driver)
    driver.run()
    late = driver.add(PROMPT)
    driver.run()
    assert driver.history.started[late.uid] == 20
