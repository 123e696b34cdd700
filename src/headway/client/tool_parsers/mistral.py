"""Calls as Mistral's models write them, behind a token of their own."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Collection

from headway.client.tool_parsers.marked_calls import MarkedCallsParser

_CALLS, _ARGUMENTS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_LONGEST_HEAD = 256  # characters of a name, and of an id behind it
_NAME = re.compile(r"\s*([^\s\[\]{}\"]+)\s*")
_HEAD_END = re.compile(r"\{|\[ARGS\]")
_SPACE = re.compile(r"\s*")


class MistralParser(MarkedCallsParser):
    """Both forms: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], and [TOOL_CALLS]name[ARGS]{...}, in which
    [CALL_ID]id may stand behind the name and [ARGS] be missing."""

    markers = (_CALLS, _ARGUMENTS, _ID)
    signs = (_CALLS,)

    def __init__(self, names: Collection[str], *, new_id: Callable[[], str] | None = None) -> None:
        super().__init__(names, new_id=new_id)
        self._in_list = False

    @staticmethod
    def new_id() -> str:
        """The chat templates of these models take ids of nine letters and digits alone."""
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))

    def _behind_marker(self, text: str, at: int) -> int:
        """Which form it is."""
        end = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        self._raw.append(text[at:end])
        if end == len(text):
            return end
        self._in_list = text[end] == "["
        if self._in_list:
            self._raw.append("[")
            end += 1
        if self._in_list or text[end] == "{":
            self._begin_read_call()
        else:
            self._state = self._head
        return end

    def _head(self, text: str, at: int) -> int:
        """The newer form, up to the arguments."""
        found = _HEAD_END.search(text, at, at + _LONGEST_HEAD)
        if found is None and len(text) - at < _LONGEST_HEAD:
            return self._keep(text, at)
        name = None if found is None else _NAME.match(text, at, found.start())
        behind = "" if found is None or name is None else text[name.end() : found.start()]
        if found is None or name is None or (behind and not behind.startswith(_ID)):
            self._give_up()
            return at
        end = found.end() if found[0] == _ARGUMENTS else found.start()
        self._raw.append(text[at:end])
        self._begin_read_call(name=name[1])
        return end

    def _after_call(self, text: str, at: int) -> int:
        at = self._skip_space(text, at)
        if at == len(text):
            return at
        self._state = self._begin
        if not self._in_list or text[at] not in ",]":
            return at
        self._blanks.clear()
        if text[at] == ",":
            self._begin_call()
        else:
            self._in_list = False
        return at + 1
