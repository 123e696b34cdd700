"""Requests whose answer has a form wait for their grammar as PREPARING, and end as all requests do meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from headway.engine import writer
from headway.errors import RequestError
from headway.executor.grammar import Grammar
from headway.request import FinishReason, Request
from headway.sampling import SamplingParams
from headway.scheduler.batch import Batch
from headway.structured_outputs import StructuredOutputs
from tests.engine.running import Clock, Device, Running
from tests.managers.driving import PATIENCE, assert_nothing_held, make, new_request

FORM = StructuredOutputs(json_object=True)


class Compiler:
    """Compiles when the test lets it, into a grammar or an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.reached, self.let_go = threading.Event(), threading.Event()
        self.error = error
        self.grammar = Grammar(None)  # type: ignore[arg-type]
        self.closed = False

    def compile(self, form: StructuredOutputs) -> Grammar:
        self.reached.set()
        assert self.let_go.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.grammar

    def close(self) -> None:
        self.closed = True


class Seen(Device):
    """Notes the requests that it is told of."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        super().__init__(before_step=self._note)

    def _note(self, batch: Batch) -> None:
        self.requests += [admission.request for admission in batch.admissions]


def engine(compiler: Compiler, **changes: Any) -> Running:
    it = Running(make("v2", has_grammars=True, **changes), Seen(), grammars=compiler)
    it.engine.start()
    return it


def stop(it: Running) -> None:
    it.engine.shutdown()
    assert it.engine.failure() is None
    assert_nothing_held(it.manager)


def test_the_writer_serves_others_meanwhile_and_the_executor_gets_the_grammar() -> None:
    compiler = Compiler()
    it = engine(compiler)
    waits = it.add("form", structured_outputs=FORM)
    assert compiler.reached.wait(PATIENCE)
    it.history.wait_for([it.add("plain")])
    assert waits not in it.history.ends
    compiler.let_go.set()
    it.history.wait_for([waits])
    assert it.history.ends[waits].reason is FinishReason.LENGTH
    assert [request.grammar for request in it.executor.requests] == [None, compiler.grammar]  # type: ignore[attr-defined]
    stop(it)
    assert compiler.closed


@pytest.mark.parametrize(
    ("error", "refused", "message"),
    [
        (RequestError("structured_outputs: position 3"), True, "structured_outputs: position 3"),
        (RuntimeError("the process has ended"), False, "its preparation failed: RuntimeError: the process has ended"),
    ],
)
def test_a_form_without_a_grammar_ends_the_request_with_what_is_wrong(
    error: Exception, refused: bool, message: str
) -> None:
    compiler = Compiler(error)
    compiler.let_go.set()
    it = engine(compiler)
    uid = it.add("form", structured_outputs=FORM)
    it.history.wait_for([uid])
    end = it.history.ends[uid]
    assert (end.reason, end.error, end.refused) == (FinishReason.ERROR, message, refused)
    stop(it)


def test_an_abort_while_its_grammar_is_compiled_ends_a_request_at_once() -> None:
    compiler = Compiler()
    it = engine(compiler)
    uid = it.add("form", structured_outputs=FORM)
    assert compiler.reached.wait(PATIENCE)
    it.manager.abort([uid])
    it.history.wait_for([uid])
    assert it.history.ends[uid].reason is FinishReason.ABORT
    compiler.let_go.set()
    it.history.wait_for([it.add("next", structured_outputs=FORM)])
    stop(it)


def test_a_request_does_not_wait_for_its_grammar_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(writer, "time", clock)
    monkeypatch.setattr(writer, "_LONGEST_SLEEP", Clock.LONGEST_SLEEP)
    monkeypatch.setattr("headway.managers.manager.time", clock)
    compiler = Compiler()
    it = engine(compiler, preprocess_timeout=20.0)
    uid = it.add("form", structured_outputs=FORM)
    assert compiler.reached.wait(PATIENCE)
    clock.let_pass(19.0)
    assert uid not in it.history.ends
    clock.let_pass(2.0)
    it.history.wait_for([uid])
    assert "preprocess_timeout" in str(it.history.ends[uid].error)
    compiler.let_go.set()
    stop(it)


def test_an_engine_without_grammars_refuses_a_form_at_the_door() -> None:
    it = Running(make("v2", has_grammars=False), Device())
    with pytest.raises(RequestError, match="structured_outputs are not supported here"):
        it.add("form", structured_outputs=FORM)


def test_a_token_that_ends_the_reasoning_is_one_of_the_vocabulary() -> None:
    it = Running(make("v2"), Device())
    with pytest.raises(RequestError, match="starts_after"):
        it.add("form", structured_outputs=StructuredOutputs(regex="a", starts_after=(10**6,)))


def test_nothing_is_reserved_for_a_request_with_a_form() -> None:
    manager = make("v2", role="decode")
    made = manager.door.make_request(new_request("a", [1, 2], SamplingParams(structured_outputs=FORM)))
    with pytest.raises(RequestError, match="has to be prepared first"):
        manager.reserve_decode(made, timeout=1.0)
