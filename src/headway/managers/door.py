"""The caller's side of adding a request: everything that can be decided before the core gets the request."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from headway.config import Role, SchedulerConfig
from headway.errors import DuplicateRequestError, EngineDeadError, EnginePausedError, QueueFullError, RequestError
from headway.kv_transfer_params import copied
from headway.model_limits import ModelLimits
from headway.request import NewRequest, Request, Span, Transfer
from headway.sampling import SamplingParams
from headway.scheduler import never_fits
from headway.token_ids import check_not_empty, check_token_ids, pack

MAX_PRIORITY = 2**31  # either way; ranks are float64, which keep such priorities and some ageing exact


@dataclass(slots=True, eq=False)
class Claim:
    """The claim of one request on its ids. Compared by identity: a request that is handed in twice makes two claims.

    accepted: the end of the request will be reported. Before that, the core may still refuse the request.
    """

    request_id: str
    uid: int
    accepted: bool


class Door:
    """Validates requests, claims their ids and counts them in and out. Any thread may call it; no call waits.

    Every shared step is one atomic operation of CPython: `dict.setdefault` claims an id, `dict.pop` frees an id (the
    thread that gets the value ends the request), `deque.pop` and `deque.append` move credits.

    The uid is claimed last and popped first. A request is inside between the two. So no other thread can end a request
    that is still entering or was refused.
    """

    def __init__(self, config: SchedulerConfig, limits: ModelLimits, max_waiting: int) -> None:
        self._config = config
        self._limits = limits
        self._max_waiting = max_waiting
        self._capacity = config.max_num_seqs + max_waiting
        self._credits: deque[None] = deque([None] * self._capacity)
        self._request_ids: dict[str, Claim] = {}
        self._uids_inside: dict[int, Claim] = {}
        self._uids = itertools.count(1)
        self.paused = False  # refuses every request until `resume`
        self.closed: str | None = None  # why every request is refused for good; None while the door is open

    @property
    def num_inside(self) -> int:
        """Requests accepted and not ended. Requests that the core has not got yet are included, as are requests that
        enter at this moment."""
        return self._capacity - len(self._credits)

    @property
    def num_token_ids(self) -> int:
        """The size of the vocabulary: token ids go from 0 to one less."""
        return self._limits.vocab_size

    def is_token_id(self, token: object) -> bool:
        """Whether this is a token id of the vocabulary."""
        return isinstance(token, (int, np.integer)) and 0 <= int(token) < self.num_token_ids

    def make_request(self, new: NewRequest) -> Request:
        """Check a request against the limits, and make the core's record of it. Claims nothing.

        Raises RequestError that names the value and the limit. The prompt of a request with `preprocess` may be empty:
        the prompt that the preprocessor makes is checked later.
        """
        if not isinstance(new.request_id, str):
            raise RequestError(f"request_id must be a string, got {new.request_id!r}")
        _check_integer("priority", new.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if new.uid is not None:
            _check_integer("uid", new.uid, 0, 2**63 - 1)
        _check_salt(new.cache_salt)
        if not isinstance(new.reads_prefix_cache, bool):
            raise RequestError(f"reads_prefix_cache must be True or False, got {new.reads_prefix_cache!r}")
        if new.preprocess is not None and not isinstance(new.preprocess, bytes):
            raise RequestError(f"preprocess must be bytes, got {type(new.preprocess).__name__}")
        if new.preprocess is not None and not self._limits.has_preprocessor:
            raise RequestError(
                f"this engine has no preprocessor: it takes no request that has to be prepared, got {new.request_id!r}"
            )
        if new.sampling.structured_outputs is not None and not self._limits.has_grammars:
            raise RequestError("structured_outputs are not supported here: this engine has no model that writes text")
        self._check_transfer(new.transfer)
        if new.transfer is not None and new.sampling.prompt_logprobs is not None:
            raise RequestError(
                f"prompt_logprobs need a prompt that this engine computes for itself, got transfer={new.transfer!s}"
            )
        spans = tuple(new.spans)
        _check_spans(spans)
        if spans and not self._limits.encodes_media:
            raise RequestError(
                f"this engine computes text alone, the prompt has {len(spans)} spans of images or videos"
            )
        prompt = pack(new.prompt, self.num_token_ids)
        if new.preprocess is None:
            check_not_empty(prompt)
        sampling = self._checked_sampling(new.sampling)
        eos = () if sampling.ignore_eos else self._limits.eos_token_ids
        stop_token_ids = tuple(dict.fromkeys((*eos, *sampling.stop_token_ids)))
        _check_a_token_is_left(sampling, stop_token_ids)
        request = Request.of(
            new,
            uid=next(self._uids) if new.uid is None else new.uid,
            prompt=prompt,
            sampling=sampling,
            reads_prefix_cache=new.reads_prefix_cache and sampling.prompt_logprobs is None,
            spans=spans,
            kv_transfer_params=None if new.kv_transfer_params is None else copied(new.kv_transfer_params),
            max_tokens=self._max_tokens(len(prompt), sampling, new.transfer),
            stop_token_ids=stop_token_ids,
            arrival_time=time.monotonic() if new.arrival_time is None else new.arrival_time,
        )
        reason = never_fits(self._config, request) if new.preprocess is None else None
        if reason is not None:
            raise RequestError(reason)
        return request

    def enter(self, request: Request, *, accepted: bool = True) -> None:
        """Take a credit and claim the ids of a request.

        accepted: False for a request that the core may still refuse; see `accept`.
        Raises EngineDeadError, EnginePausedError, QueueFullError or DuplicateRequestError; then nothing is claimed.
        """
        if self.closed is not None:
            raise EngineDeadError(self.closed)
        if self.paused:
            raise EnginePausedError("the engine is paused; try again when it has been resumed")
        try:
            self._credits.pop()
        except IndexError:
            raise QueueFullError(
                f"the engine is full: {self._capacity} requests inside (max_num_seqs {self._config.max_num_seqs} "
                f"running + max_waiting {self._max_waiting}); try again later"
            ) from None
        claim = Claim(request.request_id, request.uid, accepted)
        try:
            if self._request_ids.setdefault(claim.request_id, claim) is not claim:
                raise DuplicateRequestError(f"request id {claim.request_id!r} is in use by an unfinished request")
            if self._uids_inside.setdefault(claim.uid, claim) is not claim:
                raise DuplicateRequestError(f"uid {claim.uid} is in use by an unfinished request")
        except BaseException:  # refused, or an interrupt
            if self._uids_inside.get(claim.uid) is claim:
                self.leave(claim.uid)
            else:
                self._give_back(claim)
            raise

    def accept(self, uid: int) -> None:
        """The core has accepted a request that it could have refused. An unknown uid is ignored."""
        claim = self._uids_inside.get(uid)
        if claim is not None:
            claim.accepted = True

    def leave(self, uid: int) -> bool:
        """Count a request out. True for exactly one of all threads that try: this thread reports the end."""
        claim = self._uids_inside.pop(uid, None)
        if claim is None:
            return False
        self._give_back(claim)
        return True

    def uids_of(self, ids: Iterable[str | int]) -> tuple[int, ...]:
        """The uids of the requests inside with these ids (request ids or uids). Unknown ids are left out."""
        inside = self._uids_inside
        claims = (self._request_ids.get(id_) if isinstance(id_, str) else inside.get(id_) for id_ in ids)
        # Skips a request that has claimed its request id but will be refused, because its uid is in use.
        return tuple(claim.uid for claim in claims if claim is not None and inside.get(claim.uid) is claim)

    def inside(self) -> list[Claim]:
        """The claims of all requests inside."""
        return list(self._uids_inside.values())

    def close(self, reason: str) -> None:
        """Refuse every further request with this reason. The first reason stays."""
        if self.closed is None:
            self.closed = reason

    def pause(self) -> None:
        """Refuse requests until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Accept requests again."""
        self.paused = False

    def _max_tokens(self, prompt_tokens: int, sampling: SamplingParams, transfer: Transfer | None) -> int:
        """The most output tokens of the request. Raises RequestError if `max_model_len` leaves too few."""
        max_tokens = sampling.most_tokens(prompt_tokens, self._config.max_model_len)
        return 1 if self._config.role is Role.PREFILL or transfer is Transfer.LEND else max_tokens

    def _check_transfer(self, transfer: Transfer | None) -> None:
        """Raises RequestError for a transfer that an engine of this role does not take part in."""
        if transfer is not None and not isinstance(transfer, Transfer):
            raise RequestError(f"transfer must be one of {', '.join(Transfer)} or None, got {transfer!r}")
        role = self._config.role
        if transfer is Transfer.PULL and role is Role.PREFILL:
            raise RequestError(
                "a request with transfer='pull' (do_remote_prefill) decodes here, but the role of this engine is "
                "prefill: send it to an engine whose role is decode or mixed"
            )
        if transfer is Transfer.LEND and role is Role.DECODE:
            raise RequestError(
                "a request with transfer='lend' (do_remote_decode) computes its prompt for another engine, but the "
                "role of this engine is decode: send it to an engine whose role is prefill or mixed"
            )

    def _checked_sampling(self, sampling: SamplingParams) -> SamplingParams:
        """A copy of the parameters that the caller cannot change. Raises RequestError for a token id out of range."""
        check_token_ids("stop_token_ids", sampling.stop_token_ids, self.num_token_ids)
        check_token_ids("logit_bias", tuple(sampling.logit_bias or ()), self.num_token_ids)
        check_token_ids("allowed_token_ids", sampling.allowed_token_ids or (), self.num_token_ids)
        for sequence in sampling.bad_token_sequences:
            check_token_ids("bad_token_sequences", sequence, self.num_token_ids)
        if sampling.bad_words:
            raise RequestError("bad_words need a tokenizer: an engine without one takes bad_token_sequences")
        if (thinking := sampling.thinking) is not None:
            check_token_ids("thinking", (*thinking.start, *thinking.end), self.num_token_ids)
        elif sampling.thinking_token_budget is not None:
            raise RequestError(
                "thinking_token_budget is set, but the tokens between which this model thinks are not known: choose a "
                "reasoning parser, or leave the field out"
            )
        if sampling.structured_outputs is not None:
            check_token_ids("starts_after", sampling.structured_outputs.starts_after, self.num_token_ids)
        if sampling.logit_bias is not None:
            sampling = replace(sampling, logit_bias=dict(sampling.logit_bias))
        return sampling

    def _give_back(self, claim: Claim) -> None:
        """Return the credit of a request that is not inside; free its request id if this claim owns it."""
        if self._request_ids.get(claim.request_id) is claim:
            del self._request_ids[claim.request_id]
        self._credits.append(None)


def _check_integer(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise RequestError(f"{name} must be an integer in [{low}, {high}], got {value!r}")


def _check_spans(spans: tuple[Span, ...]) -> None:
    """Check types and integer ranges. Whether the spans fit the prompt is checked once the prompt is known."""
    for i, span in enumerate(spans):
        if not isinstance(span, Span):
            raise RequestError(f"span {i} must be a Span, got {span!r}")
        for name in ("start", "length", "num_encoder_tokens"):
            _check_integer(f"the {name} of span {i}", getattr(span, name), 0, 2**31)
        if not isinstance(span.digest, bytes):
            raise RequestError(f"the digest of span {i} must be bytes, got {type(span.digest).__name__}")


def _check_a_token_is_left(sampling: SamplingParams, stop_token_ids: tuple[int, ...]) -> None:
    allowed = sampling.allowed_token_ids
    if sampling.min_tokens and allowed is not None and set(stop_token_ids).issuperset(allowed):
        raise RequestError(
            f"every one of allowed_token_ids ends the answer, but min_tokens is {sampling.min_tokens}: no token is "
            "left to draw"
        )


def _check_salt(salt: str | None) -> None:
    if salt is not None and not isinstance(salt, str):
        raise RequestError(f"cache_salt must be a string, got {salt!r}")
    try:
        (salt or "").encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"cache_salt {salt!r} cannot be written as UTF-8: {error.reason}") from None
