"""Generated tokens in the prefix cache: by themselves or when told, and never before their step has succeeded."""

import pytest

from headway.config import Role
from headway.request import Request
from headway.scheduler import PreemptAll, PublishOutput
from tests.scheduler.driver import Driver, config


def told(driver: Driver, request: Request) -> None:
    assert not driver.tell(PublishOutput((request.uid,)))


def found_of(driver: Driver, request: Request) -> int:
    """How many tokens of prompt and output so far a newcomer finds."""
    tokens = [*request.prompt.tolist(), *driver.history.tokens[request.uid]]
    newcomer = driver.add([*tokens, 30], max_tokens=1)
    while newcomer.uid not in driver.admissions():
        driver.step()
    admissions = [a for batch in driver.batches for a in batch.admissions if a.request is newcomer]
    driver.abort(newcomer.uid)
    return admissions[0].num_cached_tokens


def after_steps(driver: Driver, steps: int) -> Request:
    request = driver.add(range(6), max_tokens=20)
    for _ in range(steps):
        driver.launch()
        driver.answer()
    return request


@pytest.mark.parametrize(("steps", "found"), [(1, 4), (2, 4), (3, 8), (6, 8), (7, 12)])
def test_switched_on_each_block_is_found_as_soon_as_it_is_full(steps: int, found: int) -> None:
    driver = Driver(config())
    assert found_of(driver, after_steps(driver, steps)) == found


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_switched_off_only_the_prompt_is_found(steps: int) -> None:
    driver = Driver(config(enable_output_caching=False))
    assert found_of(driver, after_steps(driver, steps)) == 4


@pytest.mark.parametrize(("steps", "found"), [(1, 4), (2, 4), (3, 8), (6, 8), (7, 12)])
def test_switched_off_what_is_told_of_is_found(steps: int, found: int) -> None:
    driver = Driver(config(enable_output_caching=False))
    request = after_steps(driver, steps)
    told(driver, request)
    assert found_of(driver, request) == found
    driver.run()
    driver.assert_answered(request)
    driver.assert_empty()


def test_what_comes_after_that_is_found_when_it_is_told_again() -> None:
    driver = Driver(config(enable_output_caching=False))
    request = after_steps(driver, 3)
    told(driver, request)
    for _ in range(4):
        driver.step()
    assert found_of(driver, request) == 8
    told(driver, request)
    told(driver, request)
    assert found_of(driver, request) == 12
    driver.run()
    driver.assert_answered(request)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("steps", range(7))
@pytest.mark.parametrize("output_caching", [True, False])
def test_nothing_is_found_whose_step_may_yet_fail(depth: int, steps: int, output_caching: bool) -> None:
    """It is told of at any moment, and then what is in flight fails: the oracle notices if its KV is found."""
    driver = Driver(config(enable_output_caching=output_caching), depth=depth)
    request = after_steps(driver, steps)
    tokens = list(driver.history.tokens[request.uid])
    for _ in range(depth):
        driver.launch()
    told(driver, request)
    while driver.in_flight:
        driver.answer(error="boom")
    newcomer = driver.add([*range(6), *tokens, 30, 31, 32, 33], max_tokens=4)
    driver.run()
    assert driver.history.started[newcomer.uid] == (6 + len(tokens) - 1) // 4 * 4 if steps else True
    driver.assert_answered(newcomer)
    driver.assert_empty()


@pytest.mark.parametrize("output_caching", [True, False])
def test_a_preempted_request_publishes_no_more_than_others(output_caching: bool) -> None:
    """What it computes again as if it were a prompt is output all the same."""
    driver = Driver(config(enable_output_caching=output_caching, max_num_batched_tokens=8))
    request = after_steps(driver, 7)
    driver.tell(PreemptAll())
    for _ in range(3):
        driver.step()
    assert found_of(driver, request) == (12 if output_caching else 4)
    driver.run()
    driver.assert_answered(request)


def test_what_was_told_of_before_a_preemption_is_found_after_it_and_goes_on_from_there() -> None:
    driver = Driver(config(enable_output_caching=False))
    request = after_steps(driver, 7)
    told(driver, request)
    driver.tell(PreemptAll())
    batch = driver.step()
    assert batch is not None and batch.admissions[0].num_cached_tokens == 12
    for _ in range(4):
        driver.step()
    told(driver, request)
    assert found_of(driver, request) == 16
    driver.run()
    driver.assert_answered(request)


def test_of_requests_that_do_not_decode_it_changes_nothing() -> None:
    driver = Driver(config(max_num_seqs=1, max_num_batched_tokens=4, enable_output_caching=False))
    prefilling, waiting = driver.add(range(12), max_tokens=2), driver.add(range(20, 32), max_tokens=2)
    preparing = driver.add([1], preprocess=b"image")
    driver.step()
    before = driver.core.snapshot()
    for request in (prefilling, waiting, preparing):
        told(driver, request)
    assert not driver.tell(PublishOutput((77,)))
    assert driver.core.snapshot() == before
    driver.prepared(preparing)
    driver.run()
    driver.assert_answered()


def test_without_prefix_caching_there_is_nothing_to_be_found() -> None:
    driver = Driver(config(enable_prefix_caching=False))
    request = after_steps(driver, 7)
    told(driver, request)
    assert found_of(driver, request) == 0
    driver.run()
    assert driver.core.snapshot().num_blocks_evictable == 0
    driver.assert_answered(request)


def test_on_d_as_elsewhere() -> None:
    for output_caching, found in ((True, 12), (False, 8)):
        driver = Driver(config(role=Role.DECODE, enable_output_caching=output_caching))
        request = driver.make(range(10), max_tokens=9)
        driver.reserve(request)
        driver.start_decode(request)
        for _ in range(4):
            driver.step()
        assert found_of(driver, request) == found
        driver.run()
        driver.assert_answered(request)
