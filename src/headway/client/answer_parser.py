"""From the text of an answer to what the text says: reasoning, content, and calls of tools.

Each answer has a parser of its own. It takes the text in pieces, as they come, and returns what each piece adds.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field


@dataclass(slots=True)
class ToolCallDelta:
    """The new part of one call. index: of the call in its answer. id, name: in the first part alone, whose `arguments`
    are empty. arguments: the next piece of the JSON text."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(slots=True)
class AnswerDelta:
    """The new part of one answer. tool_calls: at most one part per call and field, in their order."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.content or self.reasoning or self.tool_calls)

    def append(self, later: AnswerDelta) -> None:
        """Take in the next delta of the same answer. The parts of one call become one part."""
        self.content += later.content
        self.reasoning += later.reasoning
        for part in later.tool_calls:
            if part.id is None and self.tool_calls and self.tool_calls[-1].index == part.index:
                self.tool_calls[-1].arguments += part.arguments
            else:
                self.tool_calls.append(part)


class AnswerParser:
    """The parser of one answer, in which all text is content.

    num_calls: the calls of tools so far.
    """

    num_calls: int = 0

    def feed(self, text: str) -> AnswerDelta:
        """What the next piece of the text adds."""
        return AnswerDelta(content=text)

    def finish(self) -> AnswerDelta:
        """The rest, when no more text comes."""
        return AnswerDelta()

    def whole(self, text: str) -> AnswerDelta:
        """What an answer of this text says. Use this or `feed`, not both. One part per call."""
        answer = self.feed(text)
        answer.append(self.finish())
        return answer


def new_call_id() -> str:
    """An id for a call, as OpenAI's API writes them."""
    return f"call_{uuid.uuid4().hex[:24]}"
