"""From the text of an answer to what the text says: reasoning, content, and calls of tools.

Each answer has a parser of its own. It takes the text in pieces, as they come, and returns what each piece adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headway.client.reasoning_parsers import ReasoningParser
    from headway.client.tool_parsers import ToolParser


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
    """The parser of one answer. Without any option all text is content.

    reasoning: parts the reasoning from the rest. show_reasoning: give it to the client.
    tools: finds calls of tools in what is no reasoning. parallel: give more than the first to the client.
    hidden: special tokens that the text shows for the parsers alone; the client does not see them.
    """

    def __init__(
        self,
        *,
        reasoning: ReasoningParser | None = None,
        tools: ToolParser | None = None,
        show_reasoning: bool = True,
        parallel: bool = True,
        hidden: Sequence[str] = (),
    ) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._show_reasoning = show_reasoning
        self._parallel = parallel
        self._hidden = hidden

    @property
    def has_called(self) -> bool:
        """Whether there has been a call of a tool."""
        return self._tools is not None and self._tools.num_calls > 0

    @property
    def has_decided_to_call(self) -> bool:
        """Whether there has been a call of a tool that the client did not name."""
        return self.has_called and self._tools is not None and not self._tools.is_named

    def feed(self, text: str) -> AnswerDelta:
        """What the next piece of the text adds."""
        thought = ""
        if self._reasoning is not None and not self._reasoning.is_over:
            thought, text = self._reasoning.feed(text)
        delta = AnswerDelta(text) if self._tools is None else self._tools.feed(text)
        return self._shown(thought, delta)

    def finish(self) -> AnswerDelta:
        """The rest, when no more text comes."""
        thought = text = ""
        if self._reasoning is not None:
            thought, text = self._reasoning.finish()
        delta = AnswerDelta(text)
        if self._tools is not None:
            delta = self._tools.feed(text)
            delta.append(self._tools.finish())
        return self._shown(thought, delta)

    def whole(self, text: str) -> AnswerDelta:
        """What an answer of this text says, in one part per call. Use this or `feed`, not both. Here a call that is
        malformed or cut off is content; in pieces what has been given out of it stays given out."""
        if self._tools is not None:
            self._tools.patient = not self._tools.is_forced
        answer = AnswerDelta()
        answer.append(self.feed(text))
        answer.append(self.finish())
        return answer

    def _shown(self, thought: str, delta: AnswerDelta) -> AnswerDelta:
        if self._show_reasoning:
            delta.reasoning = self._visible(thought)
        delta.content = self._visible(delta.content)
        if not self._parallel:
            delta.tool_calls = [part for part in delta.tool_calls if part.index == 0]
        return delta

    def _visible(self, text: str) -> str:
        for token in self._hidden:
            text = text.replace(token, "")
        return text
