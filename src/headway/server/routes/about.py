"""What the server says of itself: its load, its configuration, its tokenizer. No secret is among the answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict

from headway import __version__
from headway.client.conversation import StrictModel
from headway.server.answers.answer_bodies import Load, ServerInfo
from headway.server.answers.generate import encode_json
from headway.server.service import answer, service_of

# Where files lie and how they were fetched: the first say nothing of the tokenizer, and the second may be secrets.
_NOT_TOLD = frozenset({"vocab_file", "merges_file", "tokenizer_file", "name_or_path", "token", "use_auth_token"})

router = APIRouter()


class ServerInfoQuery(StrictModel):
    """config_format: `config` is one text, or an object."""

    model_config = ConfigDict(strict=False)

    config_format: Literal["text", "json"] = "text"


@router.get("/load")
async def load(request: Request) -> Response:
    """How many requests are in progress."""
    return answer(Load(service_of(request).client.num_open))


@router.get(
    "/server_info",
    openapi_extra={"parameters": [{"name": "config_format", "in": "query", "schema": {"enum": ["text", "json"]}}]},
)
async def server_info(request: Request) -> Response:
    """The version, the model, and the settings of the scheduler."""
    query = ServerInfoQuery.model_validate(dict(request.query_params))
    service = service_of(request)
    client = service.client
    settings = asdict(client.config)
    text = ", ".join(f"{name}={value}" for name, value in settings.items())
    return answer(
        ServerInfo(
            version=__version__,
            model=service.model_name,
            model_path=str(client.files.path),
            max_model_len=client.config.max_model_len,
            vocab_size=client.files.limits.vocab_size,
            quantization=client.files.quantisation,
            config=text if query.config_format == "text" else settings,
        )
    )


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> Response:
    """The settings of the tokenizer and its chat template. The routes that render show the template to clients too."""
    service = service_of(request)
    tokenizer = service.client.tokenizer
    told = {name: value for name, value in tokenizer.init_kwargs.items() if name not in _NOT_TOLD}
    told["tokenizer_class"] = type(tokenizer).__name__
    if (template := service.chat_template) is not None:
        told["chat_template"] = template
    return Response(encode_json(_plain(told)), media_type="application/json")


def _plain(value: Any) -> Any:
    """The value with the texts of tokens for tokens, and the text of anything that JSON does not have."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(getattr(value, "content", value))
