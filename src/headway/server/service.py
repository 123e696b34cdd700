"""The state and functions that all routes use."""

from __future__ import annotations

import time
from typing import TypeVar

from fastapi import Request, Response
from msgspec import Struct
from pydantic import TypeAdapter

from headway.client.chat_template import ChatTemplate
from headway.client.conversation import Conversation
from headway.client.engine_client import EngineClient
from headway.server.errors import ApiError
from headway.server.generate import encode_json
from headway.server.metrics import ServerMetrics

B = TypeVar("B")

MAX_BODY = 64 * 2**20  # bytes


class Service:
    """The state of a server.

    admin_api: see `admin.py`. chat_template: see `ChatTemplate`.
    trust_request_chat_template: requests may bring templates.
    draining: the server is about to stop and takes no new requests.

    Raises ValueError for a chat template that does not exist or is not valid.
    """

    def __init__(
        self,
        client: EngineClient,
        model_name: str,
        *,
        admin_api: bool = False,
        chat_template: str | None = None,
        trust_request_chat_template: bool = False,
    ) -> None:
        self.client = client
        self.model_name = model_name
        self._chat_template = ChatTemplate(client.tokenizer, model_name, chat_template)
        self._trust_request_chat_template = trust_request_chat_template
        self.admin_api = admin_api
        self.created = int(time.time())
        self.metrics = ServerMetrics(model_name, lambda: client.snapshot, client.config.max_model_len)
        self.draining = False
        client.observer = self.metrics

    def check_open(self) -> None:
        """Raise ApiError if the server takes no new requests."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down")

    def check_model(self, name: str | None) -> None:
        """Raise ApiError for a model that is not served here. None: the client names no model."""
        if name is not None and name != self.model_name:
            raise ApiError(
                404,
                f"the model {name!r} does not exist: this server has {self.model_name!r}",
                code="model_not_found",
                param="model",
            )

    def render(self, conversation: Conversation) -> str:
        """The text of the prompt for a conversation. Raises RequestError, and ApiError for a template that is not
        trusted."""
        if conversation.chat_template is not None and not self._trust_request_chat_template:
            raise ApiError(
                400,
                "chat_template is off in requests: start the server with --trust-request-chat-template, or with the "
                "template itself (--chat-template)",
                param="chat_template",
            )
        return self._chat_template.render(conversation)


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def read_body(request: Request, adapter: TypeAdapter[B]) -> B:
    """The body of a request, validated by `adapter`. Raises ApiError or pydantic's ValidationError."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise ApiError(415, f"Content-Type must be application/json, got {media_type or 'none'!r}")
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise ApiError(413, f"the body has more than {MAX_BODY} bytes, which is the limit")
        parts.append(part)
    return adapter.validate_json(b"".join(parts))


def answer(body: Struct, status: int = 200) -> Response:
    return Response(encode_json(body), status, media_type="application/json")
