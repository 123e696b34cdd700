"""Which engine a prompt's KV comes from, where this process is to name it.

engine: blocks are there --> find an engine that computes the prompt --> tell the engine here, which pulls
                              '-- none: the engine computes the prompt
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from headway.wire import to_engine

logger = logging.getLogger(__name__)

Tell = Callable[[dict[str, Any] | None], None]
"""Takes the `kv_transfer_params` of the engine that lends; None: no engine does. Only the first call counts."""

FindSource = Callable[[Tell], Coroutine[Any, Any, None]]
"""Finds the source of a prompt. It may go on after it has told: it is cancelled when the request ends."""


class KVSources:
    """The searches of one process. For one event loop. send: sends a message to the engine."""

    def __init__(self, send: Callable[[to_engine.PullFrom], None]) -> None:
        self._send = send
        self._expected: dict[int, FindSource] = {}
        self._searches: dict[int, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._expected) + len(self._searches)

    def expect(self, uid: int, find: FindSource) -> None:
        """The engine may ask for the source of this request."""
        self._expected[uid] = find

    def begin(self, uid: int) -> None:
        """The engine asks: it has blocks for the prompt."""
        find = self._expected.pop(uid, None)
        if find is None:  # it has ended here, and the engine is about to hear of that
            self._send(to_engine.PullFrom(uid, None))
            return
        self._searches[uid] = search = asyncio.ensure_future(find(partial(self._tell, uid)))
        search.add_done_callback(partial(self._end, uid))

    def drop(self, uid: int) -> None:
        """The request has ended. Other uids are ignored."""
        self._expected.pop(uid, None)
        if (search := self._searches.pop(uid, None)) is not None:
            search.cancel()

    def _tell(self, uid: int, params: dict[str, Any] | None) -> None:
        if uid in self._searches:
            self._send(to_engine.PullFrom(uid, params))

    def _end(self, uid: int, search: asyncio.Task[None]) -> None:
        if not search.cancelled() and (error := search.exception()) is not None:
            logger.error("no source of KV was found for request %d", uid, exc_info=error)
            self._tell(uid, None)
        self._searches.pop(uid, None)
