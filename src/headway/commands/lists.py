"""Options that take several values with commas between them: `--running 64,256`.

Each function here makes a `parser` for `typer.Option`. A parser raises BadParameter with the value and the allowed
values. Defaults are tuples, which pass unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

Parser = Callable[[Any], Any]


def whole_numbers(low: int, high: int) -> Parser:
    """Whole numbers in [low, high]."""
    return _parser(int, lambda value: low <= value <= high, f"whole numbers in [{low}, {high}]")


def numbers(low: float, high: float) -> Parser:
    """Numbers in [low, high]; inf where `high` is."""
    return _parser(float, lambda value: low <= value <= high, f"numbers in [{low:g}, {high:g}]")


def positive_numbers() -> Parser:
    """Numbers above 0, inf among them."""
    return _parser(float, lambda value: value > 0, "numbers above 0, or inf,")


def names(known: Sequence[str]) -> Parser:
    """Some of the known names, each once."""
    return _parser(str, known.__contains__, f"of {', '.join(known)}, each once,", once=True)


def _parser(
    kind: Callable[[str], Any], is_allowed: Callable[[Any], bool], allowed: str, *, once: bool = False
) -> Parser:
    def parse(given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            values = tuple(kind(part) for part in given.split(","))
        except ValueError:
            values = ()
        if not values or not all(map(is_allowed, values)) or (once and len(set(values)) < len(values)):
            raise typer.BadParameter(f"must be {allowed} with commas between them, got {given!r}")
        return values

    return parse
