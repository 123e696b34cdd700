"""The text of an error, in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_MOST_NAMED = 8  # of the things that are wrong with one body


def first_line(error: BaseException) -> str:
    """The first line of the text of an error; the name of its type if the text is empty."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def one_line(error: BaseException) -> str:
    """The whole text of an error in one line: the remedy often stands at its end. At most 600 characters."""
    text = " ".join(str(error).split())
    name = "" if isinstance(error, ValueError | OSError) and text else type(error).__name__
    return f"{name}: {text}"[:600].strip(": ")


def describe(error: ValidationError) -> tuple[str, str | None]:
    """(what is wrong with a body or an argument, in one line; the name of the first field that is wrong, or None)."""
    worst: dict[tuple[str | int, ...], ErrorDetails] = {}
    for item in error.errors(include_url=False):
        # A field that may have several types brings one error for each type. The deepest error is the best guess.
        field = tuple(_path(item["loc"])[:1])
        if field not in worst or len(item["loc"]) > len(worst[field]["loc"]):
            worst[field] = item
    described = [_describe(item) for item in worst.values()]
    return bounded("; ", [message for message, _ in described]), described[0][1]


def bounded(separator: str, items: Sequence[str], show: Callable[[str], str] = str) -> str:
    """The items in one line: the first of them as `show` makes them, and how many more there are."""
    more = len(items) - _MOST_NAMED
    shown = [show(item) for item in items[:_MOST_NAMED]]
    return separator.join([*shown, f"and {more} more"] if more > 0 else shown)


def _describe(first: ErrorDetails) -> tuple[str, str | None]:
    path = _path(first["loc"])
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    message = _SHAPES.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "unknown_field":
            field = f"{field}.{first['ctx']['name']}".lstrip(".")
            return f"unknown field {field!r:.300}", field
        case "missing":
            return f"the field {field!r} is required", field
        case "json_invalid":
            return f"the body is not valid JSON in UTF-8: {message.removeprefix('Invalid JSON: ')}", None
        case "value_error":
            return message, field or None
    if not path:
        return "the body must be a JSON object", None
    value = first.get("input")
    shown = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return f"{field}: {message}, got {shown[:100]}", field


def _path(location: tuple[str | int, ...]) -> list[str | int]:
    """The path to an error, without the names of union branches that pydantic adds ("str", "list[str]")."""
    return [part for part in location if isinstance(part, int) or not _BRANCH.match(part)]


# pydantic has two texts for each of these errors, one for JSON and one for Python. Here both get the same text.
_SHAPES = {
    "model_type": "Input should be an object",
    "dict_type": "Input should be an object",
    "list_type": "Input should be a list",
}
_BRANCH = re.compile(r"(str|int|float|bool|none)$|list\[|constrained-|function-|#")
