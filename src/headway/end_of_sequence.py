"""The token with which a tokenizer ends a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headway.checkpoint import read_json

_NAMING = ("tokenizer_config.json", "special_tokens_map.json")  # files that name the token, the first that does counts


def end_of_sequence_id(tokenizer: str) -> int | None:
    """The id of the tokenizer's end-of-sequence token, read from its files; None if they name none.

    The files say it at once, the tokenizer only after seconds of loading. Raises ValueError for a broken file.

    tokenizer: a folder or a hub id.
    """
    contents = {name: _read(tokenizer, name) for name in _NAMING}
    token = next((token for content in contents.values() if (token := _text(content.get("eos_token")))), None)
    if token is None:
        return None
    for text, number in _added_tokens(contents["tokenizer_config.json"]):
        if text == token:
            return number
    return _id_in_vocabulary(_read(tokenizer, "tokenizer.json"), token)


def _read(tokenizer: str, name: str) -> dict[str, Any]:
    """The content of a JSON file of the tokenizer; empty if there is none. Raises ValueError, naming the file."""
    path = _find(tokenizer, name)
    return {} if path is None else read_json(path)


def _find(tokenizer: str, name: str) -> Path | None:
    folder = Path(tokenizer).expanduser()
    if folder.is_dir():
        path = folder / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            tokenizer,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no such tokenizer: it is refused when it is loaded
        return None
    return None if found is None else Path(found)


def _text(token: Any) -> str | None:
    """The text of a special token, which files write as a text or as a record with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _added_tokens(config: dict[str, Any]) -> Iterator[tuple[str | None, int]]:
    added = config.get("added_tokens_decoder")
    for number, token in added.items() if isinstance(added, dict) else ():
        if number.isdecimal():
            yield _text(token), int(number)


def _id_in_vocabulary(content: dict[str, Any], token: str) -> int | None:
    """The id of a token in the content of tokenizer.json."""
    for added in content.get("added_tokens") or ():
        if added.get("content") == token:
            return int(added["id"])
    vocabulary = (content.get("model") or {}).get("vocab")
    if isinstance(vocabulary, dict):
        number = vocabulary.get(token)
        return None if number is None else int(number)
    for at, entry in enumerate(vocabulary or ()):  # Unigram: a list of [token, score]
        if entry[0] == token:
            return at
    return None
