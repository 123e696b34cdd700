"""The sealed name of what P lends. It travels through routers and clients, so only P's seal makes it count."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import os
from collections.abc import Callable
from typing import Annotated

import msgspec
import numpy as np

from headway.request import NewRequest
from headway.sampling import SamplingParams

MAX_CHARACTERS = 512
ENGINE_BYTES = 16
_SEAL_BYTES = 32
_DIGEST_BYTES = 16

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[bytes, msgspec.Meta(min_length=_DIGEST_BYTES, max_length=_DIGEST_BYTES)]
EngineId = Annotated[bytes, msgspec.Meta(min_length=ENGINE_BYTES, max_length=ENGINE_BYTES)]


class Reference(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="headway-kv-1"):
    """What P lends, and for which request.

    engine: the incarnation of P, random, new at each start. uid: P's number of the request. generation: see `Lending`;
    None: not all is computed, and the progress will say. num_tokens: of the prompt. prompt, sampling: digests, see
    `prompt_digest` and `sampling_digest`. expires: seconds on P's clock; after that nothing can begin to read.
    """

    engine: EngineId
    uid: Count
    generation: Count | None
    num_tokens: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    prompt: Digest
    sampling: Digest
    expires: float

    @classmethod
    def parse(cls, text: object) -> Reference:
        """What a reference says; whether it is P's, only P can tell. Raises ValueError for anything else."""
        return _opened(text)[0]


class Seal:
    """The key of one engine incarnation. clock: seconds, the engine's own; only the engine compares with it."""

    def __init__(self, clock: Callable[[], float], engine: bytes | None = None, key: bytes | None = None) -> None:
        self.engine = os.urandom(ENGINE_BYTES) if engine is None else engine
        self._key = os.urandom(_SEAL_BYTES) if key is None else key
        self._clock = clock

    def close(self, reference: Reference) -> str:
        """The reference as text, in the alphabet of URLs."""
        data = _encoder.encode(reference)
        return base64.urlsafe_b64encode(data + self._of(data)).decode("ascii")

    def open(self, text: object) -> Reference:
        """The reference in `text`. Raises ValueError, saying why, unless this engine made it and it has not expired."""
        reference, data, seal = _opened(text)
        if reference.engine != self.engine:
            raise ValueError(
                f"the reference is of the engine {reference.engine.hex()}, and this is {self.engine.hex()}: another "
                "engine, or one before a restart"
            )
        if not hmac.compare_digest(seal, self._of(data)):
            raise ValueError("the reference has been changed: its seal is not of this engine")
        if not self._clock() < reference.expires:
            raise ValueError("the reference has expired")
        return reference

    def _of(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, "sha256")


def prompt_digest(request: NewRequest) -> bytes:
    """Of all that the KV of a prompt depends on, beside the model: token ids, cache salt, images and videos."""
    prompt = np.ascontiguousarray(request.prompt, "<i4")
    spans = [(span.start, span.length, span.digest) for span in request.spans]
    return _digest(prompt.tobytes(), request.cache_salt, spans, request.preprocess)


def sampling_digest(sampling: SamplingParams) -> bytes:
    """Of all that the choice of the first token depends on. `min_tokens` counts only as far as it masks stop tokens."""
    bias = [(int(token), float(value)) for token, value in sorted((sampling.logit_bias or {}).items())]
    masked = None if sampling.min_tokens < 1 else (sampling.ignore_eos, sorted(set(sampling.stop_token_ids)))
    numbers = [
        *(sampling.temperature, sampling.top_p, sampling.min_p),
        *(sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty),
    ]
    if sampling.temperature == 0:
        return _digest("greedy", [float(number) for number in numbers[3:]], bias, masked)
    return _digest([float(number) for number in numbers], int(sampling.top_k), sampling.seed, bias, masked)


def _digest(*values: object) -> bytes:
    return hashlib.blake2b(_encoder.encode(values), digest_size=_DIGEST_BYTES).digest()


def _opened(text: object) -> tuple[Reference, bytes, bytes]:
    if not isinstance(text, str):
        raise ValueError(f"a reference is a text, got {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"a reference has at most {MAX_CHARACTERS} characters, got {len(text)}")
    try:
        whole = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError as error:  # of the alphabet, and of the padding
        raise ValueError(f"the reference is not base64: {error}") from None
    data, seal = whole[:-_SEAL_BYTES], whole[-_SEAL_BYTES:]
    try:
        reference = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"the reference cannot be read: {error}") from None
    if not math.isfinite(reference.expires) or _encoder.encode(reference) != data:
        raise ValueError("the reference cannot be read: it is not as an engine writes it")
    return reference, data, seal


_encoder = msgspec.msgpack.Encoder(enc_hook=int)  # numpy's integers among the sampling parameters
_decoder = msgspec.msgpack.Decoder(Reference)
