"""What a request is on its way in.

These records cross threads and processes, so they are plain data: no tensors, no callbacks, no references to engine
state. They import numpy and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.sampling import SamplingParams


class FinishReason(StrEnum):
    """Why a request ended. Every request ends with exactly one of these."""

    STOP = "stop"  # a stop token or a stop string
    LENGTH = "length"  # max_tokens or max_model_len
    ABORT = "abort"  # the client asked, or went away
    ERROR = "error"  # it could not be served; the message says why


class RequestStatus(IntEnum):
    """Where a request stands, as the writer sees it."""

    WAITING = 0  # queued, nothing computed
    RUNNING_PREFILL = 1  # has a slot; part of its known tokens is still to be computed
    RUNNING_DECODE = 2  # has a slot; computes one token a step
    PREEMPTED = 3  # gave up slot and blocks, keeps its place in the queue
    FINISHED = 4
    PREPARING = 5  # a preprocess job works on it; its place in the queue is kept
    RESERVED = 6  # holds slot and blocks, computes nothing yet: P before its D has agreed, D before the KV has come
    SENDING = 7  # P: all is computed, the KV is on its way to D
    NEW = 8  # not accepted yet; never seen from outside


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of a prompt that stand for one image or video: positions `start` to `start + length`.

    No chunk of a prefill may cut it. Its KV depends on what it shows, hence on the digest.

    digest: strong digest of the contents, e.g. sha256; equal ones share encoder output and cached KV.
    num_encoder_tokens: what its encoder output takes of the encoder cache; 0 if there is nothing to encode.
    """

    start: int
    length: int
    digest: bytes
    num_encoder_tokens: int = 0

    @property
    def end(self) -> int:
        """The position after it."""
        return self.start + self.length


@dataclass(slots=True, kw_only=True)
class NewRequest:
    """One sequence to generate, as a caller brings it. It crosses unchanged from the HTTP face, or `LLM`, to the door.

    request_id: the caller's id, unique among the requests in the engine.
    prompt: int32 [num_prompt_tokens], best as `token_ids.pack` makes it: then nothing on the way copies it.
    uid: the caller's own, unique for ever; None: the door gives one.
    priority: lower is served first.
    cache_salt: requests share cached prefixes only with requests of the same salt.
    spans: parts of the prompt that must not be cut, in order, none overlapping another.
    preprocess: what the engine's preprocessor makes prompt and spans from, opaque here; None: nothing to prepare.
        Then the prompt may be empty.
    kv_transfer_params: what the connector that moves KV is told, a small JSON object, opaque here.
    arrival_time: seconds, `time.monotonic` of this host; None: the moment at the door.
    """

    request_id: str
    prompt: NDArray[np.int32]
    sampling: SamplingParams
    uid: int | None = None
    priority: int = 0
    cache_salt: str | None = None
    spans: tuple[Span, ...] = ()
    preprocess: bytes | None = None
    kv_transfer_params: Mapping[str, Any] | None = None
    arrival_time: float | None = None


@dataclass(slots=True, kw_only=True)
class Request(NewRequest):
    """A `NewRequest` that the door has checked, as the core takes it. Immutable from there on.

    uid: the engine's own id, unique for ever; late messages and results name requests by it.
    prompt: int32, unchangeable.
    max_tokens: output tokens, already clamped to what `max_model_len` leaves.
    stop_token_ids: every token that ends the request (end-of-sequence tokens included unless ignored).
    arrival_time: seconds, on the clock that drives the scheduler.
    """

    uid: int
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    arrival_time: float = 0.0

    @classmethod
    def of(cls, new: NewRequest, **checked: Any) -> Request:
        """What `new` brings, field by field, and what the door has `checked` or added."""
        return cls(**{name: getattr(new, name) for name in _BROUGHT} | checked)


_BROUGHT = tuple(field.name for field in fields(NewRequest))
