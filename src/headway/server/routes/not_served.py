"""Paths that clients of other servers know, and that are not served here: refused by name, with what serves them.

The status is 404: clients do not try again, as they do after a 5xx.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from headway.server.errors import ApiError

_GENERATES = "the model here generates text"
_POOLING = f"{_GENERATES}; a server for such models is, for instance, vLLM (`vllm serve MODEL --runner pooling`)"
_SPEECH = f"{_GENERATES}; a server for models of speech is, for instance, vLLM (`vllm serve openai/whisper-small`)"
_BATCHES = "no file is kept here; the command `headway run-batch` answers a file of this form"
_ANY = ("GET", "POST", "DELETE")

REASONS = {
    **dict.fromkeys(("/v1/embeddings", "/v2/embed", "/pooling", "/classify"), _POOLING),
    **dict.fromkeys(("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"), _POOLING),
    **dict.fromkeys(("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/audio/speech"), _SPEECH),
    **dict.fromkeys(("/v1/images/generations", "/v1/images/edits", "/v1/images/variations"), _GENERATES),
    "/v1/moderations": _GENERATES,
    **dict.fromkeys(("/v1/files", "/v1/files/{rest:path}", "/v1/batches", "/v1/batches/{rest:path}"), _BATCHES),
    **dict.fromkeys(
        ("/v1/conversations", "/v1/conversations/{rest:path}"),
        "nothing is stored here; send the whole conversation to /v1/responses or /v1/chat/completions",
    ),
    **dict.fromkeys(
        ("/v1/messages/batches", "/v1/messages/batches/{rest:path}"),
        "nothing is stored here; send the messages one by one to /v1/messages",
    ),
}

router = APIRouter()


async def refuse(request: Request) -> Response:
    """404, with the reason."""
    why = REASONS[request.scope["route"].path]
    raise ApiError(404, f"{request.method} {request.url.path} is not served: {why}", code="not_served")


for _path in REASONS:
    router.add_api_route(_path, refuse, methods=list(_ANY), include_in_schema=False)
