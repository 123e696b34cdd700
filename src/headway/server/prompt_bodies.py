"""Reads the body of a request for answers: its prompts as token ids, and how tokens are chosen.

The routes that answer and the routes that only render read bodies here, so a prompt becomes the same tokens in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from fastapi import Request

from headway.client.bad_words import spelled_out
from headway.client.engines import Engines
from headway.errors import RequestError
from headway.sampling import SamplingParams
from headway.server.answers.generate import Prompt, unless_disconnected
from headway.server.body import BodyForm, read_body
from headway.server.fields.prompt_fields import Truncation
from headway.server.fields.protocol import ChatCompletionRequest, CompletionRequest
from headway.server.service import Service, service_of

B = TypeVar("B", CompletionRequest, ChatCompletionRequest)

MAX_REPEATED_IDS = 2**20  # in all answers of one HTTP request; in the engine each takes some 40 bytes

_COMPLETION: BodyForm[CompletionRequest] = BodyForm(CompletionRequest, CompletionRequest)
_CHAT: BodyForm[ChatCompletionRequest] = BodyForm(ChatCompletionRequest, ChatCompletionRequest)


class PromptBody(NamedTuple, Generic[B]):
    """A body that has been read. prompts: at least one; of a conversation exactly one."""

    body: B
    sampling: SamplingParams
    prompts: list[Prompt]


async def read_completion(request: Request) -> PromptBody[CompletionRequest]:
    """The body of a completion. Raises what `read_body` raises, RequestError, and ShuttingDownError."""
    service = service_of(request)
    body = await _read(request, _COMPLETION)
    sampling = await _sampling(service, body)
    _check_num_answers(service, len(body.prompt), sampling)
    prompts = await unless_disconnected(request, _prompts(service.client, body))
    return PromptBody(body, sampling, prompts)


async def read_chat(request: Request) -> PromptBody[ChatCompletionRequest]:
    """The body of a chat completion. Raises what `read_completion` raises."""
    return await chat_prompt(request, await _read(request, _CHAT))


async def chat_prompt(request: Request, body: ChatCompletionRequest) -> PromptBody[ChatCompletionRequest]:
    """A body with the prompt of its conversation. Raises RequestError and ApiError."""
    service = service_of(request)
    sampling = await _sampling(service, body)
    _check_num_answers(service, 1, sampling)
    prompt = await unless_disconnected(request, prompt_of(service, body))
    sampling = service.parsers.sampling(body, sampling, prompt.text or "")
    return PromptBody(body, sampling, [prompt])


async def _read(request: Request, form: BodyForm[B]) -> B:
    service = service_of(request)
    service.check_open()
    return await read_body(request, form, service.client.prompts.texts)


def _check_num_answers(service: Service, num_prompts: int, sampling: SamplingParams) -> None:
    """Raises RequestError for more answers than the engine can ever hold, and for a long list that very many of them
    would repeat there."""
    service.client.check_num_answers(num_prompts, sampling.n)
    num_ids, num_answers = len(sampling.allowed_token_ids or ()), num_prompts * sampling.n
    if num_ids * num_answers > MAX_REPEATED_IDS:
        raise RequestError(
            f"{num_ids} allowed_token_ids x {num_answers} answers are {num_ids * num_answers} ids; one request brings "
            f"at most {MAX_REPEATED_IDS}: send fewer prompts, or allow fewer tokens"
        )


async def _sampling(service: Service, body: CompletionRequest | ChatCompletionRequest) -> SamplingParams:
    service.check_model(body.model)
    body.check_context(service.client.config.max_model_len)
    sampling = body.sampling(service.client.files.default_sampling)
    if not sampling.bad_words:
        return sampling
    length = sum(map(len, sampling.bad_words))
    return await service.client.prompts.texts.run(length, partial(spelled_out, sampling, service.client.tokenizer))


async def _prompts(client: Engines, body: CompletionRequest) -> list[Prompt]:
    truncation = body.truncation(client.config.max_model_len)
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]  # of one request: all are texts, or none
    if not texts:
        return [_cut(Prompt(prompt), truncation) for prompt in body.prompt if isinstance(prompt, list)]
    return await _encoded(client, texts, truncation, add_special_tokens=body.add_special_tokens)


async def prompt_of(service: Service, body: ChatCompletionRequest) -> Prompt:
    """The prompt of a conversation. Raises RequestError and ApiError."""
    client = service.client
    truncation = body.truncation(client.config.max_model_len)
    if truncation is None:
        client.prompts.limit.check(body.num_characters)
    text = await service.render(body)
    (prompt,) = await _encoded(client, [text], truncation, add_special_tokens=body.add_special_tokens)
    return Prompt(prompt.token_ids, text)


async def _encoded(
    client: Engines, texts: Sequence[str], truncation: Truncation | None, *, add_special_tokens: bool
) -> list[Prompt]:
    if truncation is not None:
        texts = [truncation.text(text, client.prompts.limit.characters) for text in texts]
    encoded = await client.prompts.encode_prompts(texts, add_special_tokens=add_special_tokens)
    return [_cut(Prompt(token_ids, text), truncation) for token_ids, text in zip(encoded, texts)]


def _cut(prompt: Prompt, truncation: Truncation | None) -> Prompt:
    """A prompt that was cut has no text: `echo` shows what is left of it."""
    token_ids = prompt.token_ids if truncation is None else truncation.tokens(prompt.token_ids)
    return prompt if token_ids is prompt.token_ids else Prompt(token_ids)
