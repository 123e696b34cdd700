"""Calls as DeepSeek V3, R1 and V3.1 write them, between tokens of their own."""

from __future__ import annotations

import re

from headway.client.tool_parsers.marked_calls import MarkedCallsParser

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE = "```"
_LONGEST_HEAD = 512  # characters between the opening of a call and its arguments
_HEAD = re.compile(rf"\s*(?:function{_SEPARATOR}([^\s<]+)\s*{_FENCE}json\s*|([^\s<]+){_SEPARATOR}\s*)")


class DeepSeekV3Parser(MarkedCallsParser):
    """A list of calls between markers: "function", the name and the arguments in a fence of Markdown, or as V3.1 writes
    them the name and the arguments alone."""

    markers = (_CALLS, _CALLS_END, _CALL, _SEPARATOR, _CALL_END)
    signs = (_CALLS,)

    def _behind_marker(self, text: str, at: int) -> int:
        """Before a call, or the end of the list."""
        if text[at].isspace():
            (self._raw if self._raw else self._blanks).append(text[at])
            return at + 1
        marker = self._next_of(text, at, _CALL, _CALLS_END)
        if marker == "":
            return len(text)
        if marker == _CALL:
            self._blanks.clear()
            self._raw.append(_CALL)
            self._state = self._head
            return at + len(_CALL)
        if marker == _CALLS_END and self.num_calls:
            self._state = self._begin
            self._blanks.clear()
            return at + len(_CALLS_END)
        self._give_up()
        return at

    def _head(self, text: str, at: int) -> int:
        """Up to the arguments."""
        found = text.find("{", at, at + _LONGEST_HEAD)
        if found < 0 and len(text) - at < _LONGEST_HEAD:
            return self._keep(text, at)
        head = _HEAD.fullmatch(text, at, max(at, found))
        if head is None:
            self._give_up()
            return at
        self._raw.append(text[at:found])
        self._begin_read_call(name=head[1] or head[2])
        return found

    def _after_call(self, text: str, at: int) -> int:
        at = self._skip_space(text, at)
        if at == len(text):
            return at
        marker = self._next_of(text, at, _FENCE, _CALL_END)
        if marker == "":
            return len(text)
        if marker is None:
            self._state = self._begin
            return at
        self._blanks.clear()
        if marker == _CALL_END:
            self._state = self._behind_marker
        return at + len(marker)
