"""Hands the prompts of an HTTP request to the engine, and answers: the one way for all routes that generate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fastapi import Request, Response

from headway.client.pending import Pending
from headway.errors import DuplicateRequestError
from headway.request import NewRequest, Transfer
from headway.sampling import SamplingParams
from headway.server.answers.generate import Face, Prompt, respond, unless_disconnected
from headway.server.entrance.key_check import salt_of
from headway.server.fields.protocol import ChatCompletionRequest, CompletionRequest
from headway.server.fields.structured_output_fields import as_fields
from headway.server.service import service_of

_TRIES, _TRY_SECONDS = 50, 0.01  # a client that has left is noticed within a few turns of the event loop


async def submit(
    request: Request,
    body: CompletionRequest | ChatCompletionRequest,
    sampling: SamplingParams,
    prompts: Sequence[Prompt],
    face: Face,
    arrival_time: float,
) -> Response:
    """Submit the prompts, and answer in the form of `face`."""
    service = service_of(request)
    service.check_kv_source(body.kv_transfer_params)
    client = service.client
    body.cache_salt = salt_of(request, body.cache_salt)
    source = None
    computes_here = body.kv_transfer_params or sampling.prompt_logprobs is not None
    if service.prefill is not None and len(prompts) == 1 and not computes_here:
        fields = {**body.for_prefill(), **as_fields(sampling.structured_outputs)}
        source = service.prefill.source(prompts[0].token_ids, fields)

    def new_requests() -> list[NewRequest]:
        packed = [client.pack(prompt.token_ids) for prompt in prompts]
        return body.new_requests(face.id, packed, sampling, arrival_time)

    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    requests = await unless_disconnected(request, client.prompts.texts.run(num_tokens + len(prompts), new_requests))
    service.check_open()  # again, because the server may have begun to stop while the body came
    if source is not None:
        requests[0].transfer = Transfer.PULL
    shown = service.parsers.shown(body) if isinstance(body, ChatCompletionRequest) else ()
    stream = bool(body.stream)
    pending = await _taken(request, lambda: client.submit(requests, stream=stream, source=source, shown=shown))
    return await respond(request, pending, face, stream=bool(body.stream), texts=client.prompts.texts)


async def _taken(request: Request, submit: Callable[[], Pending]) -> Pending:
    """What `submit` returns. The client of an id that is in use may have left just now, and ask anew: the id is waited
    for a moment. Raises DuplicateRequestError if it is still in use then."""
    for _ in range(_TRIES):
        try:
            return submit()
        except DuplicateRequestError:
            await unless_disconnected(request, asyncio.sleep(_TRY_SECONDS))
    return submit()
