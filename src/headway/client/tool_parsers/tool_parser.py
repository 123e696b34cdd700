"""What all parsers of tool calls have in common."""

from __future__ import annotations

import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from headway.client.answer_parser import AnswerDelta, ToolCallDelta
from headway.client.stop_scanner import begun_at

State = Callable[[str, int], int]
_SPACE = re.compile(r"\s*")


class ToolParser(ABC):
    """Finds the calls of tools in the text of one answer, which comes in pieces. All else is content, but for white
    space around calls. Text that begins as a call and is none is content too.

    markers: the texts that tell calls from other text, in the form of this parser. Some may be special tokens of the
        tokenizer; the text of the answer must show these.
    signs: texts in a chat template of which each says that the model has this form. contrary: texts that say it has
        another.
    names: of the tools. A parser whose calls have no markers takes no other names; the others give the client any name.
    is_forced: a grammar makes the model call, so a call that is cut off is a call. is_named: the client says which.
    patient: whether a call is given out only when it is complete. Else its arguments are given out as they come, and
        stay given out when the rest turns out to be no call.
    new_id: makes the ids of calls, if they are not those of this form.
    num_calls: the calls so far.
    """

    markers: ClassVar[tuple[str, ...]] = ()
    signs: ClassVar[tuple[str, ...]] = ()
    contrary: ClassVar[tuple[str, ...]] = ()
    is_forced: ClassVar[bool] = False
    is_named: ClassVar[bool] = False

    def __init__(self, names: Collection[str], *, new_id: Callable[[], str] | None = None) -> None:
        self.names = frozenset(names)
        self.patient = False
        if new_id is not None:
            self.new_id = new_id  # type: ignore[method-assign]
        self.num_calls = 0
        self._state: State = self._begin
        self._kept = ""  # text that may become a marker, with the text to come
        self._content: list[str] = []
        self._blanks: list[str] = []  # white space that is content only if content follows
        self._calls: list[ToolCallDelta] = []

    @staticmethod
    def new_id() -> str:
        """An id for a call, as OpenAI's API writes them."""
        return f"call_{uuid.uuid4().hex[:24]}"

    @classmethod
    def tags(cls, schemas: Mapping[str, Any]) -> list[dict[str, Any]] | None:  # noqa: ARG003
        """The calls of this form as tags of a structural tag; each begins with the first of `markers`. None: no grammar
        holds calls of this form to a schema. schemas: of the arguments of each tool."""
        return None

    def feed(self, text: str) -> AnswerDelta:
        """What the next piece of the text adds."""
        text = self._kept + text
        self._kept = ""
        at = 0
        while at < len(text):
            at = self._state(text, at)
        return self._take()

    def finish(self) -> AnswerDelta:
        """The rest, when no more text comes."""
        kept, self._kept = self._kept, ""
        self._end(kept)
        if not self.num_calls:
            self._content += self._blanks
        return self._take()

    # -- for the parsers

    @abstractmethod
    def _begin(self, text: str, at: int) -> int:
        """The first state. A state reads text[at:] as far as it goes, and returns the place behind; it may change
        `_state`. What it cannot decide without more text it gives to `_keep`: never more than a marker."""

    def _end(self, kept: str) -> None:
        """No more text comes. kept: what a state has kept."""
        self._say(kept)

    def _keep(self, text: str, at: int) -> int:
        """Wait for more text: the state sees text[at:] again, with more."""
        self._kept = text[at:]
        return len(text)

    def _say(self, text: str) -> None:
        """This text is content."""
        kept = len(text.rstrip())
        if kept:
            self._content += self._blanks
            self._blanks.clear()
            self._content.append(text[:kept])
        if kept < len(text):
            self._blanks.append(text[kept:])

    def _say_all(self, text: str, at: int) -> int:
        """A state in which all text is content."""
        self._say(text[at:])
        return len(text)

    def _skip_space(self, text: str, at: int) -> int:
        """The place behind white space, which is content if content follows."""
        end = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        self._say(text[at:end])
        return end

    def _find(self, marker: str, text: str, at: int) -> int:
        """The place of the marker in text[at:], or -1: the text before it is content, and the start of a marker is
        kept."""
        found = text.find(marker, at)
        if found < 0:
            begun = max(at, begun_at(marker, text))
            self._say(text[at:begun])
            self._keep(text, begun)
        else:
            self._say(text[at:found])
        return found

    def _next_of(self, text: str, at: int, *markers: str) -> str | None:
        """The marker that text[at:] begins with; None: it begins with none; "": more text must tell, and it is kept."""
        rest = text[at : at + max(map(len, markers))]
        for marker in markers:
            if rest.startswith(marker):
                return marker
        if not any(marker.startswith(rest) for marker in markers):
            return None
        self._keep(text, at)
        return ""

    def _open(self, name: str) -> None:
        """A call begins."""
        self._blanks.clear()
        self._calls.append(ToolCallDelta(self.num_calls, self.new_id(), name, ""))
        self.num_calls += 1

    def _argue(self, arguments: str) -> None:
        """The next piece of the arguments of the last call."""
        if arguments:
            self._calls.append(ToolCallDelta(self.num_calls - 1, None, None, arguments))

    def _take(self) -> AnswerDelta:
        delta = AnswerDelta("".join(self._content))
        self._content.clear()
        if self._calls:
            delta.tool_calls, self._calls = self._calls, []
        return delta
