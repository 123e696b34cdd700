"""What the parsers of calls that are written as JSON have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection

from headway.client.tool_parsers.json_call import JsonCall
from headway.client.tool_parsers.tool_parser import ToolParser


class JsonToolParser(ToolParser):
    """A parser whose calls are JSON objects, one after the other or in a list."""

    def __init__(self, names: Collection[str], *, new_id: Callable[[], str] | None = None) -> None:
        super().__init__(names, new_id=new_id)
        self._call: JsonCall | None = None
        self._opened = False  # the call has been given out

    def _begin_call(self, prefix: str = "", *, name: str | None = None, strict: bool = False) -> None:
        """The next text is a call. prefix: what was read of it already. name: of the tool, if the text is the arguments
        alone. strict: take known names alone, with arguments: no marker says that this is a call."""
        self._call = JsonCall(
            prefix, patient=self.patient, name=name, names=self.names if strict else None, needs_arguments=strict
        )
        self._opened = False
        self._state = self._in_call

    @abstractmethod
    def _after_call(self, text: str, at: int) -> int:
        """The state behind a call."""

    @abstractmethod
    def _after_no_call(self, text: str, at: int) -> int:
        """The state behind text that was no call."""

    def _in_call(self, text: str, at: int) -> int:
        assert self._call is not None
        at = self._call.feed(text, at)
        self._give_out(self._call)
        return at

    def _give_out(self, call: JsonCall) -> None:
        if call.can_open and not self._opened:
            self._opened = True
            assert call.name is not None
            self._open(call.name)
        if self._opened:
            self._argue(call.take())
        if call.broken:
            self._call = None
            self._state = self._after_no_call
            self._say("".join(call.raw))
        elif call.complete:
            self._call = None
            self._state = self._after_call

    def _end(self, kept: str) -> None:
        if self._call is not None:
            self._say("".join(self._call.raw))
        super()._end(kept)
