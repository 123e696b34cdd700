"""The routes of the Responses API."""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter, Request, Response

from headway.server.body import BodyForm, read_body
from headway.server.errors import ApiError
from headway.server.openapi import body_of
from headway.server.prompt_bodies import chat_prompt
from headway.server.responses_api.body import ResponsesRequest
from headway.server.responses_api.face import ResponsesFace
from headway.server.service import service_of
from headway.server.submission import submit

_FORM: BodyForm[ResponsesRequest] = BodyForm(ResponsesRequest, ResponsesRequest)
_STORED = "/v1/responses/{response_id}"

router = APIRouter()


@router.post("/v1/responses", openapi_extra=body_of(ResponsesRequest))
async def create_response(request: Request) -> Response:
    """Answer a conversation, in items: reasoning, messages, calls of functions."""
    arrival_time = time.monotonic()
    service = service_of(request)
    service.check_open()
    body = await read_body(request, _FORM, service.client.prompts.texts)
    chat, sampling, prompts = await chat_prompt(request, body.chat)
    face = ResponsesFace(
        body=body,
        sampling=sampling,
        parser=service.answer_parser(chat, prompts[0].text or ""),
        response_id=chat.request_id or f"resp_{uuid.uuid4().hex}",
        created=int(time.time()),
        model=service.model_name,
        prompts=prompts,
    )
    return await submit(request, chat, sampling, prompts, face, arrival_time)


@router.get(_STORED, include_in_schema=False)
@router.delete(_STORED, include_in_schema=False)
@router.post(f"{_STORED}/cancel", include_in_schema=False)
@router.get(f"{_STORED}/input_items", include_in_schema=False)
async def stored_response(response_id: str) -> Response:
    """There is none."""
    raise ApiError(
        404,
        f"there is no response {response_id[:100]!r}: nothing is stored here, a response is answered once, to the "
        "request that creates it",
        code="not_found",
        param="response_id",
    )
