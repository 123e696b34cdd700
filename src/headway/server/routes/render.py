"""The routes that render: what a request would bring to the engine, as token ids, without an answer.

Routers ask for it, to choose an engine by the tokens of a prompt. The form is that of vLLM's routes of this name.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from headway.errors import RequestError
from headway.request import NewRequest
from headway.server.answers.answer_bodies import Rendered
from headway.server.answers.generate import encode_json, unless_disconnected
from headway.server.body import MAX_BODY
from headway.server.fields.protocol import ChatCompletionRequest, CompletionRequest
from headway.server.openapi import body_of
from headway.server.prompt_bodies import PromptBody, read_chat, read_completion
from headway.server.service import Service, service_of
from headway.token_ids import check_not_empty

router = APIRouter()


@router.post("/v1/completions/render", openapi_extra=body_of(CompletionRequest))
async def render_completions(request: Request) -> Response:
    """The token ids of each prompt of a completion, in a list."""
    asked = await read_completion(request)
    return await _rendered(request, asked, "cmpl", as_list=True)


@router.post("/v1/chat/completions/render", openapi_extra=body_of(ChatCompletionRequest))
async def render_chat_completions(request: Request) -> Response:
    """The token ids of a conversation."""
    asked = await read_chat(request)
    return await _rendered(request, asked, "chatcmpl", as_list=False)


async def _rendered(request: Request, asked: PromptBody[Any], kind: str, *, as_list: bool) -> Response:
    service = service_of(request)
    client, prompts = service.client, asked.prompts
    request_id = asked.body.request_id or f"{kind}-{uuid.uuid4().hex}"

    def body() -> bytes:
        packed = [client.pack(prompt.token_ids) for prompt in prompts]
        requests = asked.body.new_requests(request_id, packed, asked.sampling, time.monotonic())
        _check_repeated(requests)
        rendered = [_render(service, new, asked) for new in requests]
        return encode_json(rendered if as_list else rendered[0])

    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    made = await unless_disconnected(request, client.prompts.texts.run(num_tokens + len(prompts), body))
    return Response(made, media_type="application/json")


def _check_repeated(requests: list[NewRequest]) -> None:
    """Every prompt brings what all have in common: a long text in it would make a small body a huge answer."""
    common = len(encode_json((requests[0].sampling, requests[0].cache_salt)))
    if common * len(requests) > MAX_BODY:
        raise RequestError(
            f"the sampling parameters have {common} bytes, and {len(requests)} prompts repeat them; at most "
            f"{MAX_BODY} bytes are repeated: render fewer prompts in one request"
        )


def _render(service: Service, new: NewRequest, asked: PromptBody[Any]) -> Rendered:
    check_not_empty(new.prompt)
    most = new.sampling.most_tokens(len(new.prompt), service.client.config.max_model_len)
    options = asked.body.stream_options
    return Rendered(
        request_id=new.request_id,
        token_ids=new.prompt.tolist(),
        sampling_params=replace(new.sampling, max_tokens=most),
        model=service.model_name,
        stream=bool(asked.body.stream),
        stream_options=None if options is None else options.model_dump(exclude_none=True),
        cache_salt=new.cache_salt,
        priority=new.priority,
    )
