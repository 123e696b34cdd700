"""Reasoning between tags."""

from __future__ import annotations

from typing import ClassVar

from headway.client.stop_scanner import begun_at

_MOST_BLANKS = 64  # white space that may stand before the opening tag


class ReasoningParser:
    """Parts the reasoning of one answer from what follows: <think>reasoning</think>content. The answer may begin within
    the reasoning, or behind it: the prompt tells that.

    prompt: the text of the prompt, whose end may open or close the reasoning.
    begins_inside: an answer that does not begin with the opening tag is reasoning up to the closing tag, if the prompt
        does not tell.
    is_over: all further text is content.
    """

    opening: ClassVar[str] = "<think>"
    closing: ClassVar[str] = "</think>"
    begins_inside: ClassVar[bool]

    def __init__(self, prompt: str = "") -> None:
        told = self.state_of(prompt)
        self.is_over = told is False
        self._inside = told is True
        self._kept = ""

    @classmethod
    def state_of(cls, prompt: str) -> bool | None:
        """Whether an answer to this prompt begins within the reasoning; None: the prompt does not tell."""
        end = prompt.rstrip()
        if end.endswith(cls.closing):
            return False
        return True if end.endswith(cls.opening) else None

    def feed(self, text: str) -> tuple[str, str]:
        """(reasoning, content) that the next piece of the text adds."""
        if self.is_over:
            return "", text
        text, self._kept = self._kept + text, ""
        if not self._inside:
            begun = text.lstrip()
            if len(text) - len(begun) > _MOST_BLANKS:
                begun = text  # no tag begins this answer
            elif self.opening.startswith(begun) and begun != self.opening:
                self._kept = text
                return "", ""
            if not begun.startswith(self.opening) and not self.begins_inside:
                self.is_over = True
                return "", text
            self._inside = True
            if begun.startswith(self.opening):
                text = begun[len(self.opening) :]
        found = text.find(self.closing)
        if found >= 0:
            self.is_over = True
            return text[:found], text[found + len(self.closing) :]
        begun_closing = begun_at(self.closing, text)
        self._kept = text[begun_closing:]
        return text[:begun_closing], ""

    def finish(self) -> tuple[str, str]:
        """(reasoning, content) that is left, when no more text comes."""
        kept, self._kept = self._kept, ""
        return (kept, "") if self._inside else ("", kept)


class DeepSeekR1Reasoning(ReasoningParser):
    """An answer begins with reasoning always, with or without its opening tag."""

    begins_inside = True


class Qwen3Reasoning(ReasoningParser):
    """An answer begins with reasoning if it begins with the opening tag, or the prompt ends with it."""

    begins_inside = False


class MistralReasoning(Qwen3Reasoning):
    """The same with other tags, which are special tokens."""

    opening = "[THINK]"
    closing = "[/THINK]"
