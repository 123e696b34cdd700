"""The items of an answer (reasoning, a message, calls of functions), built as the answer comes, with their events."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct, field

from headway.client.answer_parser import AnswerDelta, ToolCallDelta

Status = Literal["in_progress", "completed", "incomplete"]
Event = tuple[str, dict[str, Any]]  # its type, and its fields; items in it change with the next event


class OutputText(Struct):
    text: str = ""
    annotations: list[Any] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    type: Literal["output_text"] = "output_text"


class ReasoningText(Struct):
    text: str = ""
    type: Literal["reasoning_text"] = "reasoning_text"


class Message(Struct):
    id: str
    content: list[OutputText] = field(default_factory=list)
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class Reasoning(Struct):
    id: str
    content: list[ReasoningText] = field(default_factory=list)
    summary: list[Any] = field(default_factory=list)
    encrypted_content: None = None
    status: Status = "in_progress"
    type: Literal["reasoning"] = "reasoning"


class FunctionCall(Struct):
    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"
    type: Literal["function_call"] = "function_call"


Item = Message | Reasoning | FunctionCall


class AnswerItems:
    """One item is open at a time: text goes on in it until the answer turns to something else. items: so far."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._open: Item | None = None
        self._pieces: list[str] = []  # of the text of the open item
        self._call: int | None = None  # the index of the call that is open

    def add(self, news: AnswerDelta, logprobs: list[Any] | None = None) -> Iterator[Event]:
        """The events of what is new. logprobs: of its tokens; they are told with the content."""
        if news.reasoning:
            yield from self._open_text(Reasoning)
            yield self._delta("response.reasoning_text.delta", news.reasoning, content_index=0)
        if news.content or (logprobs and not (news.reasoning or news.tool_calls)):
            yield from self._open_text(Message)
            assert isinstance(self._open, Message)
            self._open.content[0].logprobs += logprobs or ()
            yield self._delta("response.output_text.delta", news.content, content_index=0, logprobs=logprobs or [])
        for part in news.tool_calls:
            yield from self._add_call(part)

    def close(self, status: Status = "completed") -> Iterator[Event]:
        """Close the item that is open, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return
        text = "".join(self._pieces)
        self._pieces = []
        at = {"item_id": item.id, "output_index": len(self.items) - 1}
        match item:
            case FunctionCall():
                item.arguments = text
                yield "response.function_call_arguments.done", {**at, "name": item.name, "arguments": text}
            case Reasoning(content=[part]):
                part.text = text
                yield "response.reasoning_text.done", {**at, "content_index": 0, "text": text}
                yield "response.content_part.done", {**at, "content_index": 0, "part": part}
            case Message(content=[part]):
                part.text = text
                done = {**at, "content_index": 0, "text": text, "logprobs": part.logprobs}
                yield "response.output_text.done", done
                yield "response.content_part.done", {**at, "content_index": 0, "part": part}
        item.status = status
        yield "response.output_item.done", {"output_index": len(self.items) - 1, "item": item}

    def open_message(self) -> Iterator[Event]:
        """Open a message without any text."""
        yield from self._open_text(Message)

    def _open_text(self, kind: type[Message] | type[Reasoning]) -> Iterator[Event]:
        if isinstance(self._open, kind):
            return
        yield from self.close()
        item = Message(f"msg_{uuid.uuid4().hex}") if kind is Message else Reasoning(f"rs_{uuid.uuid4().hex}")
        yield self._begin(item)
        part = OutputText() if kind is Message else ReasoningText()
        item.content.append(part)  # type: ignore[arg-type]
        at = {"item_id": item.id, "output_index": len(self.items) - 1, "content_index": 0}
        yield "response.content_part.added", {**at, "part": part}

    def _add_call(self, part: ToolCallDelta) -> Iterator[Event]:
        if not isinstance(self._open, FunctionCall) or part.index != self._call:
            yield from self.close()
            self._call = part.index
            yield self._begin(FunctionCall(f"fc_{uuid.uuid4().hex}", part.id or "", part.name or ""))
        if part.arguments:
            yield self._delta("response.function_call_arguments.delta", part.arguments)

    def _begin(self, item: Item) -> Event:
        self._open = item
        self.items.append(item)
        return "response.output_item.added", {"output_index": len(self.items) - 1, "item": item}

    def _delta(self, kind: str, text: str, **more: Any) -> Event:
        assert self._open is not None
        self._pieces.append(text)
        return kind, {"item_id": self._open.id, "output_index": len(self.items) - 1, "delta": text, **more}
