"""Where API processes ask for something about the whole engine: nothing waits for anything but its own answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from headway.engine import control_desk
from headway.engine.control_desk import ControlDesk
from headway.errors import EngineDeadError
from headway.scheduler.audit import AuditReport, Owner
from headway.wire import to_client, to_engine
from tests.engine.running import Device, Hang, Running, eventually, running
from tests.managers.driving import PATIENCE

EMPTY = AuditReport((), 0, 0, 0, 0, 0, 0, ())


class Asking:
    """A desk, and what it has answered, by the number of the question."""

    def __init__(self, manager: Any) -> None:
        self.replies: dict[int, to_client.Returned | to_client.Raised] = {}
        self.desk = ControlDesk(manager, self._reply)

    def _reply(self, reply: to_client.Returned | to_client.Raised) -> None:
        assert reply.number not in self.replies, "answered twice"
        self.replies[reply.number] = reply

    def call(self, number: int, call: to_engine.EngineCall) -> None:
        self.desk.take(to_engine.Call(number, call))

    def answer(self, number: int, call: to_engine.EngineCall) -> Any:
        """What comes of it in the end."""
        self.call(number, call)
        assert eventually(lambda: number in self.replies)
        reply = self.replies[number]
        return (reply.kind, reply.message) if isinstance(reply, to_client.Raised) else reply.value


class Odd:
    """A manager of which every call takes a while, or fails."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work

    def audit(self, timeout: float) -> Any:
        return self._work()

    def resume(self) -> None:
        pass


def test_each_question_is_answered(name: str) -> None:
    with running(name) as it:
        asking = Asking(it.manager)
        it.history.wait_for([it.add("a", range(1, 10))])
        assert asking.answer(1, to_engine.IsPaused()) is False
        assert asking.answer(2, to_engine.PauseEngine("abort", False, PATIENCE)) is None
        assert asking.answer(3, to_engine.IsPaused()) is True
        assert asking.answer(4, to_engine.ResetCache(PATIENCE)) >= 2
        assert asking.answer(5, to_engine.ResumeEngine()) is None
        assert asking.answer(6, to_engine.IsPaused()) is False
        report = asking.answer(7, to_engine.AuditEngine(PATIENCE))
        assert report.ok and report.num_blocks_free == 128
        asking.desk.close()


def test_an_audit_does_not_wait_for_a_pause_and_a_resume_ends_one(name: str) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        asking = Asking(it.manager)
        it.add("a")
        assert hang.reached.wait(PATIENCE)
        asking.call(1, to_engine.PauseEngine("preempt", False, PATIENCE))
        assert eventually(lambda: it.manager.door.paused)
        assert asking.answer(2, to_engine.AuditEngine(PATIENCE)).num_requests == 1
        assert asking.answer(3, to_engine.ResumeEngine()) is None
        assert not it.manager.door.paused and 1 not in asking.replies
        hang.let_go.set()
        assert eventually(lambda: 1 in asking.replies)
        asking.desk.close()


def test_an_engine_that_stops_answers_what_was_asked_before(name: str) -> None:
    hang = Hang()
    with running(name, Device(before_step=hang)) as it:
        asking = Asking(it.manager)
        it.add("a")
        assert hang.reached.wait(PATIENCE)
        asking.call(1, to_engine.PauseEngine("preempt", False, PATIENCE))
        assert eventually(lambda: len(it.manager._desk) == 1)
        it.engine.shutdown()
        asking.desk.close(PATIENCE)
        assert asking.replies == {1: to_client.Raised(1, "dead", "the engine is shutting down")}
        assert asking.answer(2, to_engine.ResumeEngine()) == ("dead", "the engine is shutting down")
        hang.let_go.set()


def test_too_many_questions_at_once_are_refused_and_no_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_desk, "MAX_WAITING", 2)
    let_go = threading.Event()
    asking = Asking(Odd(lambda: let_go.wait(PATIENCE) and EMPTY))
    for number in (1, 2, 3):
        asking.call(number, to_engine.AuditEngine(PATIENCE))
    assert asking.replies == {3: to_client.Raised(3, "queue_full", "2 calls are waiting for the engine")}
    assert asking.answer(4, to_engine.ResumeEngine()) is None  # which waits for nothing
    let_go.set()
    asking.desk.close(PATIENCE)
    assert asking.replies.keys() == {1, 2, 3, 4}
    assert asking.answer(5, to_engine.AuditEngine(PATIENCE)) == EMPTY


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("late"), "timeout"),
        (EngineDeadError("over"), "dead"),
        (ValueError("bad"), "value"),
        (ZeroDivisionError("odd"), "internal"),
    ],
    ids=repr,
)
def test_an_error_is_an_answer(error: Exception, kind: str) -> None:
    def fail() -> None:
        raise error

    assert Asking(Odd(fail)).answer(1, to_engine.AuditEngine(1.0)) == (kind, str(error))


def test_a_system_without_threads_left_costs_the_answer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    asking = Asking(Odd(lambda: EMPTY))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert asking.answer(1, to_engine.AuditEngine(1.0)) == ("internal", "can't start new thread")
    assert asking.answer(2, to_engine.AuditEngine(1.0)) == EMPTY
    asking.desk.close()


def test_a_bad_timeout_is_refused_before_anything_happens(name: str) -> None:
    with running(name) as it:
        asking = Asking(it.manager)
        kind, message = asking.answer(1, to_engine.PauseEngine("abort", True, 0.0))
        assert kind == "value" and "timeout" in message
        assert not it.manager.door.paused


def test_the_thread_that_brings_questions_is_not_held_up(name: str) -> None:
    """Not even by an engine that was never started, and so never answers."""
    with running(name, start=False) as it:
        assert isinstance(it, Running)
        asking = Asking(it.manager)
        asking.call(1, to_engine.PauseEngine("abort", True, PATIENCE))
        asking.call(2, to_engine.IsPaused())
        assert 2 in asking.replies


def test_an_audit_names_the_peers_that_the_connector_knows() -> None:
    owners = (Owner("a", "slot", 0, 3, 7), Owner("uid 8", "borrower", None, 2, 8, 1.5), Owner("", "slot", 1, 1))
    report = AuditReport((), 1, 1, 6, 0, 0, 1, owners)
    replies: list[to_client.Returned | to_client.Raised] = []
    desk = ControlDesk(Odd(lambda: report), replies.append, {7: None, 8: "p:1"}.__getitem__)  # type: ignore[arg-type]
    desk.take(to_engine.Call(1, to_engine.AuditEngine(PATIENCE)))
    assert eventually(lambda: replies)
    desk.close()
    assert replies == [
        to_client.Returned(1, replace(report, owners=(owners[0], replace(owners[1], peer="p:1"), owners[2])))
    ]


def test_a_call_whose_caller_has_given_up_is_not_carried_out() -> None:
    """The process was stopped, or had no time: the caller was told that nothing came of it."""
    replies: list[object] = []
    with running("v2") as it:
        desk = ControlDesk(it.manager, replies.append)
        desk.take(to_engine.Call(1, to_engine.PauseEngine("abort", True, 5.0), until=time.monotonic() - 0.1))
        assert eventually(lambda: replies)
        assert not it.manager.door.paused
        desk.close()
    assert replies == [to_client.Raised(1, "timeout", "the call came too late and is not carried out")]
