"""What a model's generation_config.json says of sampling, checked when the model is found and not at a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headway.checkpoint import read_json
from headway.errors import RequestError
from headway.sampling import SamplingParams

_FILE = "generation_config.json"
_SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_MAX_TOKENS = "max_new_tokens"
_REMEDY = "correct the file, or remove the key"


def read_generation_config(path: Path) -> dict[str, Any]:
    """The content of the file in the model folder; empty if there is none.

    Raises ValueError, naming file, key and value, if a value that is used here is not valid.
    """
    content = read_json(path / _FILE)
    check_eos_token_ids(content.get("eos_token_id"), path / _FILE)
    if content.get(_MAX_TOKENS) == 0:  # a request may ask for no token; a model that gives none cannot be served
        raise ValueError(f"{str(path / _FILE)!r}: {_MAX_TOKENS} must be at least 1, got 0: {_REMEDY}")
    try:
        SamplingParams(**default_sampling(content))
    except RequestError as error:
        raise ValueError(f"{str(path / _FILE)!r}: {_as_in_the_file(str(error))}: {_REMEDY}") from error
    return content


def default_sampling(content: dict[str, Any]) -> dict[str, Any]:
    """Defaults for the fields of SamplingParams. max_tokens is a limit for every request of the server, as in vLLM."""
    found = {name: content[name] for name in _SAMPLING_FIELDS if content.get(name) is not None}
    if content.get(_MAX_TOKENS) is not None:
        found["max_tokens"] = content[_MAX_TOKENS]
    return found


def check_eos_token_ids(value: object, file: Path) -> None:
    """Raise ValueError unless `value`, the eos_token_id of a file, is None, a token id, or a list of token ids."""
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 1 << 31:
            raise ValueError(
                f"{str(file)!r}: eos_token_id must be a token id or a list of token ids, got {value!r:.100}: {_REMEDY}"
            )


def _as_in_the_file(message: str) -> str:
    return message.replace("max_tokens", _MAX_TOKENS, 1) if message.startswith("max_tokens") else message
