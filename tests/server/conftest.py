from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from headway.client.engine_client import EngineClient
from headway.server.routes.api import create_app
from tests.server.fakes import MODEL, FakeLink, fake_client

_SERVICE_OPTIONS = (
    "admin_api",
    "chat_template",
    "trust_request_chat_template",
    "escape_special_tokens",
    "strict_fields",
    "tool_call_parser",
    "enable_auto_tool_choice",
    "reasoning_parser",
    "prefill",
    "kv_from_requests",
    "api_replica",
    "doors",
    "model_aliases",
)


class Api:
    """The application over a fake engine, and a client of it that needs no port.

    peer: the address from which requests come. behaviour: options of `create_app` and of `fake_client`.
    """

    def __init__(self, *, peer: str = "127.0.0.1", **behaviour: Any) -> None:
        self.client: EngineClient
        self.link: FakeLink
        service = {name: behaviour.pop(name) for name in _SERVICE_OPTIONS if name in behaviour}
        self.client, self.link = fake_client(**behaviour)
        self.app = create_app(self.client, MODEL, **service)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(peer, 1234))
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test")
        self.get = self.http.get
        self.post = self.http.post


@pytest.fixture
async def make_api() -> AsyncIterator[Callable[..., Api]]:
    """Makes an `Api`; behaviour as `FakeLink` has it."""
    made: list[Api] = []

    def make(**behaviour: Any) -> Api:
        made.append(Api(**behaviour))
        return made[-1]

    yield make
    for api in made:
        await api.http.aclose()
        await api.client.shutdown()


@pytest.fixture
async def api(make_api: Callable[..., Api]) -> Api:
    return make_api()
