"""A request may leave the prefix cache unread: all of its prompt is computed. Other requests find what it computes."""

import pytest

from headway.config import Role
from headway.request import Span
from headway.scheduler import PreemptAll, ResetPrefixCache
from tests.scheduler.driver import Driver, config

PROMPT = range(13)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("spans", [(), (Span(1, 3, b"a", 3),)])
def test_computes_all_of_its_prompt_though_it_is_cached(depth: int, spans: tuple[Span, ...]) -> None:
    driver = Driver(config(), depth=depth)
    driver.add(PROMPT, max_tokens=2, spans=spans)
    driver.run()
    request = driver.add(PROMPT, max_tokens=2, spans=spans, reads_prefix_cache=False)
    driver.run()
    assert driver.history.started[request.uid] == 0
    assert driver.core.snapshot().num_prefill_tokens == 26
    driver.assert_answered()
    driver.assert_empty()


def test_what_it_computes_is_found_by_other_requests() -> None:
    driver = Driver(config())
    driver.add(PROMPT, max_tokens=2, reads_prefix_cache=False)
    driver.run()
    late = driver.add(PROMPT, max_tokens=2)
    driver.run()
    assert driver.history.started[late.uid] == 12
    driver.assert_answered()


@pytest.mark.parametrize("same_step", [False, True])
@pytest.mark.parametrize("budget", [8, 64])
def test_takes_nothing_of_an_equal_prompt_that_is_computed_at_the_same_time(same_step: bool, budget: int) -> None:
    driver = Driver(config(max_num_batched_tokens=budget, reads_same_step=same_step))
    driver.add(PROMPT, max_tokens=2)
    driver.add(PROMPT, max_tokens=2, reads_prefix_cache=False)
    driver.run()
    assert driver.core.snapshot().num_prefill_tokens == 26
    driver.assert_answered()


def test_does_not_wait_for_a_row_that_computes_the_same() -> None:
    driver = Driver(config(max_num_batched_tokens=64))
    driver.add(PROMPT, max_tokens=2)
    driver.add(PROMPT, max_tokens=2, reads_prefix_cache=False)
    batch = driver.launch()
    assert batch is not None and batch.num_new_tokens.tolist() == [13, 13]


def test_a_row_that_waits_for_its_blocks_takes_them() -> None:
    driver = Driver(config(max_num_batched_tokens=64))
    driver.add(PROMPT, max_tokens=2, reads_prefix_cache=False)
    late = driver.add(PROMPT, max_tokens=2)
    driver.run()
    assert driver.history.started[late.uid] == 12
    driver.assert_answered()


def test_computes_all_again_after_a_preemption() -> None:
    driver = Driver(config(max_num_batched_tokens=32))
    request = driver.add(PROMPT, max_tokens=9, reads_prefix_cache=False)
    for _ in range(4):
        driver.step()
    driver.tell(PreemptAll())
    batch = driver.launch()
    assert batch is not None and batch.admissions[0].num_cached_tokens == 0
    assert batch.num_tokens == len(batch.admissions[0].tokens) == 17
    driver.run()
    driver.assert_answered(request)
    driver.assert_empty()


def test_a_long_prompt_is_admitted_past_a_cache_that_has_it() -> None:
    driver = Driver(config(max_num_batched_tokens=8, long_prefill_token_threshold=4, max_num_partial_prefills=1))
    driver.add(PROMPT, max_tokens=2)
    driver.run()
    driver.add(range(20, 33), max_tokens=2)
    request = driver.add(PROMPT, max_tokens=2, reads_prefix_cache=False)
    driver.run()
    assert driver.history.started[request.uid] == 0
    driver.assert_answered()


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_a_reservation_finds_nothing(role: Role) -> None:
    driver = Driver(config(role=role))
    driver.add(PROMPT, max_tokens=1)
    driver.run()
    reservation = driver.reserve(driver.make(PROMPT, max_tokens=1, reads_prefix_cache=False))
    assert reservation is not None and reservation.num_cached_tokens == 0


def test_a_reset_of_the_cache_meanwhile_does_no_harm() -> None:
    driver = Driver(config(max_num_batched_tokens=8))
    request = driver.add(PROMPT, max_tokens=4, reads_prefix_cache=False)
    driver.step()
    driver.ask(ResetPrefixCache)
    driver.run()
    driver.assert_answered(request)
    driver.assert_empty()
