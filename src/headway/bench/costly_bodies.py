"""Bodies of requests that are cheap to send, and would cost much if a server did not refuse them early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


@dataclass(frozen=True, slots=True)
class CostlyBody:
    """make: the bytes. statuses: of a right answer."""

    path: str
    make: Callable[[], bytes]
    statuses: frozenset[int] = frozenset({400, 413})


def _repeated(head: bytes, item: bytes, count: int, tail: bytes) -> Callable[[], bytes]:
    return lambda: head + b",".join([item] * count) + tail


def _fields() -> bytes:
    return b'{"prompt":"a",' + b",".join(b'"x%d":0' % i for i in range(120_000)) + b"}"


_ITEM = b'{"role":"user","content":[' + b",".join([b'{"type":"input_text","text":""}'] * 3) + b"]}"

BODIES = {
    "long prompt": CostlyBody(TEXT, lambda: b'{"max_tokens":1,"prompt":"' + b"a" * 60_000_000 + b'"}'),
    "longest prompt": CostlyBody(TEXT, lambda: b'{"max_tokens":1,"prompt":"' + b"a" * 16_000_000 + b'"}'),
    "prompts x 16": CostlyBody(TEXT, _repeated(b'{"max_tokens":1,"n":16,"prompt":[', b"[9]", 20_000, b"]}")),
    "prompts of ids": CostlyBody(TEXT, _repeated(b'{"max_tokens":1,"prompt":[', b"[9]", 4_000_000, b"]}")),
    "prompts of text": CostlyBody(TEXT, _repeated(b'{"max_tokens":1,"prompt":[', b'"1"', 100_000, b"]}")),
    "stop ids": CostlyBody(TEXT, _repeated(b'{"prompt":"a","stop_token_ids":[', b'""', 400_000, b"]}")),
    "fields": CostlyBody(TEXT, _fields, frozenset({200, 400, 413})),  # unknown fields may be left aside
    "empty messages": CostlyBody(CHAT, _repeated(b'{"messages":[', b"{}", 2_000_000, b"]}")),
    "messages": CostlyBody(CHAT, _repeated(b'{"messages":[', b'{"role":"user","content":"a"}', 8_000, b"]}")),
    "items": CostlyBody(RESPONSES, _repeated(b'{"input":[', _ITEM, 8_000, b"]}")),
    "empty items": CostlyBody(RESPONSES, _repeated(b'{"input":[', b"{}", 30_000, b"]}")),
    "blocks": CostlyBody(
        MESSAGES, _repeated(b'{"max_tokens":1,"messages":[{"role":"user","content":[', b"{}", 30_000, b"]}]}")
    ),
    "more messages": CostlyBody(CHAT, _repeated(b'{"messages":[', b'{"role":"user","content":"a"}', 100_000, b"]}")),
}
