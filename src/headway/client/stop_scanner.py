"""Finds stop strings in the text of one sequence."""

from __future__ import annotations

from collections.abc import Sequence


def begun_at(stop: str, text: str) -> int:
    """Where the longest proper start of `stop` that ends `text` begins; len(text) if there is none."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return at
        at = text.find(stop[0], at + 1)
    return len(text)


class StopScanner:
    """Looks for stop strings in a text that comes in pieces. It keeps back a text that may start a stop string.

    The stop string that is complete first wins, so the answer does not depend on how the text was cut into pieces. Of
    several that end at the same character, the longest wins.
    """

    __slots__ = ("_include", "_pending", "_stops")

    def __init__(self, stops: Sequence[str], include_in_output: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include_in_output
        self._pending = ""  # the longest end of the text so far that starts a stop string

    def feed(self, piece: str, *, search: bool = True) -> tuple[str, str | None]:
        """(the text that can be shown now, the stop string found or None). Feed nothing after a stop string is found.

        search: False: stop strings that this piece completes are ignored.
        """
        text = self._pending + piece
        found: str | None = None
        if search:
            end = len(text) + 1
            for stop in self._stops:
                at = text.find(stop)
                if at >= 0 and (at + len(stop), -len(stop)) < (end, -len(found or "")):
                    found, end = stop, at + len(stop)
            if found is not None:
                self._pending = ""
                return text[: end if self._include else end - len(found)], found
        cut = min((begun_at(stop, text) for stop in self._stops), default=len(text))
        self._pending = text[cut:]
        return text[:cut], None

    def rest(self) -> str:
        """The text that is still kept back. Call it when no more text comes."""
        pending, self._pending = self._pending, ""
        return pending
