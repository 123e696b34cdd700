"""The records of a request on its way into the engine.

They cross threads and processes, so they are plain data: no tensors, no callbacks, no references to engine state. This
file imports numpy only.
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
    REPETITION = "repetition"  # it repeated itself, see `repetition_detection`
    ERROR = "error"  # it could not be served; the message says why


class RequestStatus(IntEnum):
    """The status of a request, as the writer sees it."""

    WAITING = 0  # in the queue; has no slot and no blocks
    RUNNING_PREFILL = 1  # has a slot; part of its known tokens is not yet computed
    RUNNING_DECODE = 2  # has a slot; computes one token a step
    PREEMPTED = 3  # gave up slot and blocks; keeps its place in line
    FINISHED = 4
    PREPARING = 5  # a preprocess job makes its prompt; keeps its place in line
    RESERVED = 6  # has slot and blocks, computes nothing yet: P until D agrees, D until the KV has come
    SENDING = 7  # P: the prompt is computed, and its KV is on the way to D
    RECEIVING = 8  # D: has slot and blocks; the KV of its prompt is on the way from P
    NEW = 9  # not yet known to the core; never published


class Transfer(StrEnum):
    """What becomes of the KV of a prompt between two engines."""

    PULL = "pull"  # D: a connector brings it from P; if that fails, it is computed here
    LEND = "lend"  # P: it is computed, and its blocks are lent to D; the request ends with its first token

    @classmethod
    def wanted_by(cls, params: Mapping[str, Any] | None, sampling: SamplingParams) -> Transfer | None:
        """What `kv_transfer_params` want, in the words of vLLM's connectors. P lends the KV of one answer alone; the
        first of several answers to a prompt pulls. Where log-probabilities of the prompt are asked for, the engine that
        answers computes the prompt: they do not come with its KV."""
        wanted = params or {}
        if sampling.prompt_logprobs is not None:
            return None
        if wanted.get("do_remote_decode") is True:
            return cls.LEND if sampling.n == 1 else None
        return cls.PULL if wanted.get("do_remote_prefill") is True else None


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of a prompt that stand for one image or video: positions `start` up to, not including, `start + length`.

    A chunk never cuts a span. The KV of a span depends on the contents of the image or video, so on the digest.

    digest: strong digest of the contents, e.g. sha256; spans with equal digests share encoder output and cached KV.
    num_encoder_tokens: tokens of its encoder output in the encoder cache; 0: nothing to encode.
    """

    start: int
    length: int
    digest: bytes
    num_encoder_tokens: int = 0

    @property
    def end(self) -> int:
        """The position after the last token of the span."""
        return self.start + self.length


@dataclass(slots=True, kw_only=True)
class NewRequest:
    """A request of a caller: one sequence to generate. It crosses unchanged from the server, or `LLM`, to the door.

    request_id: the caller's id, unique among the requests in the engine.
    prompt: int32 [num_prompt_tokens]. A prompt that `token_ids.pack` made is never copied.
    uid: a number of the caller, never used again; None: the door gives one.
    priority: lower is served first.
    cache_salt: requests share cached prefixes only with requests of the same salt.
    reads_prefix_cache: False: no part of its prompt is taken from the prefix cache, also not after a preemption. What
        it computes is published all the same.
    spans: parts of the prompt that must not be cut, in order, without overlaps.
    preprocess: input of the engine's preprocessor, which makes prompt and spans from it; then `prompt` may be empty.
        None: nothing to prepare.
    transfer: what becomes of the KV of the prompt; None: it is computed and used here.
    kv_transfer_params: a small JSON object for the connector that moves KV.
    arrival_time: seconds, `time.monotonic` of this host; None: when the door checks the request.
    """

    request_id: str
    prompt: NDArray[np.int32]
    sampling: SamplingParams
    uid: int | None = None
    priority: int = 0
    cache_salt: str | None = None
    reads_prefix_cache: bool = True
    spans: tuple[Span, ...] = ()
    preprocess: bytes | None = None
    transfer: Transfer | None = None
    kv_transfer_params: Mapping[str, Any] | None = None
    arrival_time: float | None = None

    @property
    def to_prepare(self) -> bool:
        """Whether a job of the engine must make something for the request before it can be queued."""
        return self.preprocess is not None or self.sampling.structured_outputs is not None


@dataclass(slots=True, kw_only=True)
class Request(NewRequest):
    """A `NewRequest` that the door has checked, for the core. Not changed any more.

    uid: the engine's number for the request, never used again; messages and results name requests by it.
    prompt: int32 [num_prompt_tokens], read-only.
    max_tokens: the most output tokens; prompt and output together are at most `max_model_len`.
    stop_token_ids: every token that ends the request (end-of-sequence tokens included unless ignored).
    arrival_time: seconds, on the clock that drives the scheduler.
    grammar: what a job made of `sampling.structured_outputs`, for the executor; opaque to the core.
    """

    uid: int
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    arrival_time: float = 0.0
    grammar: object | None = None

    @classmethod
    def of(cls, new: NewRequest, **checked: Any) -> Request:
        """A request with the fields of `new`, except the fields that the door has `checked` or added."""
        for name in _BROUGHT:
            if name not in checked:
                checked[name] = getattr(new, name)
        return cls(**checked)


_BROUGHT = tuple(field.name for field in fields(NewRequest))
