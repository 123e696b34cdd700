"""A network between a decode and a prefill engine that is slow, or is cut."""

from __future__ import annotations

import asyncio
import contextlib

from headway.cluster.held_ports import HeldPorts


class Proxy:
    """Passes TCP connections on to a port of this machine. For one event loop.

    port: where it listens. delay: seconds that all bytes from the far side are late. num_connections: so far.
    """

    def __init__(self, target: int, ports: HeldPorts) -> None:
        self.port = ports.take("127.0.0.1")
        self.delay = 0.0
        self.num_connections = 0
        self._target = target
        self._is_cut = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def cut(self) -> None:
        """End all connections, and take no more until `mend`. What was on its way is lost."""
        self._is_cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        """Take connections, and let bytes pass at once."""
        self._is_cut, self.delay = False, 0.0

    async def close(self) -> None:
        """End everything."""
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # the engine is down: the connection ends, as without a proxy
            writer.transport.abort()
            return
        self.num_connections += 1
        both = {writer, far_writer}
        self._writers |= both
        try:
            await asyncio.gather(
                self._pass_on(reader, far_writer, is_late=False), self._pass_on(far_reader, writer, is_late=True)
            )
        finally:
            self._writers -= both
            for one in both:
                one.transport.abort()

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_late: bool) -> None:
        with contextlib.suppress(OSError):  # one end of the connection is gone, and so the other goes
            while data := await source.read(1 << 18):
                if is_late and self.delay:
                    await asyncio.sleep(self.delay)
                target.write(data)
                await target.drain()
        with contextlib.suppress(OSError):
            target.write_eof()
