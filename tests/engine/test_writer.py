"""The writer loop: it keeps the device busy, and survives failing, hanging and lying devices, and broken invariants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headway.config import Role
from headway.engine import writer
from headway.errors import EngineDeadError
from headway.executor.base import OnDone
from headway.kvcache.pool import OwnershipError
from headway.request import FinishReason
from headway.scheduler import AbortRequests, AddRequest, Batch, Effects, StepResult
from tests.engine.running import Clock, Device, Hang, Running, eventually, running
from tests.managers.driving import PATIENCE, answer_to, assert_nothing_held, every_manager, prompt_of


@pytest.fixture(params=[1, 2])
def depth(request: pytest.FixtureRequest) -> int:
    """How many steps the device has at most: 1 without, 2 with async_scheduling."""
    return int(request.param)


@pytest.fixture
def hang() -> Iterator[Hang]:
    """A device that does not answer its first step; let go in the end, so that its thread ends."""
    hang = Hang()
    yield hang
    hang.let_go.set()


# -- ordinary life -----------------------------------------------------------------------------------------------


@every_manager
def test_many_requests_get_their_answers(name: str, depth: int) -> None:
    with running(name, depth=depth, max_num_seqs=8) as it:
        prompts = {it.add(f"r{i}", prompt_of(i, 1 + i % 50), max_tokens=1 + i % 9): i for i in range(60)}
        it.history.wait_for(prompts)
        for uid, i in prompts.items():
            assert it.history.tokens[uid] == answer_to(prompt_of(i, 1 + i % 50), 1 + i % 9)
            assert it.history.ends[uid].reason is FinishReason.LENGTH
        assert set(it.history.started) == set(prompts)
        assert it.engine.failure() is None
    assert_nothing_held(it.manager)


@pytest.mark.parametrize("takes", [1, 2])
def test_never_more_steps_are_on_the_device_than_it_takes_and_as_many_as_are_wanted(
    name: str, depth: int, takes: int
) -> None:
    on_device = most = 0
    lock = threading.Lock()

    class Counting(Device):
        max_in_flight = takes

        def launch(self, batch: Batch) -> None:
            nonlocal on_device, most
            with lock:
                on_device += 1
                most = max(most, on_device)
            super().launch(batch)

        def start(self, on_done: OnDone) -> None:
            def done(result: StepResult) -> None:
                nonlocal on_device
                with lock:
                    on_device -= 1
                on_done(result)

            super().start(done)

    with running(name, Counting(base_s=0.001), depth=depth) as it:
        it.history.wait_for([it.add(f"r{i}", max_tokens=20) for i in range(8)])
    assert most == min(takes, depth)


def test_the_next_step_is_launched_before_the_result_of_the_one_that_runs(name: str, hang: Hang) -> None:
    launched: list[int] = []

    class Watched(Device):
        def launch(self, batch: Batch) -> None:
            launched.append(batch.step_id)
            super().launch(batch)

    with running(name, Watched(before_step=hang)) as it:
        uid = it.add("a", max_tokens=9)
        assert hang.reached.wait(PATIENCE)
        assert eventually(lambda: launched == [1, 2])
        assert uid not in it.history.tokens
        hang.let_go.set()
        it.history.wait_for([uid])
        assert it.history.tokens[uid] == answer_to((1, 2, 3), 9)
        assert launched == list(range(1, 10)), "none for the request that had all its tokens coming"


def test_effects_are_told_on_the_writers_thread_alone(name: str) -> None:
    with running(name, Device(base_s=0.001)) as it:
        uids = [it.add(f"r{i}", max_tokens=9) for i in range(6)]
        it.manager.abort(uids[:2])
        it.manager.finish(uids[2:4])
        it.history.wait_for(uids)
        assert it.history.threads == {"headway-writer"}


def test_an_idle_writer_is_woken_by_a_request(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_LONGEST_SLEEP", 10 * PATIENCE)
    with running(name) as it:
        for i in range(5):
            it.history.wait_for([it.add(f"r{i}", max_tokens=3)])
            time.sleep(0.01)  # it falls asleep again


def test_commands_are_carried_out_while_the_device_computes(name: str, depth: int, hang: Hang) -> None:
    with running(name, Device(before_step=hang), depth=depth) as it:
        running_one = it.add("a", max_tokens=3)
        assert hang.reached.wait(PATIENCE)
        assert eventually(lambda: it.manager.snapshot().num_in_flight == depth)
        waiting_one = it.add("b")
        it.manager.abort([waiting_one])
        it.history.wait_for([waiting_one])
        it.manager.finish([running_one])
        it.history.wait_for([running_one])
        assert it.history.reasons([running_one, waiting_one]) == [FinishReason.STOP, FinishReason.ABORT]
        assert it.manager.snapshot().num_in_flight == depth
        hang.let_go.set()
        assert eventually(lambda: it.manager.snapshot().num_in_flight == 0)
    assert it.history.tokens == {}
    assert_nothing_held(it.manager)


@every_manager
def test_an_engine_in_the_prefill_role_makes_prompt_and_one_token(name: str) -> None:
    with running(name, role=Role.PREFILL, max_num_batched_tokens=16) as it:
        prompts = [prompt_of(i, 10 + 4 * i) for i in range(10)]
        uids = [it.add(f"r{i}", prompt, max_tokens=30) for i, prompt in enumerate(prompts)]
        it.history.wait_for(uids)
        assert [it.history.tokens[uid] for uid in uids] == [answer_to(prompt, 1) for prompt in prompts]
        assert it.manager.snapshot().num_preemptions == 0
    assert_nothing_held(it.manager)


@every_manager
@pytest.mark.parametrize("role, method", [(Role.MIXED, "schedule"), (Role.PREFILL, "prefill_schedule")])
def test_the_role_decides_the_pass(name: str, role: Role, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def spy(cls: Any, method: str) -> None:
        original = getattr(cls, method)
        monkeypatch.setattr(cls, method, lambda self: (called.append(method), original(self))[1])

    with running(name, start=False, role=role) as it:
        spy(type(it.manager), "schedule")
        spy(type(it.manager), "prefill_schedule")
        again = Running(it.manager, Device(), step_timeout=PATIENCE)
        again.engine.start()
        again.history.wait_for([again.add("a", max_tokens=1)])
        again.engine.shutdown()
    assert method in called
    assert called.count("prefill_schedule") == (called.count(method) if role is Role.PREFILL else 0)


# -- a step that fails -------------------------------------------------------------------------------------------


def fail_in(step_id: int) -> Callable[[Batch], None]:
    def before_step(batch: Batch) -> None:
        if batch.step_id == step_id:
            raise RuntimeError("the device coughed")

    return before_step


@pytest.mark.parametrize("step_id", [1, 4])
def test_a_failing_step_ends_its_requests_and_nothing_else(name: str, depth: int, step_id: int) -> None:
    with running(name, Device(before_step=fail_in(step_id)), depth=depth, max_num_seqs=3, start=False) as it:
        prompts = [prompt_of(i, 12) for i in range(7)]
        uids = [it.add(f"r{i}", prompt, max_tokens=9) for i, prompt in enumerate(prompts)]
        it.engine.start()
        it.history.wait_for(uids)
        assert it.history.reasons(uids) == [FinishReason.ERROR] * 3 + [FinishReason.LENGTH] * 4
        for uid, prompt in zip(uids, prompts, strict=True):
            if it.history.ends[uid].reason is FinishReason.ERROR:
                assert it.history.ends[uid].error == "RuntimeError: the device coughed"
                assert it.history.tokens.get(uid, []) == answer_to(prompt, step_id - 1)
            else:
                assert it.history.tokens[uid] == answer_to(prompt, 9)
        assert it.engine.failure() is None
        assert not it.engine.is_stalled()
    assert_nothing_held(it.manager)


def test_who_joins_in_the_step_behind_a_failing_one_is_not_touched(name: str, hang: Hang) -> None:
    """The failing step runs while the next one waits, with the rows of both."""

    def hang_then_fail(batch: Batch) -> None:
        hang(batch)
        fail_in(2)(batch)

    with running(name, Device(before_step=hang_then_fail)) as it:
        old = it.add("old", max_tokens=9)
        assert hang.reached.wait(PATIENCE)
        assert eventually(lambda: it.manager.snapshot().num_in_flight == 2)
        new = it.add("new", (7, 8, 9), max_tokens=9)
        assert eventually(lambda: it.manager.snapshot().num_requests_added == 2)
        hang.let_go.set()
        it.history.wait_for([old, new])
        assert it.history.reasons([old, new]) == [FinishReason.ERROR, FinishReason.LENGTH]
        assert it.history.tokens[old] == answer_to((1, 2, 3), 1)
        assert it.history.tokens[new] == answer_to((7, 8, 9), 9)
    assert_nothing_held(it.manager)


class Stingy(Device):
    """Leaves a token out in its second step."""

    def _run(self, device: Any, batch: Batch) -> StepResult:
        result = super()._run(device, batch)
        return result if batch.step_id != 2 else StepResult(2, result.tokens[:-1])


def test_a_result_with_the_wrong_number_of_tokens_is_a_failed_step(name: str, depth: int) -> None:
    with running(name, Stingy(), depth=depth, max_num_seqs=2, start=False) as it:
        uids = [it.add(f"r{i}") for i in range(4)]
        it.engine.start()
        it.history.wait_for(uids)
        assert it.history.reasons(uids) == [FinishReason.ERROR] * 2 + [FinishReason.LENGTH] * 2
        assert it.history.ends[uids[0]].error == "the device returned 1 tokens for 2 rows"
    assert_nothing_held(it.manager)


class Stammering(Device):
    """Reports each step twice, and steps that never were."""

    def start(self, on_done: OnDone) -> None:
        def stammer(result: StepResult) -> None:
            for answer in (result, result, StepResult(10**6, result.tokens), StepResult(0, result.tokens, error="no")):
                on_done(answer)

        super().start(stammer)


def test_results_that_are_unknown_or_told_twice_are_ignored(name: str, depth: int) -> None:
    with running(name, Stammering(), depth=depth) as it:
        prompts = [prompt_of(i, 5) for i in range(8)]
        uids = [it.add(f"r{i}", prompt, max_tokens=9) for i, prompt in enumerate(prompts)]
        it.history.wait_for(uids)
        assert [it.history.tokens[uid] for uid in uids] == [answer_to(prompt, 9) for prompt in prompts]
    assert_nothing_held(it.manager)


# -- a step that never answers -----------------------------------------------------------------------------------


class LateDevice(Device):
    """Restarts, but the step that hung is reported all the same once it comes back."""

    def restart(self) -> bool:
        assert self._on_done is not None
        self.hung, self._thread = self._thread, None
        self.start(self._on_done)
        return True

    def shutdown(self) -> None:
        if getattr(self, "hung", None) is not None:
            self.hung.stop(timeout=0.0)  # type: ignore[union-attr]
        super().shutdown()


@pytest.mark.parametrize("kind", [Device, LateDevice])
def test_a_hanging_step_is_given_up_and_what_waits_goes_on(
    name: str, kind: type[Device], depth: int, hang: Hang, clock: Clock
) -> None:
    with running(name, kind(before_step=hang), depth=depth, max_num_seqs=2, step_timeout=1.0, start=False) as it:
        prompts = [prompt_of(i, 5) for i in range(5)]
        uids = [it.add(f"r{i}", prompt, max_tokens=9) for i, prompt in enumerate(prompts)]
        it.engine.start()
        assert hang.reached.wait(PATIENCE)
        assert eventually(lambda: it.manager.snapshot().num_in_flight == depth)
        clock.let_pass(0.9)
        assert not it.history.ends
        clock.let_pass(0.2)
        it.history.wait_for(uids)
        hang.let_go.set()  # the late answer changes nothing
        more = it.add("more")
        it.history.wait_for([more])
        assert it.history.reasons(uids) == [FinishReason.ERROR] * 2 + [FinishReason.LENGTH] * 3
        assert it.history.ends[uids[0]].error == "step 1 did not answer within step_timeout (1 s)"
        assert [it.history.tokens.get(uid, []) for uid in uids] == (
            [[]] * 2 + [answer_to(prompt, 9) for prompt in prompts[2:]]
        )
        assert it.engine.failure() is None
    assert_nothing_held(it.manager)


def test_time_in_which_the_writer_itself_was_stopped_does_not_count_against_the_step(
    name: str, depth: int, hang: Hang, clock: Clock
) -> None:
    """SIGSTOP, or a virtual machine that moves: the clock has jumped by the time that the writer looks again."""
    with running(name, Device(before_step=hang), depth=depth, max_num_seqs=2, step_timeout=1.5, start=False) as it:
        uids = [it.add(f"r{i}", max_tokens=9) for i in range(2)]
        it.engine.start()
        assert hang.reached.wait(PATIENCE)
        clock.let_pass(0.9)
        clock.let_pass(40.0)
        clock.let_pass(0.9)
        assert not it.history.ends, "the time of the step began anew"
        hang.let_go.set()
        it.history.wait_for(uids)
        assert it.history.reasons(uids) == [FinishReason.LENGTH] * 2


class Unrestartable(Device):
    """Once it hangs it is lost."""

    def restart(self) -> bool:
        return False


class BreaksOnRestart(Device):
    """Its restart fails in an unforeseen way."""

    def restart(self) -> bool:
        raise RuntimeError("the driver is gone")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Unrestartable, "step 1 did not answer within step_timeout (0.2 s), and the device cannot be restarted"),
        (BreaksOnRestart, "RuntimeError: the driver is gone"),
    ],
    ids=["refuses", "raises"],
)
def test_when_the_device_cannot_be_restarted_the_engine_says_so(
    name: str, kind: type[Device], why: str, depth: int, hang: Hang, clock: Clock
) -> None:
    with running(name, kind(before_step=hang), depth=depth, max_num_seqs=2, step_timeout=0.2, start=False) as it:
        uids = [it.add(f"r{i}") for i in range(5)]
        it.engine.start()
        assert hang.reached.wait(PATIENCE)
        assert eventually(lambda: it.manager.snapshot().num_in_flight == depth)
        clock.let_look()
        clock.now += 0.3
        it.history.wait_for(uids)
        failure = it.engine.failure()
        assert failure is not None and failure.startswith("the engine stopped: ") and why in failure
        assert it.history.reasons(uids) == [FinishReason.ERROR] * 5
        assert {it.history.ends[uid].error for uid in uids} == {failure}
        assert it.engine.is_stalled()
        with pytest.raises(EngineDeadError, match="the engine stopped"):
            it.add("more")
        assert it.manager.door.num_inside == 0
        hang.let_go.set()


def test_a_device_that_was_given_up_gets_no_more_steps(name: str) -> None:
    launched: list[int] = []

    class Watched(Device):
        def launch(self, batch: Batch) -> None:
            launched.append(batch.step_id)
            super().launch(batch)

    with running(name, Watched(), start=False) as it:
        uid = it.add("a")
        writer = it.engine._loop

        def give_up() -> None:
            writer._failure = "the engine stopped: for the test"

        writer._watch = give_up  # type: ignore[method-assign]
        it.engine.start()
        it.history.wait_for([uid])
        assert launched == []
        assert it.history.ends[uid].error == "the engine stopped: for the test"


# -- a broken invariant ------------------------------------------------------------------------------------------


def break_on(it: Running, kind: type) -> None:
    """From now on the core finds itself broken when it gets such a message."""
    apply = it.manager._core.apply

    def broken(message: Any, now: float = 0.0) -> Effects:
        if type(message) is kind:
            raise OwnershipError("block 3 is owned twice")
        return apply(message, now)

    it.manager._core.apply = broken  # type: ignore[method-assign]


def assert_dead(it: Running, uids: list[int], why: str) -> None:
    it.history.wait_for(uids)
    failure = it.engine.failure()
    assert failure == f"the engine stopped: {why}"
    assert set(it.history.ends) == set(uids)
    assert it.engine.is_stalled()
    with pytest.raises(EngineDeadError, match=why):
        it.add("too late")
    assert it.manager.door.num_inside == 0


@pytest.mark.parametrize("kind", [StepResult, AbortRequests, AddRequest])
def test_a_broken_invariant_stops_the_engine_with_a_report(name: str, kind: type, hang: Hang) -> None:
    """Whichever message came upon it. Under a lock that may be a caller's thread: its call raises nothing."""
    with running(name, Device(before_step=hang), max_num_seqs=2) as it:
        uids = [it.add(f"r{i}", max_tokens=9) for i in range(5)]
        assert hang.reached.wait(PATIENCE)
        assert eventually(lambda: it.manager.snapshot().num_requests_added == 5)
        break_on(it, kind)
        if kind is AddRequest:
            uids.append(it.add("one more"))
        elif kind is AbortRequests:
            it.manager.abort([uids[0]])
        hang.let_go.set()
        assert_dead(it, uids, "OwnershipError: block 3 is owned twice")
        assert it.history.reasons(uids) == [FinishReason.ERROR] * len(uids)
        assert {end.error for end in it.history.ends.values()} == {it.engine.failure()}


def test_a_pass_that_raises_stops_the_engine_with_a_report(name: str) -> None:
    with running(name, start=False, depth=1) as it:
        uids = [it.add(f"r{i}", max_tokens=30) for i in range(5)]
        schedule = it.manager._core.schedule

        def third_time_unlucky() -> Any:
            if it.manager._core._state.last_step == 2:
                raise AssertionError("a slot is lost")
            return schedule()

        it.manager._core.schedule = third_time_unlucky  # type: ignore[method-assign]
        it.engine.start()
        assert_dead(it, uids, "AssertionError: a slot is lost")
        assert [len(it.history.tokens[uid]) for uid in uids[:4]] == [2] * 4


def test_an_error_in_what_takes_the_effects_stops_the_engine_too(name: str) -> None:
    """Effects that were not taken cannot be repeated: to go on would leave requests without an end."""
    with running(name, start=False) as it:
        uids = [it.add(f"r{i}", max_tokens=30) for i in range(2)]

        def trips_once(effects: Effects) -> None:
            it.on_effects = it.history.take
            raise OSError("no room in the pipe")

        it.on_effects = trips_once
        it.engine.start()
        assert_dead(it, uids, "OSError: no room in the pipe")


# -- health ------------------------------------------------------------------------------------------------------


def test_an_idle_engine_is_not_stalled(name: str, clock: Clock) -> None:
    with running(name) as it:
        clock.let_pass(3600)
        assert not it.engine.is_stalled()
        it.history.wait_for([it.add("a")])
        clock.let_pass(3600)
        assert not it.engine.is_stalled()


def test_a_long_step_is_no_stall_before_its_timeout(name: str, hang: Hang, clock: Clock) -> None:
    with running(name, Device(before_step=hang), step_timeout=30.0) as it:
        it.add("a")
        assert hang.reached.wait(PATIENCE)
        assert eventually(lambda: it.manager.snapshot().num_in_flight == 2)
        clock.let_pass(29.0)
        assert not it.engine.is_stalled()
        hang.let_go.set()


def test_a_writer_that_is_stuck_is_a_stall_until_it_goes_on(name: str, clock: Clock) -> None:
    reached, go_on = threading.Event(), threading.Event()
    with running(name, step_timeout=30.0) as it:

        def stuck(effects: Effects) -> None:
            reached.set()
            assert go_on.wait(PATIENCE)
            it.history.take(effects)

        it.on_effects = stuck
        uid = it.add("a", max_tokens=30)
        assert reached.wait(PATIENCE)
        assert not it.engine.is_stalled()
        clock.now += 31.0
        assert it.engine.is_stalled()
        clock.now -= 31.0  # else the steps that are out when it goes on would count as given up
        go_on.set()
        it.history.wait_for([uid])
        assert eventually(lambda: not it.engine.is_stalled())
        assert it.engine.failure() is None


def test_work_that_nothing_is_done_about_is_a_stall(name: str, clock: Clock) -> None:
    with running(name) as it:
        it.manager._core.schedule = lambda: None  # type: ignore[method-assign]
        it.add("a")
        assert eventually(lambda: it.manager.snapshot().has_work)
        clock.let_pass(9.0)
        assert not it.engine.is_stalled()
        clock.let_pass(2.0)
        assert it.engine.is_stalled()


def test_requests_before_a_writer_that_was_never_started_are_a_stall(name: str, clock: Clock) -> None:
    with running(name, start=False) as it:
        it.add("a")
        assert not it.engine.is_stalled()
        clock.now += 11.0
        assert it.engine.is_stalled()


def test_an_engine_that_was_stopped_is_not_stalled(name: str, clock: Clock) -> None:
    with running(name) as it:
        it.history.wait_for([it.add("a")])
        it.engine.shutdown()
        clock.now += 3600.0
        assert not it.engine.is_stalled()


def test_having_been_idle_for_long_is_not_held_against_the_engine(name: str, clock: Clock) -> None:
    """Health is asked at the worst moment: work has just come, nothing is launched yet."""
    seen: list[bool] = []
    with running(name, start=False) as it:
        schedule = it.manager._core.schedule

        def asked() -> Any:
            seen.append(it.engine.is_stalled())
            return schedule()

        it.engine.start()
        clock.let_pass(3600)
        it.manager._core.schedule = asked  # type: ignore[method-assign]
        it.history.wait_for([it.add("a", max_tokens=1)])
    assert seen and not any(seen)


@every_manager
def test_a_device_that_is_lost_stops_the_engine_in_the_midst_of_a_step(name: str, hang: Hang) -> None:
    why: list[str] = []

    class Lost(Device):
        def failure(self) -> str | None:
            return why[0] if why else None

    with running(name, Lost(before_step=hang)) as it:
        uids = [it.add(f"r{i}", prompt_of(i, 5)) for i in range(3)]
        assert hang.reached.wait(PATIENCE)
        assert it.engine.failure() is None
        why.append("rank 1 has ended")
        assert_dead(it, uids, "rank 1 has ended")
        hang.let_go.set()
