"""Where a JSON value ends, in a text that comes in pieces."""

from __future__ import annotations

import re

import msgspec

MAX_DEPTH = 64  # brackets that are open at once; deeper values are no arguments of a call
_PLAIN = re.compile(r'[^"\\]*')  # in a string
_BRACKET = re.compile(r'["{}\[\]]')
_SCALAR = re.compile(r"[^,\]}\s]*")
_CLOSER = {"{": "}", "[": "]"}


class JsonValue:
    """Finds the end of one value by brackets and strings alone; `is_json` checks what lies between. Each character is
    looked at once.

    complete: the value has ended. broken: its brackets do not match, or there are too many.
    """

    __slots__ = ("_begun", "_escaped", "_in_string", "_open", "broken", "complete")

    def __init__(self) -> None:
        self.complete = self.broken = False
        self._begun = self._in_string = self._escaped = False
        self._open: list[str] = []  # what closes each open bracket

    def feed(self, text: str, at: int) -> int:
        """The place behind the part of text[at:] that belongs to the value. It begins with the value: no white space
        stands before."""
        while at < len(text) and not self.complete and not self.broken:
            if self._in_string:
                at = self._string(text, at)
            elif self._open or (not self._begun and text[at] in '"{['):
                at = self._bracket(text, at)
            else:
                at = _SCALAR.match(text, at).end()  # type: ignore[union-attr]
                self.complete = at < len(text)
            self._begun = True
        return at

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        at = _PLAIN.match(text, at).end()  # type: ignore[union-attr]
        if at == len(text):
            return at
        if text[at] == "\\":
            self._escaped = True
        else:
            self._in_string = False
            self.complete = not self._open
        return at + 1

    def _bracket(self, text: str, at: int) -> int:
        found = _BRACKET.search(text, at)
        if found is None:
            return len(text)
        mark = found[0]
        if mark == '"':
            self._in_string = True
        elif mark in _CLOSER:
            self._open.append(_CLOSER[mark])
            self.broken = len(self._open) > MAX_DEPTH
        elif mark == self._open.pop():
            self.complete = not self._open
        else:
            self.broken = True
        return found.end()


def is_json(text: str) -> bool:
    """Whether a text is one JSON value."""
    try:
        msgspec.json.decode(text.encode(), type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    return True


def json_string(text: str) -> str | None:
    """The string that a JSON text is; None if it is none."""
    try:
        return msgspec.json.decode(text.encode(), type=str)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
