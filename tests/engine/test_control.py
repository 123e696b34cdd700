"""What is done to the whole engine: pause, reset, audit; KV that has to go elsewhere; how the writer may end."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from headway.config import Role
from headway.errors import EngineDeadError, EnginePausedError
from headway.request import FinishReason, RequestStatus
from headway.sampling import SamplingParams
from headway.scheduler import Batch, Sending
from tests.engine.running import Clock, Device, Hang, Running, eventually, pause_within_a_step, running
from tests.managers.driving import PATIENCE, answer_to, assert_nothing_held, make_request, prompt_of


def in_thread(work: Any, *args: Any, **kwargs: Any) -> tuple[threading.Thread, list[Any]]:
    """The thread that does it, and a list that gets what it returns or raises."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work(*args, **kwargs))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


# -- pause and resume --------------------------------------------------------------------------------------------


def test_a_pause_ends_what_is_inside_and_refuses_what_comes(name: str) -> None:
    hang = Hang(step_id=5)
    with running(name, Device(before_step=hang)) as it:
        uids = [it.add(f"r{i}", max_tokens=50) for i in range(6)]
        pause_within_a_step(it, hang)
        assert it.manager.door.paused
        assert it.manager.snapshot().num_in_flight == 0
        it.history.wait_for(uids)
        assert {it.history.ends[uid].reason for uid in uids} == {FinishReason.ABORT}
        with pytest.raises(EnginePausedError, match="resumed"):
            it.add("more")
        it.manager.resume()
        assert not it.manager.door.paused
        more = it.add("more")
        it.history.wait_for([more])
        assert it.history.tokens[more] == answer_to([1, 2, 3], 4)
    assert_nothing_held(it.manager)


def test_what_a_pause_keeps_goes_on_after_it(name: str, clock: Clock) -> None:
    launched = 0
    hang = Hang(step_id=5)

    def count(batch: Batch) -> None:
        nonlocal launched
        launched += 1
        hang(batch)

    with running(name, Device(before_step=count)) as it:
        prompts = [prompt_of(i, 9) for i in range(6)]
        uids = [it.add(f"r{i}", prompt, max_tokens=30) for i, prompt in enumerate(prompts)]
        pause_within_a_step(it, hang, "preempt")
        before = launched
        clock.let_pass(3600)
        assert launched == before and it.manager.door.num_inside == 6
        it.manager.resume()
        it.history.wait_for(uids)
        assert [it.history.tokens[uid] for uid in uids] == [answer_to(prompt, 30) for prompt in prompts]
    assert_nothing_held(it.manager)


def test_a_pause_returns_when_nothing_is_on_the_device(name: str) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        uid = it.add("a")
        assert hang.reached.wait(PATIENCE)
        thread, outcome = in_thread(it.manager.pause, timeout=PATIENCE)
        it.history.wait_for([uid])  # no thread inside waits for the device
        with pytest.raises(EnginePausedError):
            it.add("b")
        assert outcome == []
        hang.let_go.set()
        thread.join(PATIENCE)
        assert outcome == [None]
        assert it.manager.snapshot().num_in_flight == 0


def test_a_pause_that_takes_too_long_says_so_and_holds(name: str) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        it.add("a")
        assert hang.reached.wait(PATIENCE)
        with pytest.raises(TimeoutError):
            it.manager.pause(timeout=0.05)
        assert it.manager.door.paused
        hang.let_go.set()
        it.manager.resume()
        it.history.wait_for([it.add("b")])


@pytest.mark.parametrize("reset", [True, False])
def test_a_pause_resets_the_cache_if_it_should(name: str, reset: bool) -> None:
    with running(name) as it:
        it.history.wait_for([it.add("a", prompt_of(1, 40))])
        it.manager.pause(reset_prefix_cache=reset)
        it.manager.resume()
        again = it.add("b", prompt_of(1, 40))
        it.history.wait_for([again])
        assert (it.history.started[again] == 0) == reset


def test_a_mode_that_does_not_exist_is_refused_and_nothing_pauses(name: str) -> None:
    with running(name) as it:
        with pytest.raises(ValueError, match="mode must be one of abort, preempt, got 'wait'"):
            it.manager.pause("wait")  # type: ignore[arg-type]
        assert not it.manager.door.paused


def test_a_paused_engine_stops_at_once(name: str) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        uid = it.add("a", max_tokens=50)
        pause_within_a_step(it, hang, "preempt")
        thread, outcome = in_thread(it.engine.shutdown, grace=10 * PATIENCE)
        thread.join(PATIENCE)
        assert outcome == [None]
        assert it.history.reasons([uid]) == [FinishReason.ABORT]


# -- questions ---------------------------------------------------------------------------------------------------


def test_the_cache_can_be_reset_while_others_run(name: str) -> None:
    hang = Hang(step_id=5)
    with running(name, Device(before_step=hang)) as it:
        it.history.wait_for([it.add("a", prompt_of(1, 16), max_tokens=2)])
        it.add("b", prompt_of(2, 8), max_tokens=9)
        assert hang.reached.wait(PATIENCE)
        cached = it.manager.reset_prefix_cache()
        assert cached >= 4  # the blocks of the first prompt, at 4 tokens each
        assert it.manager.reset_prefix_cache() == 0
        hang.let_go.set()


def test_progress_tells_how_far_a_request_is(name: str) -> None:
    hang = Hang(step_id=3)
    with running(name, Device(before_step=hang)) as it:
        uid = it.add("a", prompt_of(1, 9), max_tokens=20)
        assert hang.reached.wait(PATIENCE)
        for known_as in (uid, "a"):
            progress = it.manager.progress(known_as)
            assert progress is not None
            assert (progress.uid, progress.request_id, progress.status) == (uid, "a", RequestStatus.RUNNING_DECODE)
            assert (progress.num_prompt_tokens, progress.num_output_tokens) == (9, 2)
        assert it.manager.progress("unknown") is None
        hang.let_go.set()


def test_an_audit_names_every_owner_while_a_step_runs(name: str) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        for i in range(2):
            it.add(f"r{i}", prompt_of(i, 9))
        assert hang.reached.wait(PATIENCE)
        assert eventually(lambda: it.manager.snapshot().num_requests_added == 2)
        report = it.manager.audit()
        assert report.ok and report.problems == ()
        assert report.num_requests == 2
        owners = {owner.name: owner for owner in report.owners}
        assert owners["r0"].kind == "slot" and owners["r0"].num_blocks >= 3
        assert report.num_blocks_referenced == sum(owner.num_blocks for owner in report.owners)
        hang.let_go.set()


# -- KV that has to go elsewhere ---------------------------------------------------------------------------------


def prefill(it: Running, request_id: str, prompt: list[int]) -> int:
    """What a router does on P; returns the uid."""
    manager = it.engine.manager
    request = make_request(manager, request_id, prompt, SamplingParams(max_tokens=9))
    assert manager.reserve_prefill(request) is not None
    manager.start_prefill([request_id])
    return request.uid


def test_kv_that_is_ready_goes_to_the_connector_which_says_when_it_is_gone(name: str) -> None:
    sent: list[Sending] = []
    with running(name, role=Role.PREFILL, on_sending=sent.append) as it:
        prompt = prompt_of(1, 10)
        uid = prefill(it, "a", prompt)
        assert eventually(lambda: sent)
        (sending,) = sent
        assert (sending.uid, sending.request_id, sending.num_tokens) == (uid, "a", 10)
        assert sending.token == answer_to(prompt, 1)[0] and len(sending.blocks) == 3
        assert uid not in it.history.ends
        assert it.manager.snapshot().num_sending == 1
        it.engine.manager.send_done(uid)
        it.history.wait_for([uid])
        assert it.history.reasons([uid]) == [FinishReason.LENGTH]
        assert it.history.tokens[uid] == answer_to(prompt, 1)
    assert_nothing_held(it.manager)


def test_without_a_connector_such_a_request_ends_with_an_error(name: str) -> None:
    with running(name, role=Role.PREFILL) as it:
        uid = prefill(it, "a", prompt_of(1, 10))
        it.history.wait_for([uid])
        assert it.history.reasons([uid]) == [FinishReason.ERROR]
        assert "no connector" in str(it.history.ends[uid].error)
        assert it.engine.failure() is None
    assert_nothing_held(it.manager)


# -- who is not stalled ------------------------------------------------------------------------------------------


def test_a_paused_engine_is_not_stalled(name: str, clock: Clock) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        it.add("a", max_tokens=50)
        pause_within_a_step(it, hang, "preempt")
        clock.let_pass(3600)
        assert it.manager.door.num_inside == 1
        assert not it.engine.is_stalled()


def test_an_engine_whose_requests_are_prepared_is_not_stalled(name: str, clock: Clock) -> None:
    let_go = threading.Event()
    with running(name, preprocess=lambda request: let_go.wait(PATIENCE)) as it:  # type: ignore[arg-type, return-value]
        it.add("a", preprocess=b"")
        assert eventually(lambda: it.manager.snapshot().num_preparing)
        clock.let_pass(3600)
        assert it.manager.snapshot().num_preparing == 1
        assert not it.engine.is_stalled()
        let_go.set()


def test_an_engine_whose_room_is_held_for_another_engine_is_not_stalled(name: str, clock: Clock) -> None:
    sent: list[Sending] = []
    with running(name, role=Role.PREFILL, max_num_seqs=1, num_blocks=17, on_sending=sent.append) as it:
        sending = prefill(it, "a", prompt_of(1, 60))
        assert eventually(lambda: sent)
        waiting = it.add("b", prompt_of(2, 60))  # the other one holds the blocks
        clock.let_pass(3600)
        assert it.manager.snapshot().num_waiting == 1
        assert not it.engine.is_stalled()
        it.engine.manager.send_done(sending)
        it.history.wait_for([sending, waiting])


# -- the end of the writer ---------------------------------------------------------------------------------------


def steal_a_block(it: Running) -> None:
    """A block is taken that has no owner: what a bug in the bookkeeping would do."""
    it.manager._core._state.pool.take(1)


def test_a_violation_of_ownership_stops_the_engine_with_a_report_that_names_the_owners(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    hang = Hang(step_id=3)
    with running(name, Device(before_step=hang), start=False, max_num_seqs=2) as it:
        uids = [it.add(f"r{i}", prompt_of(i, 9), max_tokens=20) for i in range(3)]
        it.engine.start()  # now, so that the first step has both slots in it
        assert hang.reached.wait(PATIENCE)
        assert eventually(lambda: it.manager.snapshot().num_requests_added == 3)
        steal_a_block(it)
        with caplog.at_level(logging.CRITICAL, logger="headway.engine.writer"):
            hang.let_go.set()
            it.history.wait_for(uids)
        failure = it.engine.failure()
        assert failure is not None and "\n" not in failure
        assert failure.startswith("the engine stopped: OwnershipError: ")
        for words in ("held by no owner", "request 'r0' (slot 0): ", "request 'r1' (slot 1): "):
            assert words in failure
        assert it.history.reasons(uids) == [FinishReason.ERROR] * 3
        assert {it.history.ends[uid].error for uid in uids} == {failure}
        assert it.engine.is_stalled()
        for ask in (it.manager.audit, it.manager.pause, lambda: it.add("more")):
            with pytest.raises(EngineDeadError, match="OwnershipError"):
                ask()
    (record,) = (record for record in caplog.records if record.name == "headway.engine.writer")
    assert record.exc_info is not None and "request 'r0' (slot 0)" in str(record.exc_info[1])


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit("odd")], ids=repr)
def test_whatever_kills_the_writer_no_caller_waits_for_ever(name: str, error: BaseException) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        uid = it.add("a")
        assert hang.reached.wait(PATIENCE)
        asking, outcome = in_thread(it.engine.manager.await_steps, PATIENCE)
        assert eventually(lambda: len(it.manager._desk) == 1)

        def dies() -> None:
            raise error

        it.manager.drain = dies  # type: ignore[method-assign]
        it.manager.wake()
        asking.join(PATIENCE)
        assert isinstance(outcome[0], EngineDeadError)
        it.history.wait_for([uid])
        assert it.history.reasons([uid]) == [FinishReason.ERROR]
        assert type(error).__name__ in str(it.engine.failure())
        hang.let_go.set()


def test_an_error_whose_words_cannot_be_made_is_fatal_all_the_same(name: str) -> None:
    class Speechless(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    def dies() -> None:
        raise Speechless

    with running(name, start=False) as it:
        uid = it.add("a")
        it.manager.drain = dies  # type: ignore[method-assign]
        unraised, threading.excepthook = threading.excepthook, lambda args: None
        try:
            it.engine.start()
            it.history.wait_for([uid])
        finally:
            threading.excepthook = unraised
        assert it.engine.failure() == "the engine stopped: Speechless"
        assert it.history.reasons([uid]) == [FinishReason.ERROR]


def test_when_even_the_last_effects_find_no_taker_the_engine_is_dead_and_says_so(name: str) -> None:
    with running(name, start=False) as it:
        it.add("a")

        def full(effects: Any) -> None:
            raise OSError("no room in the pipe")

        it.on_effects = full
        it.engine.shutdown()
        assert it.engine.failure() == "the engine stopped: OSError: no room in the pipe"
        assert it.manager.door.num_inside == 0
