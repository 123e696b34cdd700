"""Commands: each does what it says, unknown ids disturb no request, and what was handed in is the manager's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from headway.config import Role
from headway.errors import EngineDeadError, RequestError
from headway.managers import Manager
from headway.request import FinishReason, Request, RequestStatus, Span
from headway.sampling import SamplingParams
from headway.scheduler import Reservation
from tests.managers.driving import Driver, answer_to, every_manager, make, make_request, prompt_of

OF_IDS: dict[str, Callable[[Manager, Any], None]] = {
    "finish": lambda manager, ids: manager.finish(ids),
    "abort": lambda manager, ids: manager.abort(ids),
    "publish_output": lambda manager, ids: manager.publish_output(ids),
    "drop_reservations": lambda manager, ids: manager.drop_reservations(ids),
    "start_prefill": lambda manager, ids: manager.start_prefill(ids),
    "start_decode": lambda manager, ids: [manager.start_decode(one, 7) for one in ids],
}
OF_ALL: dict[str, Callable[[Manager], None]] = {
    "preempt_all": lambda manager: manager.preempt_all(),
    "clear": lambda manager: manager.clear(),
    "resume": lambda manager: manager.resume(),
    "hold_admissions": lambda manager: manager.hold_admissions(),
    "lift_hold": lambda manager: manager.lift_hold(),
    "send_done": lambda manager: manager.send_done(1),
    "slot_acknowledged": lambda manager: manager.slot_acknowledged(0, 0),
    "add": lambda manager: manager.add(make_request(manager, "new", [1], SamplingParams())),
}
ENDING = {"finish", "abort"}


def entry_of(driver: Driver, uid: int) -> Any:
    return driver.manager._core._state.entries[uid]


def state_of(driver: Driver) -> tuple[Any, ...]:
    """All that a command could have changed."""
    core = driver.manager._core
    return (
        core.snapshot(),
        core.audit_report(),
        core._state.table.status.tolist(),
        core._state.table.num_computed.tolist(),
    )


# -- what each of them does --------------------------------------------------------------------------------------


@pytest.mark.parametrize("finish", ["finish", "finish"])
def test_finishing_ends_a_request_as_stopped_and_recycles_it_in_the_same_turn(driver: Driver, finish: str) -> None:
    done, other = driver.add("done", max_tokens=50), driver.add("other", prompt_of(1, 9), max_tokens=9)
    for _ in range(3):
        driver.step()
    OF_IDS[finish](driver.manager, ["done"])
    driver.settle()
    assert driver.history.reasons([done]) == [FinishReason.STOP]
    assert driver.history.ends[done].stop_token is None
    report = driver.manager._core.audit_report()
    assert [owner.name for owner in report.owners] == ["other"] and report.ok
    assert driver.manager.num_free_slots() == 3
    driver.run()
    assert driver.history.tokens[other] == answer_to(prompt_of(1, 9), 9)
    driver.assert_empty()


def test_a_finished_request_has_left_what_it_computed_in_the_cache(driver: Driver) -> None:
    """Recycled does not mean forgotten."""
    driver.add("a", prompt_of(1, 17), max_tokens=9)
    driver.step()
    driver.manager.finish("a")
    again = driver.add("b", prompt_of(1, 17), max_tokens=1)
    driver.run()
    assert driver.history.started[again] == 16


@pytest.mark.parametrize("told", [False, True])
def test_output_is_found_by_others_once_the_manager_is_told_to_cache_it(name: str, told: bool) -> None:
    """Whole blocks of 4: 5 tokens of prompt and the first 11 of the answer, whose last one is not computed yet."""
    driver = Driver(make(name, enable_output_caching=False))
    prompt = prompt_of(1, 5)
    first = driver.add("first", prompt, max_tokens=40)
    for _ in range(12):
        driver.step()
    assert len(driver.history.tokens[first]) == 12
    if told:
        driver.manager.publish_output(["first"])
    next_turn = driver.add("next", prompt + driver.history.tokens[first] + [1], max_tokens=1)
    driver.run()
    assert driver.history.started[next_turn] == (16 if told else 4)
    driver.assert_empty()


def test_caching_the_output_of_a_request_that_does_not_decode_changes_nothing(driver: Driver) -> None:
    driver.add("a", max_tokens=9)
    driver.manager.drain()
    before = state_of(driver)
    driver.manager.publish_output("a")
    driver.settle()
    assert state_of(driver) == before


@every_manager
def test_preempting_all_sends_what_runs_back_to_its_place_and_every_answer_stays_the_same(name: str) -> None:
    driver = Driver(make(name, max_num_seqs=2))
    uids = [driver.add(f"r{i}", prompt_of(i, 9), max_tokens=9) for i in range(4)]
    for _ in range(3):
        driver.step()
    driver.manager.preempt_all()
    driver.settle()
    snapshot = driver.manager.snapshot()
    assert (snapshot.num_running, snapshot.num_waiting, snapshot.num_preemptions) == (0, 4, 2)
    assert [entry.uid for entry in driver.manager._core._state.waiting.window()] == uids
    driver.run()
    assert [driver.history.tokens[uid] for uid in uids] == [answer_to(prompt_of(i, 9), 9) for i in range(4)]
    driver.assert_empty()


def test_clearing_ends_what_was_added_before_and_forgets_what_is_cached(driver: Driver) -> None:
    before = [driver.add(f"r{i}", prompt_of(1, 9), max_tokens=9) for i in range(6)]
    driver.step()
    driver.manager.clear()
    after = driver.add("after", prompt_of(1, 9), max_tokens=3)
    driver.run()
    assert driver.history.reasons(before) == [FinishReason.ABORT] * 6
    assert driver.history.started[after] == 0
    assert driver.history.tokens[after] == answer_to(prompt_of(1, 9), 3)
    driver.assert_empty()


def test_additions_that_were_queued_when_all_was_cleared_do_not_reappear(driver: Driver) -> None:
    uids = [driver.add(f"r{i}") for i in range(6)]
    driver.manager.clear()
    driver.manager.clear()
    driver.run()
    assert driver.history.reasons(uids) == [FinishReason.ABORT] * 6
    assert driver.step() is None
    assert not driver.history.tokens
    driver.assert_empty()


# -- P and D -----------------------------------------------------------------------------------------------------


def reserved(name: str, role: Role, **changes: Any) -> tuple[Driver, Request, Reservation]:
    """A driver that holds room for request "a"."""
    driver = Driver(make(name, role=role, **changes))
    manager = driver.manager
    if role is Role.PREFILL:
        driver.next_pass = manager.prefill_schedule
    request = make_request(manager, "a", prompt_of(1, 9), SamplingParams(max_tokens=5))
    ask = manager.reserve_prefill if role is Role.PREFILL else manager.reserve_decode
    reservation = driver.ask(lambda: ask(request))
    assert reservation is not None
    return driver, request, reservation


@every_manager
def test_p_computes_a_reserved_request_when_d_has_agreed_and_ends_it_when_its_kv_is_sent(name: str) -> None:
    driver, request, reservation = reserved(name, Role.PREFILL)
    assert driver.step() is None, "nothing is computed before D has agreed"
    driver.manager.start_prefill(["a"])
    batch = driver.launch()
    assert batch is not None
    effects = driver.manager.update(driver.result(batch))
    (sending,) = effects.sending
    assert sending.blocks.tolist() == reservation.blocks.tolist()
    assert [outputs.tokens.tolist() for outputs in effects.tokens] == [[sending.token]]
    driver.history.take(effects)
    assert not driver.history.ends, "P waits until the KV is sent"
    driver.manager.send_done(request.uid)
    driver.settle()
    assert driver.history.reasons([request.uid]) == [FinishReason.LENGTH]
    driver.assert_empty()


def test_kv_that_cannot_be_sent_ends_its_request_with_the_reason(name: str) -> None:
    driver, request, _ = reserved(name, Role.PREFILL)
    driver.manager.start_prefill("a")
    driver.step()
    driver.manager.send_done(request.uid, "D has gone away")
    driver.settle()
    end = driver.history.ends[request.uid]
    assert (end.reason, end.error) == (FinishReason.ERROR, "the KV was not sent: D has gone away")
    driver.assert_empty()


@every_manager
def test_d_decodes_from_the_token_that_came_with_the_kv(name: str) -> None:
    driver, request, _ = reserved(name, Role.DECODE)
    assert driver.step() is None, "nothing is computed before the KV has come"
    expected = answer_to(prompt_of(1, 9), 5)
    driver.manager.start_decode("a", expected[0])
    driver.run()
    assert driver.history.tokens[request.uid] == expected
    assert driver.history.reasons([request.uid]) == [FinishReason.LENGTH]
    driver.assert_empty()


@pytest.mark.parametrize("token", [-1, 32000, 1.0, "7", None], ids=repr)
def test_a_first_token_that_is_none_is_refused_and_the_reservation_stays(name: str, token: Any) -> None:
    driver, request, _ = reserved(name, Role.DECODE)
    with pytest.raises(RequestError, match=r"the first token is .*; token ids are integers from 0 to 31999"):
        driver.manager.start_decode("a", token)
    driver.settle()
    assert entry_of(driver, request.uid).status is RequestStatus.RESERVED


@every_manager
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_a_reservation_that_is_given_up_ends_its_request_and_holds_nothing(name: str, role: Role) -> None:
    driver, request, _ = reserved(name, role)
    driver.manager.drop_reservations(["a", "a"])
    driver.settle()
    assert driver.history.reasons([request.uid]) == [FinishReason.ABORT]
    assert driver.history.ends[request.uid].error == "the reservation was dropped"
    driver.assert_empty()


@pytest.mark.parametrize("role", [Role.MIXED, Role.PREFILL, Role.DECODE])
def test_what_is_for_reservations_leaves_every_other_request_alone(name: str, role: Role) -> None:
    driver = Driver(make(name, role=role, max_num_seqs=2))
    if role is Role.PREFILL:
        driver.next_pass = driver.manager.prefill_schedule
    uids = [driver.add(f"r{i}", prompt_of(i, 9), max_tokens=4) for i in range(3)]
    driver.step()
    for command in ("drop_reservations", "start_prefill", "start_decode"):
        OF_IDS[command](driver.manager, uids)
    driver.run()
    count = 1 if role is Role.PREFILL else 4
    assert [driver.history.tokens[uid] for uid in uids] == [answer_to(prompt_of(i, 9), count) for i in range(3)]
    driver.assert_empty()


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_a_reservation_is_taken_up_once(name: str, role: Role) -> None:
    driver, request, _ = reserved(name, role)
    driver.manager.start_prefill(["a", "a"])
    for _ in range(2):
        driver.manager.start_decode("a", answer_to(prompt_of(1, 9), 1)[0])
    driver.settle()
    driver.step()
    driver.manager.send_done(request.uid)
    driver.manager.send_done(request.uid)
    driver.run()
    assert list(driver.history.ends) == [request.uid]
    driver.assert_empty()


# -- unknown ids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.MIXED, Role.PREFILL, Role.DECODE])
@pytest.mark.parametrize("command", OF_IDS)
def test_unknown_ids_are_a_no_op_and_a_debug_line_that_names_no_request(
    name: str, role: Role, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Driver(make(name, role=role))
    driver.add("someone", prompt_of(1, 9))
    driver.manager.drain()
    before = state_of(driver)
    with caplog.at_level(logging.DEBUG, logger="headway"):
        OF_IDS[command](driver.manager, ["unknown", 77])
        driver.manager.drain()
    assert state_of(driver) == before
    assert not driver.manager.take_effects()
    lines = [record.getMessage() for record in caplog.records]
    assert lines and all("are not in the engine" in line and len(line) < 100 for line in lines)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert not any("someone" in line or "unknown" in line for line in lines)


@pytest.mark.parametrize("command", OF_IDS)
def test_a_request_that_has_ended_is_unknown(driver: Driver, command: str) -> None:
    uid = driver.add("a")
    driver.run()
    OF_IDS[command](driver.manager, ["a", uid])
    driver.settle()
    assert list(driver.history.ends) == [uid]
    driver.assert_empty()


def test_kv_sent_for_an_unknown_request_is_a_no_op(driver: Driver) -> None:
    uid = driver.add("a")
    driver.manager.send_done(77)
    driver.manager.send_done(uid)
    driver.run()
    assert driver.history.reasons([uid]) == [FinishReason.LENGTH]


@pytest.mark.parametrize("command", sorted(ENDING))
@pytest.mark.parametrize("by", ["request id", "uid", "several"])
def test_one_id_or_several_will_do(driver: Driver, command: str, by: str) -> None:
    """A single id is one id, and not a sequence of letters."""
    uid = driver.add("abc")
    bystander = driver.add("a")
    OF_IDS[command](driver.manager, {"request id": "abc", "uid": uid, "several": ("abc",)}[by])
    driver.settle()
    assert list(driver.history.ends) == [uid]
    driver.run()
    assert driver.history.reasons([bystander]) == [FinishReason.LENGTH]


# -- what was handed in is the manager's own ---------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(ENDING))
def test_a_list_of_ids_that_is_changed_afterwards_is_not_what_was_handed_in(driver: Driver, command: str) -> None:
    meant, other = driver.add("meant"), driver.add("other")
    ids = ["meant"]
    OF_IDS[command](driver.manager, ids)
    ids[:] = ["other"]
    driver.settle()
    assert list(driver.history.ends) == [meant]
    driver.run()
    assert driver.history.reasons([other]) == [FinishReason.LENGTH]


def test_ids_are_read_when_they_are_handed_in(driver: Driver) -> None:
    uid, asked = driver.add("a"), []

    def ids() -> Iterable[str]:
        asked.append("now")
        yield "a"

    driver.manager.abort(ids())
    assert asked == ["now"]
    driver.settle()
    assert driver.history.reasons([uid]) == [FinishReason.ABORT]


def test_a_prompt_its_spans_and_its_bias_may_be_changed_once_the_request_is_made(driver: Driver) -> None:
    manager, prompt, array = driver.manager, [1, 2, 3], np.array([4, 5, 6], np.int32)
    bias, spans, stops = {7: 1.0}, [Span(0, 2, b"digest")], [9]
    first = make_request(
        manager,
        "a",
        prompt,
        SamplingParams(max_tokens=3, logit_bias=bias, stop_token_ids=stops),
        spans=spans,  # type: ignore[arg-type]
    )
    second = make_request(manager, "b", array, SamplingParams(max_tokens=3))
    manager.add(first)
    manager.add(second)
    prompt[0] = array[0] = 99
    bias[7] = 2.0
    spans.append(Span(0, 3, b"other"))
    stops.append(8)
    driver.run()
    assert first.sampling.logit_bias == {7: 1.0} and first.spans == (Span(0, 2, b"digest"),)
    assert first.stop_token_ids == (9,)
    assert driver.history.tokens[first.uid] == answer_to([1, 2, 3], 3)
    assert driver.history.tokens[second.uid] == answer_to([4, 5, 6], 3)
    with pytest.raises(ValueError, match="read-only"):
        first.prompt[0] = 9


def test_what_a_reservation_says_is_the_callers_own(name: str) -> None:
    """Scribbling on it does not reach the scheduler."""
    driver, _, reservation = reserved(name, Role.DECODE)
    reservation.blocks[:] = 0
    expected = answer_to(prompt_of(1, 9), 5)
    driver.manager.start_decode("a", expected[0])
    driver.settle()
    driver.manager._core.audit()
    driver.run()
    driver.assert_empty()


# -- after the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [*OF_IDS, *OF_ALL])
@pytest.mark.parametrize("known", [True, False], ids=["known id", "unknown id"])
def test_a_command_after_the_end_is_told_so(driver: Driver, command: str, known: bool) -> None:
    manager = driver.manager
    uid = driver.add("a")
    driver.settle()
    driver.history.take(manager.close(FinishReason.ERROR, "it broke"))
    with pytest.raises(EngineDeadError, match="it broke"):
        if command in OF_IDS:
            OF_IDS[command](manager, [uid if known else "unknown"])
        else:
            OF_ALL[command](manager)
    assert not manager.take_effects()
    assert list(driver.history.ends) == [uid]
    assert manager.door.num_inside == 0


def test_reads_need_no_life(driver: Driver) -> None:
    driver.add("a")
    driver.manager.close(FinishReason.ABORT)
    assert driver.manager.num_free_slots() == 4
    assert driver.manager.info()["num_inside"] == 0
    assert driver.manager.snapshot().num_slots_spanned == 0
    driver.manager.wake()
