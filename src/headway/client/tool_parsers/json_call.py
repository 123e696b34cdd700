"""One call that a model writes as a JSON object, in a text that comes in pieces."""

from __future__ import annotations

import re
from collections.abc import Container

from headway.client.tool_parsers.json_value import JsonValue, is_json, json_string

_SPACE = re.compile(r"[ \t\r\n]*")
_ARGUMENTS = ("arguments", "parameters")


class JsonCall:
    """Reads {"name": ..., "arguments": {...}}: keys in any order, "parameters" for "arguments", other keys ignored.
    Arguments may also be a string that holds the object, null or left out: these read as {}.

    name: the call is of this tool, and the text is its arguments alone.
    names: the only names that are taken; None: all. needs_arguments: an object without arguments is no call.
    patient: nothing is given out before the object is complete.
    raw: what has been read and is in no argument that was given out, for the case that this is no call.

    complete, broken: the object has ended; it is no call.
    """

    def __init__(
        self,
        prefix: str = "",
        *,
        patient: bool,
        name: str | None = None,
        names: Container[str] | None = None,
        needs_arguments: bool = False,
    ) -> None:
        self.raw = [prefix]
        self.name = name
        self.complete = self.broken = False
        self._patient = patient
        self._names = names
        self._needs_arguments = needs_arguments
        self._is_bare = name is not None
        self._expects = "{" if name is None else "value"
        self._key: str | None = None if name is None else "arguments"
        self._value: JsonValue | None = None
        self._pieces: list[str] = []  # of the value that is read
        self._arguments: list[str] = []  # that `take` has not given out
        self._begun = False  # the arguments are an object that has begun
        self._has_arguments = False

    @property
    def can_open(self) -> bool:
        """Whether this is a call, as far as it has been read: its name is known, and its arguments have begun."""
        return self.name is not None and (self.complete or (self._begun and not self._patient))

    def take(self) -> str:
        """The next piece of the arguments. Only after `can_open`."""
        arguments = "".join(self._arguments)
        self._arguments.clear()
        return arguments

    def feed(self, text: str, at: int) -> int:
        """The place behind the part of text[at:] that belongs to the object."""
        while at < len(text) and not self.complete and not self.broken:
            if self._value is not None:
                at = self._read_value(self._value, text, at)
                continue
            end = _SPACE.match(text, at).end()  # type: ignore[union-attr]
            if end < len(text):
                end = self._read_mark(text[end], end)
            self.raw.append(text[at:end])
            at = end
        return at

    def _read_mark(self, mark: str, at: int) -> int:
        """Read the character between values at `at`; returns the place behind it, or `at` if it belongs to no call."""
        expects = self._expects
        if expects == "value":
            self._begin_value(mark)
            return at
        if mark not in expects:
            self.broken = True
            return at
        if mark == '"':
            self._key = None
            self._begin_value(mark)
            return at
        if mark == "}":
            self._close()
        self._expects = {"{": '"}', ",": '"', ":": "value", "}": ""}[mark]
        return at + 1

    def _close(self) -> None:
        if self.name is None or (self._needs_arguments and not self._has_arguments):
            self.broken = True
            return
        if not self._has_arguments:
            self._arguments.append("{}")
        self.complete = True

    def _begin_value(self, mark: str) -> None:
        self._value = JsonValue()
        self._pieces = []
        if self._key in _ARGUMENTS:
            self.broken = self._has_arguments  # for the second time
            self._begun = mark == "{" and not self.broken
            self.broken = self.broken or (self._is_bare and not self._begun)

    def _read_value(self, value: JsonValue, text: str, at: int) -> int:
        end = value.feed(text, at)
        piece = text[at:end]
        self._pieces.append(piece)
        if self._key in _ARGUMENTS and self._begun:
            self._arguments.append(piece)
        if self._key in _ARGUMENTS and self.can_open:
            self.raw.clear()
        else:
            self.raw.append(piece)
        self.broken = value.broken
        if value.complete:
            self._value = None
            self._end_value("".join(self._pieces))
        return end

    def _end_value(self, value: str) -> None:
        key, self._key = self._key, None
        if key is None:
            self._key, self._expects = json_string(value), ":"
            self.broken = self._key is None
            return
        self._expects = ",}"
        if not is_json(value):
            self.broken = True
        elif key == "name":
            self.name = None if self.name is not None else json_string(value)
            self.broken = not self.name or (self._names is not None and self.name not in self._names)
            if self.can_open:  # the arguments came before, and are given out now
                self.raw.clear()
        elif key in _ARGUMENTS:
            self._has_arguments = True
            self.complete = self._is_bare
            if not self._begun:
                held = "{}" if value == "null" else json_string(value)
                self.broken = held is None or not held.lstrip().startswith("{") or not is_json(held)
                self._arguments.append(held or "")
