"""What a model allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the door must know of the model and of what runs it.

    vocab_size None: token ids are only checked to be non-negative. encodes_media: whether images and videos (spans) can
    be computed. has_preprocessor: whether requests that bring `preprocess` can be prepared.
    """

    vocab_size: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    encodes_media: bool = True
    has_preprocessor: bool = True
