"""The right KV and answers: digests that stand for KV, and the answer to every request.

    digest[i] = root(salt) + sum over j <= i of mix(token[j], image[j]) * multiplier[j]        all modulo 2^64

The next token is a function of the digest of all tokens before it, so an answer depends on its request alone. The
digest
is a sum: a whole prompt takes one cumulative sum, and a decode step one addition per row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from headway.request import FinishReason, Request, Span
from headway.scheduler.batch import IntArray

VOCAB = 50
EOS = 1

Words = NDArray[np.uint64]

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(words: Words) -> Words:
    """Spread every bit over the word (the finaliser of splitmix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_FIRST)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_SECOND)
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed


def mix_one(word: int) -> int:
    """`mix` for one word."""
    word = ((word ^ (word >> 30)) * _FIRST) & _MASK
    word = ((word ^ (word >> 27)) * _SECOND) & _MASK
    return word ^ (word >> 31)


@cache
def multipliers_for(at_least: int) -> Words:
    """Multipliers, uint64 [at_least or more]. All are odd, so that no token can vanish from a digest."""
    count = 1 << max(6, (at_least - 1).bit_length())
    return mix(np.arange(count, dtype=np.uint64) + np.uint64(_GOLDEN)) | np.uint64(1)


@cache
def _digest_of(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@cache
def _root(salt: str | None) -> int:
    return _digest_of(repr(salt).encode())


def _terms_of(tokens: IntArray, spans: Sequence[Span]) -> Words:
    """The term of each token in the digests from its position on, before multiplication. uint64 [n]."""
    words = (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    for span in spans:
        words[span.start : span.end] += np.uint64(_digest_of(span.digest))
    return mix(words)


def digests_of(request: Request, tokens: IntArray) -> Words:
    """The digest after each of these tokens: the prompt and known output tokens. uint64 [n]."""
    n = len(tokens)
    sums: Words = np.cumsum(_terms_of(tokens, request.spans) * multipliers_for(n)[:n], dtype=np.uint64)
    return sums + np.uint64(_root(request.cache_salt))


TERM_OF_TOKEN = _terms_of(np.arange(VOCAB, dtype=np.int32), ())
_TERMS: list[int] = TERM_OF_TOKEN.tolist()


def answer_of(request: Request) -> tuple[list[int], FinishReason]:
    """The tokens and finish reason that the request must get if no message ends it early."""
    known = len(request.prompt)
    digest = int(digests_of(request, request.prompt)[-1])
    limit = known + request.max_tokens
    tokens: list[int] = []
    for multiplier in multipliers_for(limit)[known:limit].tolist():
        token = mix_one(digest) % VOCAB
        tokens.append(token)
        if token in request.stop_token_ids and len(tokens) >= request.sampling.min_tokens:
            return tokens, FinishReason.STOP
        digest = (digest + _TERMS[token] * multiplier) & _MASK
    return tokens, FinishReason.LENGTH


def prompt_of(tokens: Sequence[int]) -> IntArray:
    """A prompt as the door packs it: int32, read-only."""
    array = np.array(tokens, dtype=np.int32)
    array.flags.writeable = False
    return array
