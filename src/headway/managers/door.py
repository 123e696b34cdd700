"""The caller's side of a command: everything that can be decided before the core hears of it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.config import Role, SchedulerConfig
from headway.request import (
    DuplicateRequestError,
    EngineDeadError,
    QueueFullError,
    Request,
    RequestError,
    SamplingParams,
)


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the door must know of the model. vocab_size None: token ids are only checked to be non-negative."""

    vocab_size: int | None = None
    eos_token_ids: tuple[int, ...] = ()


class Door:
    """Validates requests, claims their ids and counts them in and out. Any thread; nobody waits.

    Every shared step is one operation that CPython carries out whole: `dict.setdefault` claims an id, `dict.pop`
    gives it up (whoever gets the value is the one who ends the request), `deque.pop` and `deque.append` move credits.
    """

    def __init__(self, config: SchedulerConfig, limits: ModelLimits, max_waiting: int) -> None:
        self._config = config
        self._limits = limits
        self._max_waiting = max_waiting
        self._capacity = config.max_num_seqs + max_waiting
        self._credits: deque[None] = deque([None] * self._capacity)
        self._claims: dict[str, int] = {}
        self._uids = itertools.count(1)
        self._closed: str | None = None

    @property
    def num_inside(self) -> int:
        """Requests accepted and not ended, those the core has not heard of yet included."""
        return self._capacity - len(self._credits)

    def make_request(
        self,
        request_id: str,
        prompt: Sequence[int] | NDArray[np.integer],
        sampling: SamplingParams,
        *,
        uid: int | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        arrival_time: float = 0.0,
    ) -> Request:
        """Check a request and pack it: the prompt is copied to int32, max_tokens clamped to what the model leaves.

        Raises RequestError, naming the value and the limit. Claims nothing.
        """
        tokens = self._pack(prompt)
        room = self._config.max_model_len - len(tokens)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens; max_model_len is {self._config.max_model_len}, of which at "
                f"least 1 must be left for the output"
            )
        max_tokens = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        if self._config.role is Role.PREFILL:
            max_tokens = 1
        if sampling.min_tokens > max_tokens and self._config.role is not Role.PREFILL:
            raise RequestError(f"min_tokens is {sampling.min_tokens}, but at most {max_tokens} tokens can be generated")
        self._check_token_ids("stop_token_ids", sampling.stop_token_ids)
        self._check_token_ids("logit_bias", sampling.logit_bias or ())
        eos = () if sampling.ignore_eos else self._limits.eos_token_ids
        return Request(
            uid=next(self._uids) if uid is None else uid,
            request_id=request_id,
            prompt=tokens,
            sampling=sampling,
            max_tokens=max_tokens,
            stop_token_ids=tuple(dict.fromkeys((*eos, *sampling.stop_token_ids))),
            priority=priority,
            cache_salt=cache_salt,
            arrival_time=arrival_time,
        )

    def enter(self, request: Request) -> None:
        """Claim the request's id and one place. Raises, with nothing claimed, if that cannot be."""
        if self._closed is not None:
            raise EngineDeadError(self._closed)
        if self._claims.setdefault(request.request_id, request.uid) != request.uid:
            raise DuplicateRequestError(f"request id {request.request_id!r} is in use by an unfinished request")
        try:
            self._credits.pop()
        except IndexError:
            del self._claims[request.request_id]
            raise QueueFullError(
                f"the engine is full: {self._capacity} requests inside (max_num_seqs {self._config.max_num_seqs} "
                f"running + max_waiting {self._max_waiting}); try again later"
            ) from None

    def leave(self, request_id: str) -> bool:
        """Count a request out. True for exactly one of all who try: that one reports its end."""
        if self._claims.pop(request_id, None) is None:
            return False
        self._credits.append(None)
        return True

    def uids_of(self, ids: Iterable[str | int]) -> tuple[int, ...]:
        """uids of the requests inside that are meant, by request id or uid. Unknown request ids are left out."""
        found = (self._claims.get(one) if isinstance(one, str) else one for one in ids)
        return tuple(uid for uid in found if uid is not None)

    def inside(self) -> list[tuple[str, int]]:
        """(request_id, uid) of every request inside."""
        return list(self._claims.items())

    def close(self, reason: str) -> None:
        """Refuse every further request, saying why. The first reason stays."""
        if self._closed is None:
            self._closed = reason

    def _pack(self, prompt: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int32]:
        try:
            wide = np.array(prompt)
        except (OverflowError, ValueError, TypeError) as error:
            raise RequestError(f"the prompt is not a list of token ids: {error}") from None
        if not wide.size:
            raise RequestError("the prompt is empty; at least 1 token is needed")
        if wide.ndim != 1 or not np.issubdtype(wide.dtype, np.integer):
            raise RequestError(f"the prompt must be a flat list of integers, got {wide.ndim}-d {wide.dtype}")
        self._check_token_ids("the prompt", (int(wide.min()), int(wide.max())))
        tokens = wide.astype(np.int32, copy=False)
        tokens.flags.writeable = False
        return tokens

    def _check_token_ids(self, where: str, tokens: Iterable[int]) -> None:
        limit = self._limits.vocab_size if self._limits.vocab_size is not None else 2**31
        for token in tokens:
            if not 0 <= token < limit:
                raise RequestError(f"{where} contains token id {token}; ids go from 0 to {limit - 1}")
