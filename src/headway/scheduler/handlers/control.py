"""What an operator does to the whole scheduler: pause and resume, preempt all, clear, reset the cache."""

from __future__ import annotations

from collections.abc import Iterable

from headway.request import FinishReason, RequestStatus
from headway.scheduler.effects import Effects
from headway.scheduler.handlers.transfers import Transfers
from headway.scheduler.messages import Pause
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.state import State


class Control:
    """Takes effect at once, whatever is in flight. Late results are recognised and dropped."""

    def __init__(self, state: State, moves: Moves, transfers: Transfers) -> None:
        self._state = state
        self._moves = moves
        self._transfers = transfers

    def pause(self, message: Pause, effects: Effects) -> None:
        """Schedule nothing more."""
        self._state.paused = True
        entries = self._state.entries.values()
        if message.abort:
            self._end("the engine was paused", entries, effects)
        else:
            self.preempt_all()
        if message.reset_prefix_cache:  # what a reservation found in the cache would be stale
            reserved = [entry for entry in entries if entry.status is RequestStatus.RESERVED]
            self._end("the engine was paused and its cache reset", reserved, effects)
            self._transfers.give_up_all()
            self._transfers.revoke_all(effects)
            self._state.reset_prefix_cache()

    def resume(self) -> None:
        """Schedule again."""
        self._state.paused = False

    def hold_admissions(self, held: bool) -> None:
        """Admit no request, or admit requests again."""
        self._state.holds_admissions = held

    def preempt_all(self) -> None:
        """Requests that have more to compute go back to their place in the queue."""
        for slot in self._state.table.computing_rows().tolist():
            self._moves.preempt(self._state.occupant(slot))

    def clear(self, effects: Effects) -> None:
        """End all requests and forget what is cached."""
        self._end("the engine's data was cleared", self._state.entries.values(), effects)
        self._transfers.revoke_all(effects)
        self._state.reset_prefix_cache()

    def _end(self, error: str, entries: Iterable[Entry], effects: Effects) -> None:
        effects.ended += self._moves.end_all(entries, FinishReason.ABORT, error=error)
