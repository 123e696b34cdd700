"""The writer loop and what moves KV: with a connector, and without one."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from headway.config import Role
from headway.engine.writer import NO_CONNECTOR
from headway.managers import Manager
from headway.request import FinishReason, Request, Transfer
from headway.scheduler import DeviceLost, Effects
from headway.scheduler.effects import Lending, Pull
from tests.engine.running import Clock, eventually, running
from tests.managers.driving import answer_to, assert_nothing_held, prompt_of

PROMPT = prompt_of(1, 9)


class Recording:
    """A connector that writes down what it is told, in order, and does nothing."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.threads: set[str] = set()

    def pull(self, pull: Pull) -> None:
        self._note("pull", pull)

    def stop_pull(self, uid: int) -> None:
        self._note("stop_pull", uid)

    def lending(self, lending: Lending) -> None:
        self._note("lending", lending)

    def revoked(self, uid: int) -> None:
        self._note("revoked", uid)

    def begin_anew(self) -> None:
        self._note("begin_anew", None)

    def pull_from(self, uid: int, params: Any) -> None:
        self.told.append(("pull_from", (uid, params)))

    def handover(self, uid: int) -> dict[str, Any]:
        return {"remote_reference": uid}

    def expect(self, request: Request) -> None: ...

    def want(self, uid: int, params: Any) -> None: ...

    def answered(self, uids: Any) -> None: ...

    def ended(self, uids: Any) -> None: ...

    def close(self) -> None: ...

    def _note(self, name: str, what: Any) -> None:
        self.told.append((name, what))
        self.threads.add(threading.current_thread().name)

    def names(self) -> list[str]:
        return [name for name, _ in self.told]


def test_without_a_connector_a_prompt_that_should_be_pulled_is_computed_here(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[str | None] = []
    receive_done = Manager.receive_done

    def note(self: Manager, uid: int, token: int | None = None, error: str | None = None) -> None:
        errors.append(error)
        receive_done(self, uid, token, error)

    monkeypatch.setattr(Manager, "receive_done", note)
    with running(name, role=Role.DECODE) as it:
        uid = it.add("a", PROMPT, max_tokens=5, transfer=Transfer.PULL)
        it.history.wait_for([uid])
        assert it.history.tokens[uid] == answer_to(PROMPT, 5)
    assert errors == [NO_CONNECTOR]
    assert_nothing_held(it.manager)


def test_without_a_connector_a_lease_ends_as_soon_as_it_has_begun(name: str) -> None:
    with running(name, role=Role.PREFILL) as it:
        uid = it.add("a", PROMPT, transfer=Transfer.LEND)
        it.history.wait_for([uid])
        assert it.history.ends[uid].reason is FinishReason.LENGTH
        assert eventually(lambda: it.manager.snapshot().num_blocks_lent == 0)
    assert_nothing_held(it.manager)


def test_a_connector_gets_each_pull_once_and_its_word_starts_the_request(name: str) -> None:
    connector = Recording()
    with running(name, role=Role.DECODE, connector=connector) as it:
        uid = it.add("a", PROMPT, max_tokens=5, transfer=Transfer.PULL, kv_transfer_params={"from": "p"})
        assert eventually(lambda: connector.told)
        ((what, pull),) = connector.told
        assert (what, pull.request.uid, len(pull.blocks)) == ("pull", uid, 3) and not it.history.sourceless
        expected = answer_to(PROMPT, 5)
        it.manager.receive_done(uid, expected[0])
        it.history.wait_for([uid])
        assert it.history.tokens[uid] == expected
    assert connector.names() == ["pull"] and connector.threads == {"headway-writer"}
    assert_nothing_held(it.manager)


def test_where_a_request_names_no_source_its_caller_is_asked_as_soon_as_it_has_blocks(name: str) -> None:
    connector = Recording()
    with running(name, role=Role.DECODE, connector=connector, max_num_seqs=1) as it:
        uids = [it.add(key, PROMPT, max_tokens=2, transfer=Transfer.PULL) for key in "ab"]
        assert eventually(lambda: it.history.sourceless == uids[:1])
        it.engine.pull_from(uids[0], {"from": "p"})
        assert connector.names() == ["pull", "pull_from"] and connector.told[1][1] == (uids[0], {"from": "p"})
        it.manager.receive_done(uids[0], answer_to(PROMPT, 1)[0])
        it.history.wait_for(uids[:1])
        assert connector.names()[2:] == []  # the prompt is in the cache now: nothing is to be pulled
        it.history.wait_for(uids[1:])
        assert it.history.sourceless == uids[:1]
    assert_nothing_held(it.manager)


def test_after_a_loss_of_the_device_p_is_another_engine_for_d(name: str) -> None:
    """What D has seen of prompts that are still computed counts no more, either."""
    connector = Recording()
    with running(name, role=Role.PREFILL, connector=connector) as it:
        it.manager.post_result(DeviceLost("it was lost"))
        assert eventually(lambda: connector.names() == ["begin_anew"])
    assert connector.threads == {"headway-writer"}


def test_a_connector_is_told_to_stop_and_the_blocks_wait_for_its_word(name: str) -> None:
    connector = Recording()
    with running(name, role=Role.DECODE, connector=connector) as it:
        uid = it.add("a", PROMPT, transfer=Transfer.PULL)
        assert eventually(lambda: connector.told)
        it.manager.abort(uid)
        assert eventually(lambda: connector.names() == ["pull", "stop_pull"])
        assert it.manager.snapshot().num_blocks_quarantined == 3
        it.manager.receive_done(uid, error="stopped")
        assert eventually(lambda: not it.manager.snapshot().num_blocks_quarantined)


def test_a_connector_knows_of_a_lease_before_the_callers_know_of_the_end(name: str) -> None:
    """Whose end is known may be asked for at once, by another engine."""
    connector, known = Recording(), []
    with running(name, role=Role.PREFILL, connector=connector) as it:
        take = it.history.take

        def note(effects: Effects) -> None:
            known.extend(connector.names() for _ in effects.ended)
            take(effects)

        it.on_effects = note
        uid = it.add("a", PROMPT, transfer=Transfer.LEND)
        it.history.wait_for([uid])
        ((_, lending),) = connector.told
        assert (lending.num_tokens, lending.token) == (9, answer_to(PROMPT, 1)[0])
        assert it.manager.consume_lease(uid, lending.generation) is True
        it.manager.clear()
        assert eventually(lambda: len(connector.told) == 2)  # what a shutdown finds unread is not told
    assert known == [["lending"]] and connector.names() == ["lending", "begin_anew"]
    assert_nothing_held(it.manager)


def test_a_connector_hears_of_a_lease_and_then_of_its_end(name: str) -> None:
    connector = Recording()
    with running(name, role=Role.PREFILL, connector=connector, max_lent_blocks=0) as it:
        uid = it.add("a", PROMPT, transfer=Transfer.LEND)
        it.history.wait_for([uid])
        assert eventually(lambda: len(connector.told) == 2)
    assert connector.names() == ["lending", "revoked"] and connector.told[1][1] == uid


def test_a_pull_that_takes_long_is_no_stall(name: str, clock: Clock) -> None:
    connector = Recording()
    with running(name, role=Role.DECODE, connector=connector, receive_timeout=1e6, max_num_seqs=1) as it:
        it.add("a", PROMPT, transfer=Transfer.PULL)
        it.add("waits")
        assert eventually(lambda: connector.told)
        clock.let_pass(100.0)
        assert not it.engine.is_stalled()


def test_blocks_that_a_connector_or_another_engine_holds_are_no_stall_of_the_requests_that_wait(
    name: str, clock: Clock
) -> None:
    connector = Recording()
    with running(name, role=Role.DECODE, connector=connector, num_blocks=18, receive_timeout=1e6) as it:
        uid = it.add("a", prompt_of(1, 50), transfer=Transfer.PULL)
        assert eventually(lambda: connector.told)
        it.manager.abort(uid)
        it.add("waits", prompt_of(2, 40))
        assert eventually(lambda: it.manager.snapshot().num_waiting == 1)
        clock.let_pass(100.0)
        assert not it.engine.is_stalled()
        it.manager.receive_done(uid, error="stopped")
        assert eventually(lambda: not it.manager.door.num_inside)
