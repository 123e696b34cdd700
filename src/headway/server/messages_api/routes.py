"""The routes of the Messages API."""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter, Request, Response

from headway.server.answers.generate import unless_disconnected
from headway.server.body import BodyForm, read_body
from headway.server.messages_api.body import CountTokensRequest, MessagesRequest
from headway.server.messages_api.face import MessagesFace, TokenCount
from headway.server.openapi import body_of
from headway.server.prompt_bodies import chat_prompt, prompt_of
from headway.server.service import answer, service_of
from headway.server.submission import submit

_MESSAGES: BodyForm[MessagesRequest] = BodyForm(MessagesRequest, MessagesRequest)
_COUNT: BodyForm[CountTokensRequest] = BodyForm(CountTokensRequest, CountTokensRequest)

router = APIRouter()


@router.post("/v1/messages", openapi_extra=body_of(MessagesRequest))
async def create_message(request: Request) -> Response:
    """Answer a conversation, in content blocks: thinking, text, uses of tools."""
    arrival_time = time.monotonic()
    service = service_of(request)
    service.check_open()
    body = await read_body(request, _MESSAGES, service.client.prompts.texts)
    body.refuse_thread()
    chat = body.chat
    if service.parsers.read_reasoning and body.thinking_budget is not None:
        chat.thinking_token_budget = body.thinking_budget  # without a parser of reasoning its end is not known
    _, sampling, prompts = await chat_prompt(request, chat)
    face = MessagesFace(
        parser=service.answer_parser(chat, prompts[0].text or ""),
        response_id=chat.request_id or f"msg_{uuid.uuid4().hex}",
        created=int(time.time()),
        model=service.model_name,
        prompts=prompts,
    )
    return await submit(request, chat, sampling, prompts, face, arrival_time)


@router.post("/v1/messages/count_tokens", openapi_extra=body_of(CountTokensRequest))
async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of a conversation has."""
    service = service_of(request)
    service.check_open()
    body = await read_body(request, _COUNT, service.client.prompts.texts)
    service.check_model(body.model)
    prompt = await unless_disconnected(request, prompt_of(service, body.chat))
    return answer(TokenCount(len(prompt.token_ids)))
