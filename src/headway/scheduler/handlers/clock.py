"""What the clock says: deadlines that have passed."""

from __future__ import annotations

from headway.request import FinishReason, RequestStatus
from headway.scheduler.effects import Effects
from headway.scheduler.handlers.transfers import Transfers
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.state import State
from headway.scheduler.state.transitions import Event

_TIMED_OUT = {
    RequestStatus.PREPARING: "its preparation took longer than preprocess_timeout",
    RequestStatus.RESERVED: "its reservation was not taken up in time",
    RequestStatus.SENDING: "its KV was not sent within send_timeout",
}


class Clock:
    """Ends requests and leases whose deadline has passed. A prompt whose KV has not come in time is computed here."""

    def __init__(self, state: State, moves: Moves, transfers: Transfers) -> None:
        self._state = state
        self._moves = moves
        self._transfers = transfers

    def tick(self, now: float, effects: Effects) -> None:
        """It is `now`, in seconds."""
        for uid in self._state.deadlines.expired(now):
            entry = self._state.entries.get(uid)
            if entry is None:
                self._transfers.expire(uid, effects)
                continue
            if entry.status is RequestStatus.RECEIVING:
                self._moves.give_up(entry)
                continue
            error = _TIMED_OUT.get(entry.status)
            effects.ended.append(self._moves.end(entry, FinishReason.ERROR, event=Event.EXPIRE, error=error))
