"""Queries: each caller gets exactly one outcome, no caller waits for ever, and what timed out never ran."""

from __future__ import annotations

import gc
import itertools
import math
import queue
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest

from headway.errors import EngineDeadError, QueryError
from headway.managers.query import QueryCell, QueryDesk, checked_timeout
from tests.managers.driving import PATIENCE

SHORT = 0.001  # seconds; for waits that are meant to end by timeout


def outcome_of(ask: Callable[[], Any]) -> tuple[str, Any]:
    """What a caller gets: ("answer", value) or the error's name and text."""
    try:
        return "answer", ask()
    except Exception as error:
        return type(error).__name__, str(error)


def in_thread(act: Callable[[], Any]) -> Callable[[], Any]:
    """Runs it on another thread; calling what this returns waits for its outcome."""
    outcome: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=lambda: outcome.put(outcome_of(act)), daemon=True).start()
    return lambda: outcome.get(timeout=PATIENCE)


# -- the cell: every transition ----------------------------------------------------------------------------------


def test_an_open_cell_is_claimed_once() -> None:
    cell = QueryCell()
    assert cell.claim()
    assert not cell.claim()


@pytest.mark.parametrize("value", [7, None, ("a", "pair"), EngineDeadError("an error that is a value")])
def test_a_claimed_cell_takes_an_answer_and_the_caller_gets_it(value: object) -> None:
    cell = QueryCell()
    assert cell.claim()
    assert cell.answer(value)
    assert cell.wait(SHORT) is value


def test_a_failed_cell_raises_that_very_error() -> None:
    cell, error = QueryCell(), QueryError("asked of a decode instance")
    assert cell.claim()
    assert cell.fail(error)
    with pytest.raises(QueryError, match="asked of a decode instance") as raised:
        cell.wait(SHORT)
    assert raised.value is error


def test_a_waiting_caller_is_woken_by_the_answer() -> None:
    cell = QueryCell()
    caller = in_thread(lambda: cell.wait(PATIENCE))
    assert cell.claim()
    cell.answer("here")
    assert caller() == ("answer", "here")


def test_a_caller_whose_time_runs_out_closes_the_cell_and_the_query_never_runs() -> None:
    cell = QueryCell()
    with pytest.raises(TimeoutError, match=r"not answered within 0\.001 s and will not be carried out"):
        cell.wait(SHORT)
    assert not cell.claim()
    assert not cell.answer("this is not heard")


def test_a_caller_whose_time_runs_out_after_the_claim_waits_for_the_answer() -> None:
    cell = QueryCell()
    cell._bell = bell = BellWithoutClock()  # type: ignore[assignment]
    assert cell.claim()
    bell.on_endless_wait = lambda: cell.answer("late, but it ran")
    assert cell.wait(SHORT) == "late, but it ran"
    assert bell.timeouts == [SHORT]


def test_an_open_cell_that_is_failed_can_no_longer_be_claimed() -> None:
    cell = QueryCell()
    assert cell.fail(EngineDeadError("the device is gone"))
    assert not cell.claim()
    assert outcome_of(lambda: cell.wait(SHORT)) == ("EngineDeadError", "the device is gone")


SETTERS: dict[str, Callable[[QueryCell], bool]] = {
    "answer": lambda cell: cell.answer("first"),
    "fail": lambda cell: cell.fail(EngineDeadError("first")),
}
LATER: dict[str, Callable[[QueryCell], bool]] = {
    "answer": lambda cell: cell.answer("second"),
    "fail": lambda cell: cell.fail(EngineDeadError("second")),
}


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize("first", SETTERS)
@pytest.mark.parametrize("second", LATER)
def test_the_first_outcome_counts_and_a_second_one_is_ignored(first: str, second: str, claimed: bool) -> None:
    cell = QueryCell()
    if claimed:
        assert cell.claim()
    assert SETTERS[first](cell)
    assert not LATER[second](cell)
    assert outcome_of(lambda: cell.wait(SHORT))[1] == "first"
    assert not LATER[second](cell)


def test_waiting_a_second_time_is_an_error_and_not_an_endless_wait() -> None:
    answered, failed, timed_out = QueryCell(), QueryCell(), QueryCell()
    answered.answer(1)
    failed.fail(QueryError("no"))
    for cell, outcome in ((answered, 1), (failed, "no")):
        assert outcome_of(lambda cell=cell: cell.wait(SHORT))[1] == outcome  # type: ignore[misc]
    with pytest.raises(TimeoutError):
        timed_out.wait(SHORT)
    for cell in (answered, failed, timed_out):
        with pytest.raises(QueryError, match="waited for once"):
            cell.wait(SHORT)


def test_an_error_is_not_kept_alive_by_having_been_raised() -> None:
    """Its traceback leads to what the caller held; that must not wait for a garbage collection."""
    cell, error = QueryCell(), QueryError("no")
    gone = weakref.ref(error)
    cell.fail(error)
    del error
    gc.disable()
    try:
        with pytest.raises(QueryError) as raised:
            cell.wait(SHORT)
        del raised
        assert gone() is None
    finally:
        gc.enable()


# -- a wait has an end -------------------------------------------------------------------------------------------

ENDLESS = [0, -1, 0.0, -0.5, math.nan, math.inf, -math.inf, 1e300, True, None, "1", [1]]


@pytest.mark.parametrize("timeout", ENDLESS, ids=repr)
def test_an_endless_wait_cannot_be_asked_for(timeout: Any) -> None:
    cell = QueryCell()
    with pytest.raises(ValueError, match="above 0 and at most") as raised:
        cell.wait(timeout)
    assert repr(timeout) in str(raised.value)
    cell.answer("still waiting to be fetched")  # nothing was closed by asking badly
    assert cell.wait(SHORT) == "still waiting to be fetched"


@pytest.mark.parametrize("timeout", [1, 0.5, 1e-9, threading.TIMEOUT_MAX])
def test_any_other_number_of_seconds_will_do(timeout: float) -> None:
    cell = QueryCell()
    cell.answer("here")
    assert checked_timeout(timeout) == timeout
    assert cell.wait(timeout) == "here"


# -- claim, answer and shutdown at every moment of a wait --------------------------------------------------------

MOMENTS = ("before", "time is up", "closed by the caller", "waits for a claimed one", "after")


class BellWithoutClock:
    """A wait with a limit finds a ring there, or its time is up at once; one without must not be for ever."""

    def __init__(self) -> None:
        self._rings: deque[None] = deque()
        self.timeouts: list[float] = []
        self.on_time_up: Callable[[], Any] = lambda: None
        self.on_endless_wait: Callable[[], Any] = lambda: None

    def put(self, ring: None) -> None:
        self._rings.append(ring)

    def silent(self) -> bool:
        return not self._rings

    def get(self, timeout: float | None = None) -> None:
        if timeout is None:
            self.on_endless_wait()
            assert self._rings, "the caller would wait for ever"
        elif not self._rings:
            self.timeouts.append(timeout)
            self.on_time_up()
            raise queue.Empty
        self._rings.popleft()


class Watched(QueryCell):
    """Lets others in at every moment of a wait."""

    def __init__(self, at: Callable[[str], None]) -> None:
        super().__init__()
        self._at = at
        self.closers = 0
        self.bell = BellWithoutClock()
        self.bell.on_time_up = lambda: at("time is up")
        self.bell.on_endless_wait = lambda: at("waits for a claimed one")
        self._bell = self.bell  # type: ignore[assignment]

    def answer(self, value: Any) -> bool:
        is_first = super().answer(value)
        self.closers += is_first
        return is_first

    def fail(self, error: Exception) -> bool:
        if isinstance(error, TimeoutError):
            self._at("closed by the caller")
        is_first = super().fail(error)
        self.closers += is_first
        return is_first


Schedule = tuple[tuple[str, str], ...]  # pairs of a moment and a step

TIMED_OUT, DEAD, ANSWER = "TimeoutError", "EngineDeadError", "answer"
ORDERS = {  # of steps, and what a caller can get from them
    ("act", "answer"): {TIMED_OUT, ANSWER},
    ("close",): {TIMED_OUT, DEAD},
    ("close", "act", "answer"): {TIMED_OUT, DEAD},
    ("act", "close", "answer"): {TIMED_OUT, DEAD},
    ("act", "answer", "close"): {TIMED_OUT, DEAD, ANSWER},
}


def schedules(steps: tuple[str, ...]) -> list[Schedule]:
    """Every way to spread steps, in this order, over the moments of a wait."""
    spread = itertools.combinations_with_replacement(MOMENTS, len(steps))
    return [tuple(zip(moments, steps, strict=True)) for moments in spread]


def play(schedule: Schedule) -> tuple[str, Any, list[str], Watched]:
    """One wait, and what happens when. Returns what the caller got, what ran, and the cell.

    act: the writer claims, and if it may, acts. answer: it answers what it did. close: shutdown fails the cell.
    """
    todo = deque(schedule)
    ran: list[str] = []

    def at(moment: str) -> None:
        now = MOMENTS.index(moment)
        lasts = moment == "waits for a claimed one"  # until the bell rings
        while todo and (MOMENTS.index(todo[0][0]) <= now or (lasts and cell.bell.silent())):
            match todo.popleft()[1]:
                case "act" if cell.claim():
                    ran.append("slot 3")
                case "answer" if ran:
                    cell.answer(ran[0])
                case "close":
                    cell.fail(EngineDeadError("shut down"))

    cell = Watched(at)
    at("before")
    kind, what = outcome_of(lambda: cell.wait(SHORT))
    at("after")
    assert not todo
    return kind, what, ran, cell


@pytest.mark.parametrize("order", ORDERS, ids=", then ".join)
def test_whatever_comes_when_the_caller_gets_one_outcome_and_it_is_true(order: tuple[str, ...]) -> None:
    seen = set()
    for schedule in schedules(order):
        kind, what, ran, cell = play(schedule)
        seen.add(kind)
        assert cell.closers == 1, schedule
        assert not cell.claim(), schedule
        if kind == ANSWER:
            assert ran == [what], schedule
        if kind == TIMED_OUT:
            assert not ran, schedule
    assert seen == ORDERS[order]


def test_a_writer_that_dies_between_claim_and_answer_leaves_no_caller_waiting() -> None:
    desk = QueryDesk()
    reply, cell = desk.open()
    cell._bell = bell = BellWithoutClock()  # type: ignore[assignment]
    claimed = desk.take(reply)
    assert claimed is not None
    assert claimed.claim()
    bell.on_endless_wait = lambda: desk.close("the writer died")
    assert outcome_of(lambda: cell.wait(SHORT)) == ("EngineDeadError", "the writer died")


# -- immediate and deferred queries ------------------------------------------------------------------------------


def serve(desk: QueryDesk, reply: int, act: Callable[[], Any]) -> None:
    """The writer's side, as the module describes it."""
    cell = desk.take(reply)
    if cell is not None and cell.claim():
        try:
            cell.answer(act())
        except QueryError as error:
            cell.fail(error)


def test_an_immediate_query_acts_once_it_is_claimed() -> None:
    desk, ran = QueryDesk(), []
    reply, cell = desk.open()
    serve(desk, reply, lambda: ran.append("ran"))
    assert cell.wait(SHORT) is None
    assert ran == ["ran"]


def test_a_query_whose_check_refuses_reaches_the_caller_as_that_error() -> None:
    desk = QueryDesk()

    def refuse() -> None:
        raise QueryError("this instance is no prefill instance")

    reply, cell = desk.open()
    serve(desk, reply, refuse)
    assert outcome_of(lambda: cell.wait(SHORT)) == ("QueryError", "this instance is no prefill instance")


def test_a_deferred_query_can_be_left_while_it_is_noted_and_then_never_runs() -> None:
    desk, ran = QueryDesk(), []
    reply, cell = desk.open()
    noted = [reply]  # its message was applied; its moment is still to come
    with pytest.raises(TimeoutError):
        cell.wait(SHORT)
    for late in noted:
        serve(desk, late, lambda: ran.append("ran"))  # before the caller has forgotten it,
    desk.forget(reply)
    for late in noted:
        serve(desk, late, lambda: ran.append("ran"))  # and after
    assert ran == []


def test_a_deferred_query_is_claimed_and_answered_when_its_moment_comes() -> None:
    desk = QueryDesk()
    reply, cell = desk.open()
    caller = in_thread(lambda: cell.wait(PATIENCE))
    serve(desk, reply, lambda: "nothing is in flight")
    assert caller() == ("answer", "nothing is in flight")


# -- the desk ----------------------------------------------------------------------------------------------------


def test_each_cell_has_a_reply_id_of_its_own_that_is_never_used_again() -> None:
    desk = QueryDesk()
    replies = []
    for _ in range(100):
        reply, cell = desk.open()
        assert desk.take(reply) is cell
        replies.append(reply)
        desk.forget(reply)
    assert len(set(replies)) == 100


def test_a_cell_is_found_until_its_caller_leaves() -> None:
    desk = QueryDesk()
    reply, cell = desk.open()
    other, _ = desk.open()
    assert len(desk) == 2
    assert desk.take(reply) is cell
    assert desk.take(reply) is cell
    desk.forget(reply)
    assert desk.take(reply) is None
    assert len(desk) == 1
    desk.forget(other)
    assert len(desk) == 0


def test_an_unknown_reply_id_has_no_cell() -> None:
    desk = QueryDesk()
    assert desk.take(5) is None
    desk.forget(5)
    reply, _ = desk.open()
    desk.forget(reply)
    desk.forget(reply)
    assert len(desk) == 0


def test_a_result_for_a_caller_that_left_is_not_kept() -> None:
    class Result:
        pass

    desk = QueryDesk()
    reply, cell = desk.open()
    writers = desk.take(reply)
    assert writers is not None
    assert writers.claim()
    desk.forget(reply)
    result = Result()
    gone = weakref.ref(result)
    assert not writers.answer(result), "the writer is told that no caller hears it"
    del result, cell, writers
    assert gone() is None
    assert len(desk) == 0


def test_a_caller_that_leaves_for_another_reason_closes_what_was_open() -> None:
    """Ctrl-C while it waits: the writer may have found the cell just before, but can no longer claim it."""
    desk = QueryDesk()
    reply, _ = desk.open()
    found = desk.take(reply)
    desk.forget(reply)
    assert found is not None
    assert not found.claim()
    assert outcome_of(lambda: found.wait(SHORT)) == ("QueryError", "the caller has left")


# -- closing the desk --------------------------------------------------------------------------------------------


def test_closing_fails_every_cell_open_or_claimed_each_with_an_error_of_its_own() -> None:
    desk = QueryDesk()
    cells = [desk.open()[1] for _ in range(4)]
    assert cells[1].claim()
    assert cells[2].claim()
    assert cells[2].answer("in time")
    desk.close("the device is gone")
    dead = ("EngineDeadError", "the device is gone")
    errors = []
    for cell in (cells[0], cells[1], cells[3]):
        with pytest.raises(EngineDeadError, match="the device is gone") as raised:
            cell.wait(SHORT)
        errors.append(raised.value)
        assert not cell.claim()
    assert len(set(map(id, errors))) == 3
    assert outcome_of(lambda: cells[2].wait(SHORT)) == ("answer", "in time")
    assert outcome_of(desk.open) == dead


def test_a_closed_desk_opens_nothing_keeps_nothing_and_says_why_it_closed_first() -> None:
    desk = QueryDesk()
    reply, cell = desk.open()
    desk.close("the writer died: KeyError(3)")
    desk.close("shut down")
    for _ in range(3):
        assert outcome_of(desk.open) == ("EngineDeadError", "the writer died: KeyError(3)")
    assert outcome_of(lambda: cell.wait(SHORT)) == ("EngineDeadError", "the writer died: KeyError(3)")
    assert len(desk) == 1
    desk.forget(reply)
    assert len(desk) == 0


class Cells(dict[int, QueryCell]):
    """The registry, letting others in around the two steps that opening and closing race in."""

    def __init__(self, moment: str, act: Callable[[], Any]) -> None:
        super().__init__()
        self._moment = moment
        self._act = act

    def _now(self, moment: str) -> None:
        if moment == self._moment:
            self._moment = "done"
            self._act()

    def __setitem__(self, reply: int, cell: QueryCell) -> None:
        self._now("before registering")
        super().__setitem__(reply, cell)
        self._now("after registering")

    def values(self) -> Any:
        self._now("before failing")
        found = list(super().values())
        self._now("after failing")
        return found


@pytest.mark.parametrize("moment", ["before registering", "after registering", "after opening"])
def test_a_desk_closed_at_any_moment_of_opening_leaves_no_cell_unfailed(moment: str) -> None:
    desk = QueryDesk()
    desk._cells = Cells(moment, lambda: desk.close("shut down"))
    opened: list[tuple[int, QueryCell]] = []

    def ask() -> Any:
        opened.append(desk.open())
        if moment == "after opening":
            desk.close("shut down")
        return opened[0][1].wait(SHORT)

    assert outcome_of(ask) == ("EngineDeadError", "shut down")
    assert bool(opened) == (moment == "after opening")
    for reply, _ in opened:
        desk.forget(reply)
    assert len(desk) == 0


@pytest.mark.parametrize("moment", ["before failing", "after failing"])
def test_a_cell_opened_at_any_moment_of_closing_is_refused_or_failed(moment: str) -> None:
    desk = QueryDesk()
    outcomes = []

    def ask() -> None:
        outcomes.append(outcome_of(lambda: desk.open()[1].wait(SHORT)))

    desk._cells = Cells(moment, ask)
    desk.close("shut down")
    assert outcomes == [("EngineDeadError", "shut down")]
    assert len(desk) == 0


# -- the writer does not ask itself ------------------------------------------------------------------------------


def test_the_writer_cannot_ask_itself_but_every_other_thread_can() -> None:
    desk = QueryDesk()
    assert desk.writer is None
    desk.open()  # no thread serves yet
    desk.serve_here()
    assert desk.writer == threading.get_ident()
    with pytest.raises(QueryError, match="asked from the thread that has to answer"):
        desk.open()
    assert len(desk) == 1
    assert in_thread(lambda: desk.open()[0])() == ("answer", 2)


def test_once_closed_the_writers_thread_is_told_that_too() -> None:
    """A thread that comes after it may have got its ident."""
    desk = QueryDesk()
    desk.serve_here()
    desk.close("shut down")
    assert outcome_of(desk.open) == ("EngineDeadError", "shut down")


# -- what decides is one step, and the steps are in this order ---------------------------------------------------


class Permit(deque[None]):
    """A permit with rivals as quick as can be: one takes it right after every look at it."""

    def __init__(self) -> None:
        super().__init__([None])
        self.rivals = 0

    def __len__(self) -> int:
        found = super().__len__()
        if found:
            super().pop()
            self.rivals += 1
        return found


class Outcome(dict[str, Any]):
    """A caller's outcome with rivals as quick as can be: one sets it right after every look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.rivals = 0
        self.before_set: Callable[[], Any] = lambda: None
        self.after_set: Callable[[], Any] = lambda: None

    def __len__(self) -> int:
        found = super().__len__()
        if not found:
            super().setdefault("outcome", ("a rival's", None))
            self.rivals += 1
        return found

    def __contains__(self, key: object) -> bool:
        return bool(len(self))

    def get(self, key: str, default: Any = None) -> Any:
        return default if not len(self) else super().get(key)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self.before_set()
        kept = super().setdefault(key, default)
        self.after_set()
        return kept


def test_the_permit_is_taken_without_a_look_that_a_rival_could_come_behind() -> None:
    cell = QueryCell()
    cell._permit = permit = Permit()
    assert cell.claim() + permit.rivals == 1
    assert not cell.claim()


@pytest.mark.parametrize("close", SETTERS)
def test_the_outcome_is_set_without_a_look_that_a_rival_could_come_behind(close: str) -> None:
    cell = QueryCell()
    cell._outcome = outcome = Outcome()
    assert SETTERS[close](cell) + outcome.rivals == 1


@pytest.mark.parametrize("close", SETTERS)
def test_nothing_can_be_claimed_when_the_outcome_is_set(close: str) -> None:
    cell, claimed = QueryCell(), []
    cell._outcome = outcome = Outcome()
    outcome.before_set = lambda: claimed.append(cell.claim())
    assert SETTERS[close](cell)
    assert claimed == [False]


@pytest.mark.parametrize("close", SETTERS)
def test_a_thread_that_dies_between_outcome_and_bell_leaves_no_caller_waiting(close: str) -> None:
    """Its outcome is set and counts; the thread that closes the desk wakes the caller."""
    desk = QueryDesk()
    _, cell = desk.open()
    cell._outcome = outcome = Outcome()
    cell._bell = bell = BellWithoutClock()  # type: ignore[assignment]

    def die() -> None:
        raise KeyboardInterrupt

    def writer() -> None:
        outcome.after_set = die
        with pytest.raises(KeyboardInterrupt):
            SETTERS[close](cell)
        assert bell.silent()
        outcome.after_set = lambda: None

    assert cell.claim()
    bell.on_time_up = writer
    bell.on_endless_wait = lambda: desk.close("the writer died")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outcome, "__len__", dict.__len__)  # no rivals here
        assert outcome_of(lambda: cell.wait(SHORT))[1] == "first"


# -- real threads ------------------------------------------------------------------------------------------------


def all_at_once(acts: list[Callable[[], bool]]) -> list[bool]:
    """Runs each on a thread of its own, started together."""
    barrier = threading.Barrier(len(acts))
    results: list[bool | None] = [None] * len(acts)

    def run(which: int) -> None:
        barrier.wait(PATIENCE)
        results[which] = acts[which]()

    threads = [threading.Thread(target=run, args=(which,), daemon=True) for which in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert None not in results
    return [bool(result) for result in results]


@pytest.mark.usefixtures("eager_switching")
def test_of_many_that_claim_or_set_an_outcome_exactly_one_wins() -> None:
    for _ in range(100):
        cell = QueryCell()
        assert sum(all_at_once([cell.claim] * 4)) == 1
        acts: list[Callable[[], bool]] = [
            lambda cell=cell: cell.answer("answer"),  # type: ignore[misc]
            lambda cell=cell: cell.fail(EngineDeadError("shut down")),  # type: ignore[misc]
        ]
        answered, failed = all_at_once(acts)
        assert answered != failed
        kind, _ = outcome_of(lambda cell=cell: cell.wait(SHORT))  # type: ignore[misc]
        assert kind == (ANSWER if answered else DEAD)


@pytest.mark.usefixtures("eager_switching")
@pytest.mark.parametrize("dies", [False, True], ids=["shut down", "dies holding a claim"])
def test_under_load_every_caller_gets_one_true_outcome(dies: bool) -> None:
    """Callers with hardly any time, a writer that answers some at once and some later, and an end in the middle."""
    num_callers, num_each = 6, 150
    desk = QueryDesk()
    mailbox: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
    outcomes: dict[tuple[int, int], tuple[str, Any]] = {}
    ran: Counter[int] = Counter()
    told: set[int] = set()

    def ask(timeout: float, fatal: bool) -> int:
        reply, cell = desk.open()
        try:
            mailbox.put((reply, fatal))
            assert cell.wait(timeout) == reply
            return reply
        except TimeoutError as error:
            raise TimeoutError(reply) from error
        finally:
            desk.forget(reply)

    def call(who: int) -> None:
        for number in range(num_each):
            ends = (who, number) == (0, num_each // 2)
            timeout = PATIENCE if ends else 10.0 ** -(2 + (who + number) % 5)
            if ends and not dies:
                desk.close("shut down")
            outcomes[who, number] = outcome_of(lambda: ask(timeout, fatal=ends))  # noqa: B023 - called at once

    def write() -> None:
        desk.serve_here()
        noted: deque[int] = deque()
        while True:
            reply, fatal = mailbox.get()
            if reply == 0:
                return
            if not fatal and reply % 3 == 0:  # deferred: its moment is when four more have been noted
                noted.append(reply)
                reply = noted.popleft() if len(noted) > 4 else 0
            cell = desk.take(reply)
            if cell is not None and cell.claim():
                ran[reply] += 1
                if fatal:
                    desk.close("the writer died")
                    return
                if cell.answer(reply):
                    told.add(reply)

    writer = threading.Thread(target=write, daemon=True)
    callers = [threading.Thread(target=call, args=(who,), daemon=True) for who in range(num_callers)]
    for thread in (writer, *callers):
        thread.start()
    for caller in callers:
        caller.join(PATIENCE)
        assert not caller.is_alive(), "a caller waits for ever"
    mailbox.put((0, False))
    writer.join(PATIENCE)

    assert len(outcomes) == num_callers * num_each
    kinds = Counter(kind for kind, _ in outcomes.values())
    assert set(kinds) <= {"answer", "TimeoutError", "EngineDeadError"}, kinds
    assert outcomes[0, num_each // 2] == ("EngineDeadError", "the writer died" if dies else "shut down")
    answered = {value for kind, value in outcomes.values() if kind == "answer"}
    timed_out = {int(value) for kind, value in outcomes.values() if kind == "TimeoutError"}
    assert not timed_out & ran.keys(), "a query that timed out ran"
    assert answered == told, "what was told is what was heard"
    assert told <= ran.keys()
    assert set(ran.values()) <= {1}
    assert len(desk) == 0
