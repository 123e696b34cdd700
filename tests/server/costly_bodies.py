"""Serves costly bodies one after the other in this process, and prints for each: bytes, status, growth of the peak."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from headway.server.api import create_app
from tests.server.fakes import MODEL, fake_client

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES = [
    (TEXT, b'{"prompt":"' + b"a" * 20_000_000 + b'"}'),
    (TEXT, b'{"n":16,"prompt":[' + b",".join([b"[9]"] * 20_000) + b"]}"),
    (TEXT, b'{"prompt":[' + b",".join([b"[9]"] * 4_000_000) + b"]}"),
    (TEXT, b'{"prompt":[' + b",".join([b'"1"'] * 100_000) + b"]}"),
    (TEXT, b'{"prompt":"a","stop_token_ids":[' + b",".join([b'""'] * 400_000) + b"]}"),
    (TEXT, b'{"prompt":"a",' + b",".join(b'"x%d":0' % i for i in range(120_000)) + b"}"),
    (CHAT, b'{"messages":[' + b",".join([b"{}"] * 2_000_000) + b"]}"),
    (CHAT, b'{"messages":[' + b",".join([b'{"role":"user","content":"a"}'] * 8_000) + b"]}"),
]


def memory(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


async def main() -> None:
    client, _ = fake_client()
    app = create_app(client, MODEL)
    for path, body in BODIES:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
        before = memory("VmRSS")
        parts = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
        status: list[int] = []

        async def receive(parts: list[bytes] = parts) -> dict[str, Any]:
            if not parts:
                await asyncio.sleep(3600)
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message: dict[str, Any], status: list[int] = status) -> None:
            status.append(message.get("status", 0))

        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "http_version": "1.1"}
        await app({**scope, "headers": [(b"content-type", b"application/json")], "client": None}, receive, send)
        print(json.dumps([len(body), status[0], memory("VmHWM") - before]), flush=True)
    await client.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
