"""The routes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from msgspec import Struct
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from headway import __version__
from headway.engine.client import EngineClient, Prompt
from headway.request import SamplingParams
from headway.server import errors
from headway.server.chat import ChatFace, render
from headway.server.completions import CompletionFace
from headway.server.errors import ApiError
from headway.server.generate import Face, encode_json, respond
from headway.server.metrics import ServerMetrics
from headway.server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeBody,
    TokenizeChatRequest,
    TokenizeRequest,
)
from headway.server.responses import ModelCard, ModelList, Text, Tokens, Version

B = TypeVar("B")

MAX_BODY = 64 * 2**20  # bytes

_COMPLETION = TypeAdapter(CompletionRequest)
_CHAT = TypeAdapter(ChatCompletionRequest)
_TOKENIZE: TypeAdapter[TokenizeRequest | TokenizeChatRequest] = TypeAdapter(TokenizeBody)
_DETOKENIZE = TypeAdapter(DetokenizeRequest)

router = APIRouter()


class Service:
    """What the routes share. draining: the server is about to stop and takes no new work."""

    def __init__(self, client: EngineClient, model_name: str) -> None:
        self.client = client
        self.model_name = model_name
        self.created = int(time.time())
        self.metrics = ServerMetrics(model_name, lambda: client.snapshot)
        self.draining = False
        client.observer = self.metrics

    def check_open(self) -> None:
        """Raises ApiError when no new work is taken."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down")

    def check_model(self, name: str | None) -> None:
        """Raises ApiError for a model that is not served here."""
        if name is not None and name != self.model_name:
            raise ApiError(
                404,
                f"the model {name!r} does not exist: this server has {self.model_name!r}",
                code="model_not_found",
                param="model",
            )


def create_app(client: EngineClient, model_name: str) -> FastAPI:
    """The application that serves `client`'s engine under the name `model_name`."""
    app = FastAPI(title="Headway", version=__version__)
    app.state.service = Service(client, model_name)
    app.include_router(router)
    errors.install(app)
    _describe_bodies(app)
    return app


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def read_body(request: Request, adapter: TypeAdapter[B]) -> B:
    """The body as `adapter` has it. Raises ApiError or pydantic's ValidationError."""
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


def _body(model: type[Any], *more: type[Any]) -> dict[str, Any]:
    """OpenAPI's description of a body that the route reads itself."""
    schemas = [{"$ref": f"#/components/schemas/{one.__name__}"} for one in (model, *more)]
    schema = schemas[0] if not more else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _describe_bodies(app: FastAPI) -> None:
    models = (CompletionRequest, ChatCompletionRequest, TokenizeRequest, TokenizeChatRequest, DetokenizeRequest)
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()  # made once, then the same again
        _, definitions = models_json_schema(
            [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
        )
        schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


@router.post("/v1/completions", openapi_extra=_body(CompletionRequest))
async def completions(request: Request) -> Response:
    """Continue one or more prompts."""
    arrival_time = time.monotonic()
    service = service_of(request)
    service.check_open()
    body = await read_body(request, _COMPLETION)
    service.check_model(body.model)
    sampling = body.sampling(service.client.files.default_sampling)
    prompts = [await _prompt(service.client, prompt) for prompt in body.prompt]
    if body.echo:
        prompts = [_with_text(service.client, prompt) for prompt in prompts]
    face = CompletionFace(
        response_id=body.request_id or f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=service.model_name,
        prompts=prompts,
        n=sampling.n,
        echo=bool(body.echo),
    )
    return await _answer(request, body, sampling, prompts, face, arrival_time)


@router.post("/v1/chat/completions", openapi_extra=_body(ChatCompletionRequest))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    arrival_time = time.monotonic()
    service = service_of(request)
    service.check_open()
    body = await read_body(request, _CHAT)
    service.check_model(body.model)
    sampling = body.sampling(service.client.files.default_sampling)
    text = render(service.client.tokenizer, body)
    # The template has written the special tokens already.
    prompts = [Prompt(await service.client.encode(text, add_special_tokens=False), text)]
    face = ChatFace(
        response_id=body.request_id or f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=service.model_name,
        prompts=prompts,
        n=sampling.n,
        top_logprobs=body.top_logprobs or 0,
    )
    return await _answer(request, body, sampling, prompts, face, arrival_time)


async def _answer(
    request: Request,
    body: CompletionRequest | ChatCompletionRequest,
    sampling: SamplingParams,
    prompts: Sequence[Prompt],
    face: Face,
    arrival_time: float,
) -> Response:
    """Hand the prompts in, and answer in the shape that `face` gives."""
    service = service_of(request)
    service.check_open()  # it may have changed while the body came
    generation = service.client.submit(
        prompts,
        sampling,
        request_id=face.id,
        stream=bool(body.stream),
        priority=body.priority,
        cache_salt=body.cache_salt,
        arrival_time=arrival_time,
    )
    return await respond(
        request,
        generation,
        face,
        stream=bool(body.stream),
        include_usage=body.include_usage,
        continuous_usage=body.continuous_usage,
    )


async def _prompt(client: EngineClient, prompt: str | list[int]) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(await client.encode(prompt, add_special_tokens=True), prompt)
    return Prompt(prompt)


def _with_text(client: EngineClient, prompt: Prompt) -> Prompt:
    if prompt.text is not None:
        return prompt
    return Prompt(prompt.token_ids, _decode(client, prompt.token_ids, "prompt"))


def _decode(client: EngineClient, tokens: Sequence[int], field: str) -> str:
    for token in tokens:
        if not 0 <= token < client.files.vocab_size:
            raise ApiError(
                400, f"{field} has the token id {token}; ids go from 0 to {client.files.vocab_size - 1}", param=field
            )
    return str(client.tokenizer.decode(list(tokens)))


@router.post("/tokenize", openapi_extra=_body(TokenizeRequest, TokenizeChatRequest))
async def tokenize(request: Request) -> Response:
    """The token ids of a text or of a conversation."""
    service = service_of(request)
    client = service.client
    body = await read_body(request, _TOKENIZE)
    service.check_model(body.model)
    text = render(client.tokenizer, body) if isinstance(body, TokenizeChatRequest) else body.prompt
    tokens = await client.encode(text, add_special_tokens=body.add_special_tokens)
    strings = list(client.tokenizer.convert_ids_to_tokens(tokens)) if body.return_token_strs else None
    return answer(Tokens(len(tokens), client.limits.max_model_len, tokens, strings))


@router.post("/detokenize", openapi_extra=_body(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    service = service_of(request)
    body = await read_body(request, _DETOKENIZE)
    service.check_model(body.model)
    return answer(Text(_decode(service.client, body.tokens, "tokens")))


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The model that is served."""
    return answer(ModelList([_card(service_of(request))]))


@router.get("/v1/models/{model:path}")
async def model(request: Request, model: str) -> Response:
    """The model of this name."""
    service = service_of(request)
    service.check_model(model)
    return answer(_card(service))


def _card(service: Service) -> ModelCard:
    client = service.client
    return ModelCard(service.model_name, service.created, str(client.files.path), client.limits.max_model_len)


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while requests can be served; 503, saying why, when the engine is dead or stuck or the server ends."""
    service = service_of(request)
    service.check_open()
    if (reason := service.client.why_unhealthy()) is not None:
        raise ApiError(503, reason, code="unhealthy")
    return Response(b"{}", media_type="application/json")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(service_of(request).metrics.page(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def version() -> Response:
    """The version of Headway."""
    return answer(Version(__version__))
