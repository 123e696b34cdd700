"""What callers say of single requests: add, finish, abort, publish; what a preprocess job says; how far one is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from headway.request import FinishReason
from headway.scheduler.answers import Progress
from headway.scheduler.effects import Effects
from headway.scheduler.fitting import never_fits
from headway.scheduler.messages import AddRequest, PreprocessDone
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.state import State
from headway.scheduler.state.transitions import Event


class Requests:
    """Requests come, are prepared, and go."""

    def __init__(self, state: State, moves: Moves) -> None:
        self._state = state
        self._moves = moves

    def add(self, message: AddRequest, now: float, effects: Effects) -> None:
        """Queue a request, or have it prepared. Raises ValueError if its uid is in use."""
        state, moves, request = self._state, self._moves, message.request
        if request.uid in state.entries:
            raise ValueError(f"uid {request.uid} of request {request.request_id!r} is in use")
        entry = moves.newcomer(request)
        if request.uid in state.leases:  # a lease has the uid of its request, also when that has ended
            moves.add(entry)
            why = f"the blocks of a former request of uid {request.uid} have not come back"
            effects.ended.append(moves.end(entry, FinishReason.ERROR, error=why))
            return
        if request.to_prepare:
            moves.add_unprepared(entry, now + state.config.preprocess_timeout)
            effects.jobs.append(request)
            return
        moves.add(entry)
        error = never_fits(state.config, request)
        if error is not None:
            effects.ended.append(moves.end(entry, FinishReason.ERROR, error=error))

    def prepared(self, message: PreprocessDone, effects: Effects) -> None:
        """Queue a request as its preprocess job has made it, or end it with the job's error."""
        entry = self._moves.heeding(message.uid, Event.PREPARED)
        if entry is None:
            return  # it has ended, or this is told twice
        config, request, error = self._state.config, entry.request, message.error
        if error is not None:
            error = error if message.refused else f"its preparation failed: {error}"
        elif message.prompt is not None:
            num_free = config.max_model_len - len(message.prompt)
            max_tokens = max(1, min(request.max_tokens, num_free))  # if 1 is too many, the error names both numbers
            request = replace(request, prompt=message.prompt, spans=message.spans, max_tokens=max_tokens)
        if message.grammar is not None:
            request = replace(request, grammar=message.grammar)
        if error is None:
            error = never_fits(config, request)
        if error is not None:
            effects.ended.append(self._moves.end(entry, FinishReason.ERROR, error=error, refused=message.refused))
        else:
            self._moves.prepared(entry, request)

    def end(self, uids: Iterable[int], reason: FinishReason, effects: Effects) -> None:
        """End requests, in whatever state they are. Uids that are unknown or named twice are ignored."""
        entries = {uid: entry for uid in uids if (entry := self._moves.heeding(uid, Event.END)) is not None}
        effects.ended += self._moves.end_all(entries.values(), reason)

    def publish_output(self, uids: Iterable[int]) -> None:
        """Let the prefix cache have the full blocks of requests that decode, output included."""
        state = self._state
        for uid in uids:
            entry = self._moves.heeding(uid, Event.PUBLISH)
            if entry is not None:
                state.publish(entry, state.num_confirmed_tokens(entry) >> state.block_shift)

    def progress(self, uid: int) -> Progress | None:
        """How far a request is; None if it is unknown."""
        entry = self._state.entries.get(uid)
        return None if entry is None else self._state.progress(entry)
