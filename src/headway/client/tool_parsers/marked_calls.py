"""What the parsers of calls behind a marker have in common: what they read before a call begins is not lost."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection

from headway.client.tool_parsers.json_tool_parser import JsonToolParser


class MarkedCallsParser(JsonToolParser):
    """The first of `markers` begins the calls; more text comes before the JSON of each. If that turns out to be no
    call, it is content."""

    def __init__(self, names: Collection[str], *, new_id: Callable[[], str] | None = None) -> None:
        super().__init__(names, new_id=new_id)
        self._raw: list[str] = []  # what has been read of a call that is not yet begun

    @abstractmethod
    def _behind_marker(self, text: str, at: int) -> int:
        """The state behind the marker that begins the calls."""

    def _begin(self, text: str, at: int) -> int:
        found = self._find(self.markers[0], text, at)
        if found < 0:
            return len(text)
        self._raw = [self.markers[0]]
        self._state = self._behind_marker
        return found + len(self.markers[0])

    def _after_no_call(self, text: str, at: int) -> int:
        return self._begin(text, at)

    def _end(self, kept: str) -> None:
        if self._call is None:
            self._say("".join(self._raw))
        super()._end(kept)

    def _begin_read_call(self, *, name: str | None = None) -> None:
        """What has been read is the beginning of a call. name: see `_begin_call`."""
        raw, self._raw = "".join(self._raw), []
        self._begin_call(raw, name=name)

    def _give_up(self) -> None:
        """What has been read is no call."""
        self._say("".join(self._raw))
        self._raw.clear()
        self._state = self._begin
