"""Forks in the road: messages that are sent about each other, in every order that their senders and the mailbox allow.

Each sender's messages keep their order; those of different senders mix in every way, and so does what the loop does
between them. Under the mailbox the loop takes results first. Whatever comes: every request ends exactly once, an answer
is the right one as far as it goes, no request reads foreign KV, and nothing is held at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from headway.config import Role
from headway.managers import manager as manager_module
from headway.request import FinishReason, RequestStatus
from tests.managers.driving import PATIENCE, every_manager
from tests.managers.world import World, orders, world

Op = tuple[str, Callable[[World], Any]]

PROMPT_A, PROMPT_B, PROMPT_C = [11, 12, 13, 14, 15, 16, 17, 18, 19], [21, 22, 23], [11, 12, 13, 14, 15, 16, 17, 18, 31]


def op(name: str, act: Callable[[World], Any]) -> Op:
    return name, act


LAUNCH = op("launch", lambda w: w.launch())
ANSWER = op("answer", lambda w: w.post())
FAIL = op("fail", lambda w: w.post("out of memory"))
DRAIN = op("drain", lambda w: w.drain())
LOSE = op("lose device", lambda w: w.lose_device())

ADD_A = op("add a", lambda w: w.add("a", PROMPT_A))
ADD_C = op("add c", lambda w: w.add("c", PROMPT_C))
ABORT_A = op("abort a", lambda w: w.manager.abort("a"))
FINISH_A = op("finish a", lambda w: w.manager.finish("a"))
DROP_A = op("drop a", lambda w: w.manager.drop_reservations("a"))

CLEAR = op("clear", lambda w: w.manager.clear())
PREEMPT = op("preempt all", lambda w: w.manager.preempt_all())
RESUME = op("resume", lambda w: w.manager.resume())
ABORTING_PAUSE = op("pause: abort", lambda w: w.ask(lambda: w.manager.pause(timeout=PATIENCE)))
KEEPING_PAUSE = op("pause: preempt", lambda w: w.ask(lambda: w.manager.pause("preempt", timeout=PATIENCE)))
KEEPING_CACHE = op(
    "pause: keep cache", lambda w: w.ask(lambda: w.manager.pause("preempt", reset_prefix_cache=False, timeout=PATIENCE))
)

OPERATORS: dict[str, list[Op]] = {
    "clear": [CLEAR],
    "preempt": [PREEMPT],
    "pause, abort": [ABORTING_PAUSE, RESUME],
    "pause, preempt": [KEEPING_PAUSE, RESUME],
    "pause, keep cache": [KEEPING_CACHE, RESUME],
}
KEEPING = {"preempt", "pause, preempt", "pause, keep cache"}


def every_order(
    start: Callable[[], World], *programs: Sequence[Op], then: Callable[[World, list[str]], None] | None = None
) -> None:
    """Carry the programs out in every order, each from a new start, and see that all is well in the end."""
    for order in orders(*programs):
        names = [name for name, _ in order]
        w = start()
        try:
            for _, act in order:
                act(w)
            w.run()
            w.check()
            if then is not None:
                then(w, names)
        except BaseException as error:
            error.add_note(f"in the order {', '.join(names)}")
            raise


def reason_of(w: World, request_id: str = "a") -> FinishReason:
    return w.history.ends[w.uid(request_id)].reason


def status_of(w: World, request_id: str) -> RequestStatus:
    return w.manager._core._state.entries[w.uid(request_id)].status


# -- an end right behind its own addition ------------------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("end", [ABORT_A, FINISH_A], ids=lambda end: end[0])
def test_an_end_behind_its_own_addition_with_a_barrier_anywhere(name: str, operator: str, end: Op) -> None:
    """It never overtakes the addition, and the barrier neither loses it nor brings the request back."""

    def then(w: World, order: list[str]) -> None:
        if "a" not in w.requests:
            assert operator.startswith("pause") and order.index("add a") > 0, "refused, so it was paused"
            return
        assert not w.manager.snapshot().paused
        expected = FinishReason.ABORT if end is ABORT_A else FinishReason.STOP
        if operator in KEEPING:
            assert reason_of(w) is expected
        else:
            assert reason_of(w) in (expected, FinishReason.ABORT)
            cleared = order.index(OPERATORS[operator][0][0])
            if cleared > order.index(end[0]) or cleared < order.index("add a"):
                assert reason_of(w) is expected

    every_order(
        lambda: world(name, max_num_seqs=2), [ADD_A, end], OPERATORS[operator], [LAUNCH, ANSWER, LAUNCH], then=then
    )


def test_an_abort_of_one_and_the_addition_of_the_next_of_the_same_id(name: str) -> None:
    """From one sender: the abort is for the first, whenever the loop looks."""

    def again(w: World) -> None:
        w.drain()  # the id is free when the abort has been applied
        w.requests["first"] = w.requests.pop("a")
        assert w.add("a", PROMPT_B)

    def then(w: World, order: list[str]) -> None:
        assert (reason_of(w, "first"), reason_of(w, "a")) == (FinishReason.ABORT, FinishReason.LENGTH)

    programs = [ADD_A, ABORT_A, op("add a again", again)], [LAUNCH, ANSWER, LAUNCH, ANSWER]
    every_order(lambda: world(name, max_num_seqs=1), *programs, then=then)


# -- a preemption, and what comes behind it ----------------------------------------------------------------------


def two_decoding(name: str, **changes: Any) -> World:
    """a and b decode, and a step of theirs is on the device."""
    w = world(name, **({"max_num_seqs": 2} | changes))
    w.add("a", PROMPT_A, max_tokens=20)
    w.add("b", PROMPT_B, max_tokens=6)
    for _ in range(2):
        w.launch()
        w.post()
    w.launch()
    assert status_of(w, "a") is status_of(w, "b") is RequestStatus.RUNNING_DECODE and w.in_flight
    return w


@every_manager
@pytest.mark.parametrize("operator", sorted(KEEPING))
@pytest.mark.parametrize("end", [ABORT_A, FINISH_A], ids=lambda end: end[0])
def test_an_end_and_a_preemption(name: str, operator: str, end: Op) -> None:
    """Preempted, queued and running again: it ends once, and the other one's answer is whole."""

    def then(w: World, order: list[str]) -> None:
        assert reason_of(w) is (FinishReason.ABORT if end is ABORT_A else FinishReason.STOP)
        assert reason_of(w, "b") is FinishReason.LENGTH

    programs = [end], OPERATORS[operator], [ANSWER, LAUNCH, ANSWER, LAUNCH]
    every_order(lambda: two_decoding(name), *programs, then=then)


@pytest.mark.parametrize("result", [ANSWER, FAIL, LOSE], ids=lambda result: result[0])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_result_and_what_an_operator_does_meanwhile(name: str, result: Op, operator: str) -> None:
    every_order(lambda: two_decoding(name), OPERATORS[operator], [result, LAUNCH, ANSWER], [ADD_C])


# -- a slot that changes hands while a step is out ---------------------------------------------------------------


@pytest.mark.parametrize("result", [ANSWER, FAIL], ids=lambda result: result[0])
@pytest.mark.parametrize("end", [ABORT_A, FINISH_A, PREEMPT, CLEAR], ids=lambda end: end[0])
def test_a_late_result_behind_a_slot_that_has_a_new_owner(name: str, result: Op, end: Op) -> None:
    """One slot, two steps on the device: the token of the first is not the newcomer's, whenever it comes."""

    def start() -> World:
        w = world(name, max_num_seqs=1)
        w.add("a", PROMPT_A, max_tokens=20)
        w.launch()
        w.post()
        w.launch()
        assert w.in_flight
        return w

    def then(w: World, order: list[str]) -> None:
        cleared = end is CLEAR and order.index("clear") > order.index("add c")
        failed = reason_of(w, "c") is FinishReason.ERROR
        assert reason_of(w, "c") is (FinishReason.ABORT if cleared and not failed else reason_of(w, "c"))
        if result is ANSWER and not cleared:
            assert reason_of(w, "c") is FinishReason.LENGTH

    every_order(start, [end], [ADD_C], [LAUNCH, result, LAUNCH, ANSWER, ANSWER], then=then)


@pytest.mark.parametrize("result", [ANSWER, FAIL, LOSE], ids=lambda result: result[0])
@pytest.mark.parametrize(
    "command",
    [
        ABORT_A,
        FINISH_A,
        DROP_A,
        op("cache a", lambda w: w.manager.publish_output("a")),
        op("start a", lambda w: w.manager.start_prefill("a")),
        op("token for a", lambda w: w.manager.start_decode("a", 7)),
        op("sent a", lambda w: w.manager.send_done(w.uid("a"))),
        op("reset cache", lambda w: w.ask(w.manager.reset_prefix_cache)),
        op("audit", lambda w: w.ask(w.manager.audit)),
        op("progress", lambda w: w.ask(lambda: w.manager.progress("a"))),
        op("wait", lambda w: w.ask(lambda: w.manager.await_steps(PATIENCE))),
    ],
    ids=lambda command: command[0],
)
def test_a_result_and_every_command_and_query(name: str, result: Op, command: Op) -> None:
    def then(w: World, order: list[str]) -> None:
        if result is ANSWER:
            assert reason_of(w, "b") is FinishReason.LENGTH
            ends = {ABORT_A: FinishReason.ABORT, FINISH_A: FinishReason.STOP}
            assert reason_of(w) is ends.get(command, FinishReason.LENGTH)
        for one in w.asked:
            assert one.exception() is None

    every_order(lambda: two_decoding(name), [command, command], [result, LAUNCH, ANSWER, LAUNCH], then=then)


# -- preparation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("end", [ABORT_A, FINISH_A, CLEAR, None], ids=lambda end: end[0] if end else "no end")
@pytest.mark.parametrize("operator", ["preempt", "pause, preempt", "pause, abort"])
def test_a_preparation_ends_while_its_request_does(name: str, fails: bool, end: Op | None, operator: str) -> None:
    def start() -> World:
        w = world(name, max_num_seqs=1)
        w.add("a", PROMPT_A, preprocess=b"an image")
        w.add("b", PROMPT_B)
        w.drain()
        assert [request.request_id for request in w.jobs] == ["a"]
        return w

    done = op("prepared", lambda w: w.prepare("no such image" if fails else None))

    def then(w: World, order: list[str]) -> None:
        possible = {FinishReason.ERROR if fails else FinishReason.LENGTH}
        if end is not None:
            possible |= {FinishReason.STOP if end is FINISH_A else FinishReason.ABORT}
        if operator == "pause, abort":
            possible |= {FinishReason.ABORT}
        assert reason_of(w) in possible

    programs = [done], [end] if end is not None else [], OPERATORS[operator], [LAUNCH, ANSWER]
    every_order(start, *programs, then=then)


def test_a_preparation_ends_when_its_time_is_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(manager_module.time, "monotonic", lambda: now[0])

    def start() -> World:
        now[0] = 0.0
        w = world(name)
        w.add("a", PROMPT_A, preprocess=b"an image")
        w.drain()
        return w

    def late(w: World) -> None:
        now[0] += 1e3

    programs = [op("time passes", late)], [op("prepared", lambda w: w.prepare())], [ABORT_A], [DRAIN, LAUNCH, ANSWER]
    every_order(start, *programs)


# -- prefill and decode apart ------------------------------------------------------------------------------------


def on_p(name: str) -> World:
    """a is reserved on P; b waits for blocks or runs."""
    w = world(name, role=Role.PREFILL, max_num_seqs=2, num_blocks=18)
    assert w.reserve("a", PROMPT_A).done() or w.drain() is None
    assert w.asked[0].answer() is not None
    w.add("b", PROMPT_B)
    return w


START_A = op("start a", lambda w: w.manager.start_prefill("a"))
SENT = op("sent", lambda w: w.send())
NOT_SENT = op("not sent", lambda w: w.send(error="D has gone away"))


@pytest.mark.parametrize("end", [ABORT_A, FINISH_A, DROP_A, CLEAR], ids=lambda end: end[0])
@pytest.mark.parametrize("sent", [SENT, NOT_SENT], ids=lambda sent: sent[0])
def test_p_starts_computes_and_sends_while_its_request_is_given_up(name: str, end: Op, sent: Op) -> None:
    """What is being read by the sender is not touched until it says so, even if no request needs it any more."""

    def then(w: World, order: list[str]) -> None:
        dropped = end is DROP_A and order.index("drop a") < order.index("start a")
        if dropped:
            assert w.history.ends[w.uid("a")].error == "the reservation was dropped"
        if end is CLEAR:
            return
        assert reason_of(w, "b") in (FinishReason.LENGTH, FinishReason.ERROR)

    every_order(lambda: on_p(name), [START_A], [end], [LAUNCH, ANSWER, DRAIN, sent, LAUNCH], then=then)


@every_manager
@pytest.mark.parametrize("operator", OPERATORS)
def test_p_sends_while_an_operator_acts(name: str, operator: str) -> None:
    def start() -> World:
        w = on_p(name)
        w.manager.start_prefill("a")
        w.launch()
        w.post()
        w.drain()
        assert "a" in w.sending and status_of(w, "a") is RequestStatus.SENDING
        return w

    newcomer = op("add c", lambda w: w.add("c", list(range(50))))  # takes most of the pool
    every_order(start, [SENT], OPERATORS[operator], [newcomer], [LAUNCH, ANSWER, DRAIN])


def on_d(name: str) -> World:
    """a is reserved on D; b decodes and a step of its is out."""
    w = world(name, role=Role.DECODE, max_num_seqs=2, num_blocks=18)
    w.add("b", PROMPT_B, max_tokens=20)
    w.launch()
    w.post()
    w.drain()
    w.reserve("a", PROMPT_A, max_tokens=6)
    w.drain()
    assert w.asked[0].answer() is not None
    w.launch()
    return w


@pytest.mark.parametrize("end", [ABORT_A, FINISH_A, DROP_A, CLEAR, PREEMPT], ids=lambda end: end[0])
@pytest.mark.parametrize("result", [ANSWER, FAIL], ids=lambda result: result[0])
def test_the_kv_comes_to_d_while_its_request_is_given_up(name: str, end: Op, result: Op) -> None:
    def then(w: World, order: list[str]) -> None:
        if end is DROP_A and order.index("drop a") > order.index("receive a"):
            assert reason_of(w) is FinishReason.LENGTH, "it is no reservation any more"
        if end is PREEMPT and result is ANSWER:
            assert reason_of(w) is reason_of(w, "b") is FinishReason.LENGTH

    receive = op("receive a", lambda w: w.receive("a"))
    every_order(lambda: on_d(name), [receive], [end], [result, LAUNCH, ANSWER, LAUNCH], then=then)


@every_manager
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_kv_comes_to_d_while_an_operator_acts(name: str, operator: str) -> None:
    receive = op("receive a", lambda w: w.receive("a"))
    every_order(lambda: on_d(name), [receive], OPERATORS[operator], [ANSWER, LAUNCH, ANSWER])
