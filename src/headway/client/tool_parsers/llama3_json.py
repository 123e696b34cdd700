"""Calls as Llama 3 writes them: the answer is JSON."""

from __future__ import annotations

from headway.client.tool_parsers.json_tool_parser import JsonToolParser

_TAG = "<|python_tag|>"


class Llama3JsonParser(JsonToolParser):
    """{"name": ..., "parameters": {...}} at the start of the answer, perhaps behind <|python_tag|>; more of them may
    follow, with semicolons between. Without the tag, an object that names no tool or has no parameters is content."""

    markers = (_TAG,)
    signs = (_TAG, '{"name": function name, "parameters":')

    def _begin(self, text: str, at: int) -> int:
        at = self._skip_space(text, at)
        if at == len(text):
            return at
        marker = self._next_of(text, at, _TAG)
        if marker == "":
            return len(text)
        if marker is not None:
            self._begin_call(_TAG)
            return at + len(_TAG)
        if text[at] == "{":
            self._begin_call(strict=True)
        else:
            self._state = self._say_all
        return at

    def _after_call(self, text: str, at: int) -> int:
        at = self._skip_space(text, at)
        if at == len(text):
            return at
        self._state = self._begin
        if text[at] != ";":
            return at
        self._blanks.clear()
        return at + 1

    _after_no_call = JsonToolParser._say_all
