"""The limits of a model."""

from __future__ import annotations

from dataclasses import dataclass

from headway.token_ids import NUM_INT32


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The limits of a model and of its engine. The API process reads them from the model's files and sends them on.

    vocab_size: token ids go from 0 to one less; by default any int32 of at least 0 is a token id.
    max_model_len: the most tokens of a request, prompt and output together.
    encodes_media: whether the engine can compute images and videos (spans).
    has_preprocessor: whether the engine can prepare requests that bring `preprocess`.
    has_grammars: whether the engine can give an answer a form (`SamplingParams.structured_outputs`).
    """

    vocab_size: int = NUM_INT32
    eos_token_ids: tuple[int, ...] = ()
    max_model_len: int = NUM_INT32
    encodes_media: bool = True
    has_preprocessor: bool = True
    has_grammars: bool = True
