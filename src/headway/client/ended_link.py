"""What a client has instead of a link to an engine process that ended before the client came."""

from __future__ import annotations

import asyncio

from headway.wire import to_client, to_engine


class EndedLink:
    """A `Link` to an engine process that is gone. how: it ended, in a few words."""

    pid = 0  # of no process

    def __init__(self, how: str) -> None:
        self._how = how

    def send(self, _message: to_engine.ToEngine) -> None:
        """Nothing gets it."""

    async def receive(self) -> to_client.ToClient:
        """Nothing comes: waits until it is cancelled."""
        return await asyncio.get_running_loop().create_future()

    async def ended(self) -> str:
        return self._how

    async def close(self, *, kill: bool = False) -> None:
        """There is nothing to close, whatever `kill` says."""
