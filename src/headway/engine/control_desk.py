"""Where API processes ask the engine process for something about the whole engine: pause it, audit it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from headway import wire
from headway.engine.engine import Engine
from headway.scheduler.audit import AuditReport

logger = logging.getLogger(__name__)

Reply = Callable[[wire.Answered | wire.Refused], None]

MAX_WAITING = 16  # questions; each has a thread of its own while it waits


class ControlDesk:
    """Answers every `wire.Ask` once, through `reply`, which any thread calls and which must not block.

    The thread that brings the questions waits for none of them: what has to wait for the writer, or for a step, does
    so on a thread of its own. So an audit does not wait for a pause, and a resume can end one.
    """

    def __init__(self, engine: Engine, reply: Reply) -> None:
        self._engine = engine
        self._reply = reply
        self._waiting: set[threading.Thread] = set()

    def take(self, ask: wire.Ask) -> None:
        """Answer, now or later. One thread calls this."""
        if isinstance(ask.question, (wire.Resume, wire.IsPaused)):
            self._reply(self._answer(ask))
        elif len(self._waiting) >= MAX_WAITING:
            self._reply(wire.Refused(ask.number, "queue_full", f"{MAX_WAITING} questions are waiting for the engine"))
        else:
            thread = threading.Thread(target=self._wait, args=(ask,), name="headway-control", daemon=True)
            self._waiting.add(thread)
            try:
                thread.start()
            except RuntimeError as error:  # the system has no thread left; the engine can do without this answer
                self._waiting.discard(thread)
                self._reply(wire.Refused(ask.number, "internal", str(error)))

    def close(self, timeout: float = 1.0) -> None:
        """Wait for the last answers, which come at once when the engine has stopped."""
        until = time.monotonic() + timeout
        for thread in list(self._waiting):
            thread.join(max(0.0, until - time.monotonic()))

    def _wait(self, ask: wire.Ask) -> None:
        try:
            self._reply(self._answer(ask))
        finally:
            self._waiting.discard(threading.current_thread())

    def _answer(self, ask: wire.Ask) -> wire.Answered | wire.Refused:
        try:
            return wire.Answered(ask.number, self._carry_out(ask.question))
        except Exception as error:
            kind = wire.kind_of(error)
            if kind == "internal":
                logger.exception("cannot answer %r", ask.question)
            return wire.Refused(ask.number, kind, str(error))

    def _carry_out(self, question: wire.Question) -> AuditReport | int | bool | None:
        engine = self._engine
        match question:
            case wire.Pause(mode, reset_prefix_cache, timeout):
                engine.pause(mode, reset_prefix_cache=reset_prefix_cache, timeout=timeout)
            case wire.Resume():
                engine.resume()
            case wire.IsPaused():
                return engine.is_paused
            case wire.ResetPrefixCache(timeout):
                return engine.reset_prefix_cache(timeout)
            case wire.Audit(timeout):
                return engine.audit(timeout)
        return None
