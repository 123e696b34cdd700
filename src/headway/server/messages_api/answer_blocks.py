"""The content blocks of an answer (thinking, text, uses of tools), built as the answer comes, with their events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct, field
from pydantic_core import from_json

from headway.client.answer_parser import AnswerDelta, ToolCallDelta

Event = tuple[str, dict[str, Any]]  # its type, and its fields


class Text(Struct):
    text: str = ""
    type: Literal["text"] = "text"


class Thinking(Struct):
    """signature: none; thoughts are read back as they are."""

    thinking: str = ""
    signature: str = ""
    type: Literal["thinking"] = "thinking"


class ToolUse(Struct):
    id: str
    name: str
    input: dict[str, Any] = field(default_factory=dict)
    type: Literal["tool_use"] = "tool_use"


Block = Text | Thinking | ToolUse


class AnswerBlocks:
    """One block is open at a time: text goes on in it until the answer turns to something else. blocks: so far."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._open: Block | None = None
        self._pieces: list[str] = []  # of the text of the open block
        self._call: int | None = None  # the index of the call that is open

    @property
    def uses_tools(self) -> bool:
        return any(isinstance(block, ToolUse) for block in self.blocks)

    def add(self, news: AnswerDelta) -> Iterator[Event]:
        """The events of what is new."""
        if news.reasoning:
            if not isinstance(self._open, Thinking):
                yield from self._begin(Thinking())
            yield self._delta("thinking_delta", "thinking", news.reasoning)
        if news.content:
            if not isinstance(self._open, Text):
                yield from self._begin(Text())
            yield self._delta("text_delta", "text", news.content)
        for part in news.tool_calls:
            yield from self._add_call(part)

    def close(self) -> Iterator[Event]:
        """Close the block that is open, if there is one."""
        block, self._open = self._open, None
        if block is None:
            return
        text = "".join(self._pieces)
        match block:
            case Text():
                block.text = text
            case Thinking():
                block.thinking = text
                yield self._delta("signature_delta", "signature", block.signature)
            case ToolUse():
                block.input = _arguments(text)
        self._pieces = []
        yield "content_block_stop", {"index": len(self.blocks) - 1}

    def _add_call(self, part: ToolCallDelta) -> Iterator[Event]:
        if not isinstance(self._open, ToolUse) or part.index != self._call:
            yield from self._begin(ToolUse(part.id or "", part.name or ""))
            self._call = part.index
        if part.arguments:
            yield self._delta("input_json_delta", "partial_json", part.arguments)

    def _begin(self, block: Block) -> Iterator[Event]:
        yield from self.close()
        self._open = block
        self.blocks.append(block)
        yield "content_block_start", {"index": len(self.blocks) - 1, "content_block": block}

    def _delta(self, kind: str, field: str, text: str) -> Event:
        """The event of a piece of text, which is in this field of it."""
        self._pieces.append(text)
        return "content_block_delta", {"index": len(self.blocks) - 1, "delta": {"type": kind, field: text}}


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call. An answer that was cut short may have cut them: then the complete ones
    are left."""
    try:
        value = from_json(text or "{}", allow_partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
