"""Tells apart and checks the forms of a prompt that `LLM` accepts.

A prompt is text, token ids, {"prompt": text} or {"prompt_token_ids": ids}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headway.errors import RequestError

Prompt = str | Sequence[int] | Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]


def is_token_ids(prompt: object) -> bool:
    """Whether `prompt` is one flat sequence of integers."""
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 1 and np.issubdtype(prompt.dtype, np.integer)
    if isinstance(prompt, str | bytes) or not isinstance(prompt, Sequence):
        return False
    return all(_is_int(token) for token in prompt)


def _is_int(token: object) -> bool:
    return isinstance(token, int | np.integer) and not isinstance(token, bool)


def as_list(prompts: Any) -> list[Any]:
    """One prompt or several, as a list. An empty list means no prompts, not an empty prompt.

    Raises ValueError for another type.
    """
    if isinstance(prompts, str | Mapping) or (is_token_ids(prompts) and len(prompts)):
        return [prompts]
    if not isinstance(prompts, Sequence | np.ndarray):
        raise ValueError(f"prompts must be text, token ids, or a list of these, got {type(prompts).__name__}")
    return list(prompts)


def text_of(prompt: Any, index: int) -> str | None:
    """The text of the prompt; None for a prompt of token ids. index: of the prompt, for error messages.

    Raises RequestError for any other type and for text that is not valid.
    """
    inner = prompt
    if isinstance(prompt, Mapping):
        if len(prompt) != 1 or next(iter(prompt)) not in ("prompt", "prompt_token_ids"):
            raise RequestError(
                f"prompt {index}: a mapping must have the key 'prompt' or 'prompt_token_ids' and no other, "
                f"got {sorted(map(str, prompt))}"
            )
        ((key, inner),) = prompt.items()
        if isinstance(inner, str) != (key == "prompt"):
            raise RequestError(f"prompt {index}: {key!r} cannot be of type {type(inner).__name__}")
    if isinstance(inner, str):
        try:
            inner.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"prompt {index} is no valid text: {error}") from None
        return inner
    if not is_token_ids(inner):
        raise RequestError(f"prompt {index} must be text or a list of token ids, got {type(inner).__name__}")
    return None


def ids_of(prompt: Any) -> list[int]:
    """The token ids of a prompt that has no text."""
    ids = prompt["prompt_token_ids"] if isinstance(prompt, Mapping) else prompt
    return [int(token) for token in ids]


def one_each(name: str, value: Any, count: int) -> list[Any]:
    """A list of `count` values. value: one value for all prompts, or a sequence with one for each.

    Raises ValueError for a sequence of another length. name: of the argument, for the error message.
    """
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} prompts; give one, or one for each prompt")
    return list(value)
