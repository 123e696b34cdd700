"""The state and functions that all routes use."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import Request, Response
from msgspec import Struct

from headway.client.answer_parser import AnswerParser
from headway.client.chat_template import ChatTemplate
from headway.client.conversation import Conversation
from headway.client.engine_client import ONLY_ENGINE
from headway.client.engines import Engines
from headway.client.special_tokens import SpecialTokenEscape
from headway.errors import ShuttingDownError
from headway.server.answers.answer_parsers import AnswerParsers
from headway.server.answers.generate import encode_json
from headway.server.entrance.body_budget import BodyBudget
from headway.server.errors import ApiError
from headway.server.fields.protocol import ChatCompletionRequest
from headway.server.fields.unknown_fields import UnknownFields
from headway.server.metrics.loop_monitor import LONGEST_TURN, LoopMonitor
from headway.server.metrics.server_metrics import ServerMetrics
from headway.server.prefill_engines import PrefillEngines


class Service:
    """The state of a server.

    model_name: the name in answers and metrics. model_aliases: more names that requests may use.
    admin_api: see `routes/admin.py`. chat_template: see `ChatTemplate`.
    trust_request_chat_template: requests may bring templates.
    escape_special_tokens: special tokens that chat messages spell are text, see `SpecialTokenEscape`.
    strict_fields: unknown fields of requests are refused, see `UnknownFields`.
    tool_call_parser, enable_auto_tool_choice, reasoning_parser: see `AnswerParsers`.
    prefill: the engines that compute prompts for this one; None: it asks no engine by itself.
    kv_from_requests: requests may say where the KV of their prompt is (`kv_transfer_params`).
    api_replica: see `ServerMetrics`.
    bodies: the bytes of all bodies that are being read.
    loop_monitor: `watch` is for the server to start.
    draining: the server is about to stop and takes no new requests.

    Raises ValueError for a chat template that does not exist or is not valid, and for an unknown parser.
    """

    def __init__(
        self,
        client: Engines,
        model_name: str,
        *,
        model_aliases: Sequence[str] = (),
        admin_api: bool = False,
        chat_template: str | None = None,
        trust_request_chat_template: bool = False,
        escape_special_tokens: bool = False,
        strict_fields: bool = False,
        tool_call_parser: str | None = None,
        enable_auto_tool_choice: bool = False,
        reasoning_parser: str | None = None,
        prefill: PrefillEngines | None = None,
        kv_from_requests: bool = True,
        api_replica: str | None = None,
    ) -> None:
        self.client = client
        self.model_name = model_name
        self.model_names = (model_name, *(name for name in model_aliases if name != model_name))
        self._chat_template = ChatTemplate(client.tokenizer, model_name, chat_template)
        self.parsers = AnswerParsers(
            client.tokenizer,
            self._chat_template,
            tool_call_parser=tool_call_parser,
            auto_tool_choice=enable_auto_tool_choice,
            reasoning_parser_name=reasoning_parser,
        )
        self._trust_request_chat_template = trust_request_chat_template
        self._escape = SpecialTokenEscape(client.tokenizer) if escape_special_tokens else None
        self.prefill = prefill
        self._kv_from_requests = kv_from_requests
        self.unknown_fields = UnknownFields(strict=strict_fields)
        self.admin_api = admin_api
        self.created = int(time.time())
        self.metrics = ServerMetrics(model_name, client, api_replica)
        if prefill is not None:
            outcomes = prefill.outcomes
            self.metrics.track(
                "prefill_requests",
                "Requests to prefill engines, by what came of them.",
                ("outcome",),
                lambda: {(ONLY_ENGINE, outcome.value): count for outcome, count in outcomes.items()},
            )
        self.bodies = BodyBudget()
        self.loop_monitor = LoopMonitor()
        self.metrics.track_longest(*LONGEST_TURN, lambda: {(ONLY_ENGINE,): self.loop_monitor.longest})
        self.draining = False

    def check_open(self) -> None:
        """Raise ShuttingDownError if the server takes no new requests."""
        if self.draining:
            raise ShuttingDownError("the server is shutting down")

    def check_model(self, name: str | None) -> None:
        """Raise ApiError for a model that is not served here. None: the client names no model."""
        if name is not None and name not in self.model_names:
            raise ApiError(
                404,
                f"the model {name!r} does not exist: this server has {', '.join(map(repr, self.model_names))}",
                code="model_not_found",
                param="model",
            )

    def check_kv_source(self, params: Mapping[str, Any] | None) -> None:
        """Raise ApiError for `kv_transfer_params` where requests may have none."""
        if params and not self._kv_from_requests:
            raise ApiError(
                400,
                "kv_transfer_params cannot be given here: this server finds the engines that prompts are computed on, "
                "and reads KV from no address of a request; leave the field out",
                param="kv_transfer_params",
            )

    @property
    def chat_template(self) -> str | None:
        """The text of the chat template that is used by default; None: there is none."""
        return self._chat_template.text

    async def render(self, conversation: Conversation) -> str:
        """The text of the prompt for a conversation. Raises RequestError, and ApiError for a template that is not
        trusted."""
        given = conversation.chat_template
        if given is not None and not self._trust_request_chat_template and not self._chat_template.has(given):
            raise ApiError(
                400,
                "chat_template in a request may only name one of the model's templates: start the server with "
                "--trust-request-chat-template, or with the template itself (--chat-template)",
                param="chat_template",
            )
        return await self.client.prompts.texts.run(conversation.size, partial(self._render, conversation))

    def answer_parser(self, body: ChatCompletionRequest, prompt: str = "") -> AnswerParser:
        """A parser for one answer to this body. prompt: the text that the chat template made: an answer may begin in
        the middle of the reasoning."""
        return self.parsers.new(body, prompt)

    def _render(self, conversation: Conversation) -> str:
        return self._chat_template.render(conversation, self._escape)


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def answer(body: Struct, status: int = 200) -> Response:
    return Response(encode_json(body), status, media_type="application/json")
