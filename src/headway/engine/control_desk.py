"""Carries out calls that concern the whole engine: pause, resume, reset the prefix cache, audit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from headway.managers import Manager
from headway.scheduler.audit import AuditReport
from headway.wire import to_client, to_engine
from headway.wire.refusals import kind_of

logger = logging.getLogger(__name__)

Reply = Callable[[to_client.Returned | to_client.Raised], None]

MAX_WAITING = 16  # the most calls that wait at once; each has its own thread


class ControlDesk:
    """Answers every `Call` once, by `reply`. `reply` is called on several threads, and must not block.

    `take` never waits: a call that has to wait for the writer or for a step gets its own thread. So an audit does not
    wait for a pause, and a resume can follow a pause that still waits. A call whose time is over is not carried out.

    peer_of: HOST:PORT of the engine that the KV of a request comes from or goes to; the core does not know it.
    """

    def __init__(self, manager: Manager, reply: Reply, peer_of: Callable[[int], str | None] = lambda _: None) -> None:
        self._manager = manager
        self._reply = reply
        self._peer_of = peer_of
        self._waiting: set[threading.Thread] = set()

    def take(self, call: to_engine.Call) -> None:
        """Answer a call, now or later. Only one thread calls this."""
        if isinstance(call.call, (to_engine.ResumeEngine, to_engine.IsPaused)):
            self._reply(self._answer(call))
        elif len(self._waiting) >= MAX_WAITING:
            self._reply(to_client.Raised(call.number, "queue_full", f"{MAX_WAITING} calls are waiting for the engine"))
        else:
            thread = threading.Thread(target=self._wait, args=(call,), name="headway-control", daemon=True)
            self._waiting.add(thread)
            try:
                thread.start()
            except RuntimeError as error:  # the system has no thread left; the engine goes on without this call
                self._waiting.discard(thread)
                self._reply(to_client.Raised(call.number, "internal", str(error)))

    def close(self, timeout: float = 1.0) -> None:
        """Wait for the last answers, at most `timeout` seconds. They come at once when the engine has stopped."""
        until = time.monotonic() + timeout
        for thread in list(self._waiting):
            thread.join(max(0.0, until - time.monotonic()))

    def _wait(self, call: to_engine.Call) -> None:
        try:
            self._reply(self._answer(call))
        finally:
            self._waiting.discard(threading.current_thread())

    def _answer(self, call: to_engine.Call) -> to_client.Returned | to_client.Raised:
        if time.monotonic() > call.until:  # this process was stopped, or had no time
            return to_client.Raised(call.number, "timeout", "the call came too late and is not carried out")
        try:
            return to_client.Returned(call.number, self._carry_out(call.call))
        except Exception as error:
            kind = kind_of(error)
            if kind == "internal":
                logger.exception("cannot answer %r", call.call)
            return to_client.Raised(call.number, kind, str(error))

    def _carry_out(self, call: to_engine.EngineCall) -> AuditReport | int | bool | None:
        manager = self._manager
        match call:
            case to_engine.PauseEngine(mode, reset_prefix_cache, timeout):
                manager.pause(mode, reset_prefix_cache=reset_prefix_cache, timeout=timeout)
            case to_engine.ResumeEngine():
                manager.resume()
            case to_engine.IsPaused():
                return manager.door.paused
            case to_engine.ResetCache(timeout):
                return manager.reset_prefix_cache(timeout)
            case to_engine.AuditEngine(timeout):
                return self._with_peers(manager.audit(timeout))
        return None

    def _with_peers(self, report: AuditReport) -> AuditReport:
        owners = (
            replace(owner, peer=None if owner.uid is None else self._peer_of(owner.uid)) for owner in report.owners
        )
        return replace(report, owners=tuple(owners))
