"""What the clock says: deadlines that have passed."""

from __future__ import annotations

from headway.request import FinishReason, RequestStatus
from headway.scheduler.effects import Effects
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.state import State
from headway.scheduler.state.transitions import Event

_TIMED_OUT = {
    RequestStatus.PREPARING: "its preparation took longer than preprocess_timeout",
    RequestStatus.RESERVED: "its reservation was not taken up in time",
    RequestStatus.SENDING: "its KV was not sent within send_timeout",
}


class Clock:
    """Ends requests whose deadline has passed."""

    def __init__(self, state: State, moves: Moves) -> None:
        self._state = state
        self._moves = moves

    def tick(self, now: float, effects: Effects) -> None:
        """It is `now`, in seconds."""
        for uid in self._state.deadlines.expired(now):
            entry = self._state.entries[uid]
            error = _TIMED_OUT.get(entry.status)
            effects.ended.append(self._moves.end(entry, FinishReason.ERROR, event=Event.EXPIRE, error=error))
