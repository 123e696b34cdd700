"""Calls as Hermes and Qwen write them: JSON in tags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headway.client.tool_parsers.json_tool_parser import JsonToolParser

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(JsonToolParser):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them, with text before and after."""

    markers = (_OPEN, _CLOSE)
    signs = (_OPEN,)
    contrary = ("<function=", "<arg_key>")  # models that write no JSON in the same tags

    @classmethod
    def tags(cls, schemas: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                "begin": f'{_OPEN}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ',
                "content": {"type": "json_schema", "json_schema": schema},
                "end": f"}}\n{_CLOSE}",
            }
            for name, schema in schemas.items()
        ]

    def _begin(self, text: str, at: int) -> int:
        found = self._find(_OPEN, text, at)
        if found < 0:
            return len(text)
        self._begin_call(_OPEN)
        return found + len(_OPEN)

    def _after_call(self, text: str, at: int) -> int:
        at = self._skip_space(text, at)
        if at == len(text):
            return at
        marker = self._next_of(text, at, _CLOSE)
        if marker == "":
            return len(text)
        self._state = self._begin
        if marker is None:
            return at
        self._blanks.clear()
        return at + len(marker)

    _after_no_call = _begin
