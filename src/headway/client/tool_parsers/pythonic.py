"""Calls as Llama 4 and others write them: a list of calls in Python."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Collection
from typing import Any

from headway.client.tool_parsers.tool_parser import ToolParser

_START, _END = "<|python_start|>", "<|python_end|>"
_LONGEST = 2**18  # characters that are read as Python
_LONGEST_NAME = 256
_FIRST = re.compile(r"\[\s*([A-Za-z_][\w.]*)?\s*(\()?")
_CONSTANTS = {"true": True, "false": False, "null": None}


class PythonicParser(ToolParser):
    """[weather(city="Paris"), search(q="x")] as the whole answer, perhaps between <|python_start|> and <|python_end|>.
    It is read when the answer is complete: before, no call can be told from text. A list that does not begin with a
    call of one of the tools is content at once."""

    markers = (_START, _END)
    signs = (_START, "[func_name1(")

    def __init__(self, names: Collection[str], *, new_id: Callable[[], str] | None = None) -> None:
        super().__init__(names, new_id=new_id)
        self._raw: list[str] = []

    def _begin(self, text: str, at: int) -> int:
        at = self._skip_space(text, at)
        if at == len(text):
            return at
        marker = self._next_of(text, at, _START)
        if marker == "":
            return len(text)
        if marker is not None and not self._raw:
            self._raw.append(marker)
            return at + len(marker)
        first = _FIRST.match(text, at)
        if first is None:
            return self._no_call(at)
        if first[2] is None and first.end() == len(text) and len(text) - at < _LONGEST_NAME:
            return self._keep(text, at)
        if first[2] is None or first[1] not in self.names:
            return self._no_call(at)
        self._state = self._collect
        return at

    def _no_call(self, at: int) -> int:
        self._say("".join(self._raw))
        self._raw.clear()
        self._state = self._say_all
        return at

    def _collect(self, text: str, at: int) -> int:
        self._raw.append(text[at:])
        return len(text)

    def _end(self, kept: str) -> None:
        raw = "".join(self._raw)
        calls = _calls(raw.removeprefix(_START).strip().removesuffix(_END), self.names)
        if calls is None:
            self._say(raw)
        for name, arguments in calls or ():
            self._open(name)
            self._argue(arguments)
        super()._end(kept)


def _calls(text: str, names: Collection[str]) -> list[tuple[str, str]] | None:
    """The names and arguments of a list of calls; None if the text is none."""
    if not text or len(text) > _LONGEST:
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        return [_call(node, names) for node in tree.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _call(node: ast.expr, names: Collection[str]) -> tuple[str, str]:
    """Raises ValueError for what is no call, and TypeError for arguments that are no JSON."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with named arguments")
    name = ast.unparse(node.func)
    if name not in names:
        raise ValueError("no tool")
    arguments = {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if None in arguments:
        raise ValueError("arguments without names")
    return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    return ast.literal_eval(node)
