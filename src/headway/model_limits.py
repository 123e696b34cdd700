"""What a model allows."""

from __future__ import annotations

from dataclasses import dataclass

from headway.token_ids import NUM_INT32


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model allows, and what runs it. Crosses from the API process, which has read the model's files.

    vocab_size: token ids go from 0 to one less; where it is not known, any int32 is one.
    max_model_len: tokens of the longest request, prompt and output together.
    encodes_media: whether images and videos (spans) can be computed.
    has_preprocessor: whether requests that bring `preprocess` can be prepared.
    """

    vocab_size: int = NUM_INT32
    eos_token_ids: tuple[int, ...] = ()
    max_model_len: int = NUM_INT32
    encodes_media: bool = True
    has_preprocessor: bool = True
