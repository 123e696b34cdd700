"""Requests made of integers: small, with shared prefixes, salts and images, and common stop tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from headway.request import Request, Span
from headway.sampling import SamplingParams
from headway.simulation.digests import VOCAB, mix, prompt_of

STOP_TOKENS = (1, 17, 33)
NUM_STEMS = 3
NUM_IMAGES = 4


class Shape(NamedTuple):
    """A request in integers.

    stem, shared: the common beginning, and the number of its tokens. own: further tokens of this request alone.
    salt: 0 is none. stops: how many of STOP_TOKENS end it. spans: layout of images in the prompt; 0: no images.
    prepare: whether a preprocess job works on it first. judged: whether it asks for log-probabilities of its prompt.
    """

    uid: int
    stem: int
    shared: int
    own: int
    max_tokens: int
    min_tokens: int = 0
    priority: int = 0
    salt: int = 0
    stops: int = 0
    spans: int = 0
    prepare: int = 0
    judged: int = 0

    def request(self, now: float) -> Request:
        """The request, arriving now."""
        tokens = self._tokens(self.own)
        return Request(
            uid=self.uid,
            request_id=f"r{self.uid}",
            prompt=prompt_of(tokens),
            sampling=SamplingParams(
                max_tokens=self.max_tokens,
                min_tokens=min(self.min_tokens, self.max_tokens),
                prompt_logprobs=1 if self.judged else None,
            ),
            reads_prefix_cache=not self.judged,
            max_tokens=self.max_tokens,
            stop_token_ids=STOP_TOKENS[: self.stops],
            priority=self.priority,
            cache_salt=f"tenant {self.salt}" if self.salt else None,
            arrival_time=now,
            spans=_spans(self.spans, len(tokens)),
            preprocess=b"image" if self.prepare else None,
        )

    def prepared(self, more: int) -> tuple[Sequence[int], tuple[Span, ...]]:
        """The result of a preprocess job: another prompt, longer by `more` tokens, and the spans of its images."""
        tokens = self._tokens(self.own + more)
        return tokens, _spans(self.spans + 1, len(tokens))

    def _tokens(self, own: int) -> list[int]:
        return [*_stream(self.stem, self.shared), *_stream(NUM_STEMS + self.uid, own)]


@cache
def _stream(which: int, length: int) -> list[int]:
    """The first `length` tokens of endless stream number `which`."""
    words = mix(np.arange(length, dtype=np.uint64) + np.uint64(which << 32))
    tokens: list[int] = (words % np.uint64(VOCAB)).tolist()
    return tokens


def _spans(layout: int, length: int) -> tuple[Span, ...]:
    """Up to two images, near the beginning, so that shared prefixes contain them. Image 0 needs no encoder."""
    spans, place = [], layout % 3
    for i in range(layout % 2 + 1 if layout else 0):
        size = 1 + (layout + i) % 4
        if place + size > length:
            break
        image = (layout + i) % NUM_IMAGES
        spans.append(Span(place, size, b"image %d" % image, image + 1 if image else 0))
        place += size + layout % 4
    return tuple(spans)
