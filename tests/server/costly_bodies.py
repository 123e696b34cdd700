"""Serves costly bodies one after the other in this process, and prints for each: bytes, status, growth of the peak."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from headway.bench.costly_bodies import BODIES
from headway.bench.peak_memory import PeakMemory
from headway.server.routes.api import create_app
from tests.server.fakes import MODEL, fake_client


async def main() -> None:
    client, _ = fake_client()
    app = create_app(client, MODEL)
    for costly in BODIES.values():
        body = costly.make()
        peak = PeakMemory(os.getpid())
        parts = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
        status: list[int] = []

        async def receive(parts: list[bytes] = parts) -> dict[str, Any]:
            if not parts:
                await asyncio.sleep(3600)
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message: dict[str, Any], status: list[int] = status) -> None:
            status.append(message.get("status", 0))

        scope = {"type": "http", "method": "POST", "path": costly.path, "query_string": b"", "http_version": "1.1"}
        await app({**scope, "headers": [(b"content-type", b"application/json")], "client": None}, receive, send)
        print(json.dumps([len(body), status[0], peak.growth()]), flush=True)
    await client.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
