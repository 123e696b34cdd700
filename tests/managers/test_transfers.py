"""Managers: requests that pull or lend the KV of their prompt, and the words of connectors and of other engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headway.config import Role
from headway.errors import EngineDeadError, RequestError
from headway.managers import Manager
from headway.request import FinishReason, Transfer
from headway.sampling import SamplingParams
from headway.scheduler import Effects
from tests.managers.driving import Driver, answer_to, every_manager, make, make_request, prompt_of

PROMPT = prompt_of(1, 9)


def pulling(name: str, **changes: Any) -> tuple[Driver, int]:
    """A request whose pull has just been handed out."""
    driver = Driver(make(name, role=Role.DECODE, **changes))
    uid = add(driver, Transfer.PULL)
    assert driver.launch() is None
    (pull,) = driver.manager.take_effects().pulls
    assert (pull.request.uid, len(pull.blocks), pull.num_cached_tokens) == (uid, 3, 0)
    return driver, uid


def add(driver: Driver, transfer: Transfer, request_id: str = "a", prompt: list[int] = PROMPT) -> int:
    request = make_request(driver.manager, request_id, prompt, SamplingParams(max_tokens=5), transfer=transfer)
    driver.manager.add(request)
    return request.uid


def lent(name: str, **changes: Any) -> tuple[Driver, int, Effects]:
    """A request whose lease has begun, and the effects of that."""
    driver = Driver(make(name, role=Role.PREFILL, **changes))
    driver.next_pass = driver.manager.prefill_schedule
    uid = add(driver, Transfer.LEND)
    batch = driver.launch()
    assert batch is not None
    effects = driver.manager.update(driver.result(batch))
    driver.history.take(effects)
    return driver, uid, effects


@every_manager
def test_a_pull_is_handed_out_once_and_its_request_decodes_from_the_token_of_the_other_engine(name: str) -> None:
    driver, uid = pulling(name)
    assert driver.launch() is None and not driver.manager.take_effects()
    expected = answer_to(PROMPT, 5)
    driver.manager.receive_done(uid, expected[0])
    driver.run()
    assert (driver.history.tokens[uid], driver.history.started) == (expected, {uid: 0})
    driver.assert_empty()


@every_manager
def test_a_prompt_that_does_not_come_is_computed(name: str) -> None:
    driver, uid = pulling(name)
    driver.manager.receive_done(uid, error="the other engine is gone")
    driver.run()
    assert driver.history.tokens[uid] == answer_to(PROMPT, 5)
    driver.assert_empty()


@pytest.mark.parametrize("token", [-1, 32000, 1.0, "7"], ids=repr)
def test_a_first_token_that_is_none_voids_all_that_came_with_it(name: str, token: Any) -> None:
    driver, uid = pulling(name)
    driver.manager.receive_done(uid, token)
    driver.settle()
    batch = driver.launch()
    assert batch is not None and batch.num_tokens == len(PROMPT), "the whole prompt is computed"
    driver.complete(batch)
    driver.run()
    assert driver.history.tokens[uid] == answer_to(PROMPT, 5)
    driver.assert_empty()


def test_a_pull_that_is_not_wanted_any_more_is_stopped_once_and_its_blocks_wait_for_the_connector(name: str) -> None:
    driver, uid = pulling(name)
    driver.manager.abort(uid)
    driver.settle()
    assert driver.history.stopped == [uid] and driver.history.reasons([uid]) == [FinishReason.ABORT]
    assert driver.manager.snapshot().num_blocks_quarantined == 3
    for _ in range(2):
        driver.manager.receive_done(uid, error="stopped")
        driver.settle()
        assert driver.manager.snapshot().num_blocks_quarantined == 0
    assert driver.history.stopped == [uid]
    driver.assert_empty()


@every_manager
def test_a_lease_is_told_of_and_is_consumed_once(name: str) -> None:
    driver, uid, effects = lent(name)
    (lending,) = effects.lending
    token = answer_to(PROMPT, 1)[0]
    assert (lending.uid, lending.num_tokens, lending.token, lending.generation) == (uid, 9, token, 0)
    assert driver.history.reasons([uid]) == [FinishReason.LENGTH] and driver.history.tokens[uid] == [token]
    assert driver.manager.snapshot().num_blocks_lent == 3
    assert driver.ask(lambda: driver.manager.consume_lease(uid, 1)) is False
    assert driver.ask(lambda: driver.manager.consume_lease(uid, 0)) is True
    assert driver.ask(lambda: driver.manager.consume_lease(uid, 0)) is False
    driver.assert_empty()


def test_a_lease_that_is_renewed_lasts_longer(name: str) -> None:
    driver, uid, _ = lent(name)
    driver.settle()
    before = driver.manager.snapshot().next_deadline
    driver.manager.renew_leases([uid, 77])
    driver.settle()
    after = driver.manager.snapshot().next_deadline
    assert before is not None and after is not None and after > before


def test_a_lease_that_is_not_wanted_any_more_ends(name: str) -> None:
    driver, uid, _ = lent(name)
    driver.manager.end_leases(iter([77, uid]))
    driver.settle()
    assert driver.manager.snapshot().num_blocks_lent == 0
    driver.assert_empty()


def test_a_lease_that_is_revoked_is_told_of_once(name: str) -> None:
    driver, uid, _ = lent(name)
    driver.manager.clear()
    driver.manager.drain()
    assert driver.manager.take_effects().revoked == [uid]
    assert driver.manager.take_effects().revoked == []
    assert driver.ask(lambda: driver.manager.consume_lease(uid, 0)) is False
    driver.assert_empty()


@pytest.mark.parametrize(
    "word",
    [
        lambda manager: manager.receive_done(1, 3),
        lambda manager: manager.renew_leases([1]),
        lambda manager: manager.end_leases([1]),
        lambda manager: manager.consume_lease(1, 0),
    ],
)
def test_a_word_after_the_end_is_told_so(name: str, word: Callable[[Manager], object]) -> None:
    manager = make(name)
    manager.close(FinishReason.ABORT, "it is over")
    with pytest.raises(EngineDeadError, match="it is over"):
        word(manager)


@pytest.mark.parametrize("transfer", list(Transfer))
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_nothing_is_reserved_for_a_request_that_pulls_or_lends(role: Role, transfer: Transfer, name: str) -> None:
    mixed = make(name)
    request = make_request(mixed, "a", PROMPT, SamplingParams(), transfer=transfer)
    manager = make(name, role=role)
    ask = manager.reserve_prefill if role is Role.PREFILL else manager.reserve_decode
    with pytest.raises(RequestError, match=f"'a' has transfer='{transfer}'.* nothing is reserved for it"):
        ask(request)
    assert manager.door.num_inside == 0
