"""The routes for clients."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic.json_schema import models_json_schema

from headway import __version__
from headway.client.conversation import ChatMessage, ContentPart
from headway.client.engines import Engines
from headway.errors import RequestError
from headway.server import errors
from headway.server.answers.answer_bodies import Health, ModelCard, ModelList, Root, Text, Tokens, Version
from headway.server.answers.chat import ChatFace
from headway.server.answers.completions import CompletionFace
from headway.server.answers.generate import Prompt, unless_disconnected
from headway.server.body import BodyForm, read_body
from headway.server.entrance import middleware
from headway.server.entrance.doors import OPEN_PATHS, Doors
from headway.server.errors import ApiError
from headway.server.fields.field_descriptions import describe_fields
from headway.server.fields.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeBody,
    TokenizeChatRequest,
    TokenizeRequest,
)
from headway.server.messages_api import routes as messages_api
from headway.server.messages_api.body import CountTokensRequest, MessagesRequest
from headway.server.openapi import body_of, describe_answers, describe_key, describe_model
from headway.server.pages.docs import docs_page
from headway.server.pages.front import front_page, wants_page
from headway.server.prompt_bodies import read_chat, read_completion
from headway.server.responses_api import routes as responses_api
from headway.server.responses_api.body import ResponsesRequest
from headway.server.routes import about, admin, not_served, render
from headway.server.service import Service, answer, service_of
from headway.server.submission import submit
from headway.token_ids import check_token_ids

_TOKENIZE: BodyForm[TokenizeRequest | TokenizeChatRequest] = BodyForm(
    TokenizeBody, TokenizeRequest, TokenizeChatRequest
)
_DETOKENIZE: BodyForm[DetokenizeRequest] = BodyForm(DetokenizeRequest, DetokenizeRequest)

router = APIRouter()


def create_app(client: Engines, model_name: str, *, doors: Doors | None = None, **options: Any) -> FastAPI:
    """The application that serves the engine of `client` under the name `model_name`.

    doors: who may come in; by default all. options: the keyword arguments of `Service`. Raises ValueError for a chat
    template that does not exist or is not valid.
    """
    doors = doors or Doors()
    app = FastAPI(
        title="Headway",
        version=__version__,
        openapi_url="/openapi.json" if doors.docs else None,
        docs_url=None,  # the pages of FastAPI load their scripts from another host
        redoc_url=None,
    )
    if doors.docs:
        app.add_api_route("/docs", docs_page, include_in_schema=False)
    app.root_path = doors.root_path
    app.state.service = Service(client, model_name, **options)
    for routes in (
        router,
        responses_api.router,
        messages_api.router,
        render.router,
        about.router,
        not_served.router,
        admin.admin,
        admin.debug,
    ):
        app.include_router(routes)
    errors.install(app)
    middleware.install(app, doors, app.state.service.metrics)
    _describe_bodies(app, doors)
    return app


def _describe_bodies(app: FastAPI, doors: Doors) -> None:
    models = (
        *(CompletionRequest, ChatCompletionRequest, ResponsesRequest, MessagesRequest, CountTokensRequest),
        *(TokenizeRequest, TokenizeChatRequest, DetokenizeRequest),
    )
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = generate()
        _, definitions = models_json_schema(
            [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
        )
        described = definitions["$defs"]
        for model in (*models, ChatMessage, ContentPart):  # unknown fields are ignored: see `UnknownFields`
            del described[model.__name__]["additionalProperties"]
        schema.setdefault("components", {}).setdefault("schemas", {}).update(described)
        describe_fields(schema, models)
        describe_model(schema, app.state.service.model_names)
        describe_answers(schema)
        if doors.keys:
            describe_key(schema, open_paths=OPEN_PATHS.difference(doors.protect))
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


@router.post("/v1/completions", openapi_extra=body_of(CompletionRequest))
async def completions(request: Request) -> Response:
    """Continue one or more prompts."""
    arrival_time = time.monotonic()
    service = service_of(request)
    body, sampling, prompts = await read_completion(request)
    if body.echo:
        prompts = [_with_text(service.client, prompt) for prompt in prompts]
    face = CompletionFace(
        response_id=body.request_id or f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=service.model_name,
        prompts=prompts,
        n=sampling.n,
        echo=bool(body.echo),
        echo_logprobs=body.logprobs if body.echo else None,
        token_text=lambda token: _decode(service.client, [token], "prompt"),
        prompt_logprobs=body.prompt_logprobs,
        include_usage=body.include_usage,
        continuous_usage=body.continuous_usage,
        with_token_ids=bool(body.return_token_ids),
        named_by_ids=bool(body.return_tokens_as_token_ids),
    )
    return await submit(request, body, sampling, prompts, face, arrival_time)


@router.post("/v1/chat/completions", openapi_extra=body_of(ChatCompletionRequest))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    arrival_time = time.monotonic()
    service = service_of(request)
    body, sampling, prompts = await read_chat(request)
    face = ChatFace(
        response_id=body.request_id or f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=service.model_name,
        prompts=prompts,
        n=sampling.n,
        top_logprobs=body.top_logprobs or 0,
        prompt_logprobs=body.prompt_logprobs,
        new_parser=lambda: service.answer_parser(body, prompts[0].text or ""),
        include_usage=body.include_usage,
        continuous_usage=body.continuous_usage,
        with_token_ids=bool(body.return_token_ids),
        named_by_ids=bool(body.return_tokens_as_token_ids),
    )
    return await submit(request, body, sampling, prompts, face, arrival_time)


async def _tokenized(service: Service, body: TokenizeRequest | TokenizeChatRequest) -> list[int]:
    text = await service.render(body) if isinstance(body, TokenizeChatRequest) else body.prompt
    return await service.client.prompts.encode(text, add_special_tokens=body.add_special_tokens)


def _with_text(client: Engines, prompt: Prompt) -> Prompt:
    if prompt.text is not None:
        return prompt
    return Prompt(prompt.token_ids, _decode(client, prompt.token_ids, "prompt"))


def _decode(client: Engines, tokens: Sequence[int], field: str) -> str:
    try:
        check_token_ids(field, tokens, client.files.limits.vocab_size)
    except RequestError as error:
        raise ApiError(400, str(error), param=field) from None
    return str(client.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


@router.post("/tokenize", openapi_extra=body_of(TokenizeRequest, TokenizeChatRequest))
async def tokenize(request: Request) -> Response:
    """The token ids of a text or of a conversation."""
    service = service_of(request)
    client = service.client
    body = await read_body(request, _TOKENIZE, service.client.prompts.texts)
    service.check_model(body.model)
    tokens = await unless_disconnected(request, _tokenized(service, body))
    strings = list(client.tokenizer.convert_ids_to_tokens(tokens)) if body.return_token_strs else None
    return answer(Tokens(len(tokens), client.config.max_model_len, tokens, strings))


@router.post("/detokenize", openapi_extra=body_of(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    service = service_of(request)
    body = await read_body(request, _DETOKENIZE, service.client.prompts.texts)
    service.check_model(body.model)
    return answer(Text(_decode(service.client, body.tokens, "tokens")))


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The model that is served, under each of its names."""
    service = service_of(request)
    return answer(ModelList([_card(service, name) for name in service.model_names]))


@router.get("/v1/models/{model:path}")
async def model(request: Request, model: str) -> Response:
    """The model of this name."""
    service = service_of(request)
    service.check_model(model)
    return answer(_card(service, model))


def _card(service: Service, name: str) -> ModelCard:
    client = service.client
    return ModelCard(name, service.created, str(client.files.path), client.config.max_model_len)


@router.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """What runs here, and where to read on: a page for browsers, JSON for programs."""
    if wants_page(request):
        return front_page(request, service_of(request))
    response = answer(Root(__version__))
    response.headers["Vary"] = "Accept"
    return response


@router.post("/ping", include_in_schema=False)
@router.get("/ping", include_in_schema=False)
@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> Response:
    """200 while requests can be served; 503 with the reason when the engine is dead or stuck, or the server stops.

    A paused engine is healthy, and the body says that it is paused. Of several engines one is enough: then the body
    names the others, with what they suffer from.
    """
    service = service_of(request)
    service.check_open()
    client = service.client
    if (reason := client.why_unhealthy()) is not None:
        raise ApiError(503, reason, code="unhealthy")
    unhealthy = {name: reason for name, engine in client.engines.items() if (reason := engine.why_unhealthy())}
    return answer(Health(paused=client.snapshot.paused, unhealthy=unhealthy))


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(service_of(request).metrics.page(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def version() -> Response:
    """The version of Headway."""
    return answer(Version(__version__))
