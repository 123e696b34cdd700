"""The codes in error bodies: the only table of them. `ApiError` takes no other code, and docs/reference/errors.md shows
it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """status: of HTTP. An answer that streams brings the code in an error event."""

    status: int
    meaning: str
    remedy: str


ERROR_CODES: Mapping[str, ErrorCode] = {
    "context_length_exceeded": ErrorCode(
        400, "prompt and answer do not fit the model's context", "a shorter prompt, or a greater `--max-model-len`"
    ),
    "invalid_api_key": ErrorCode(401, "the request shows no key, or an unknown key", "Authorization: Bearer KEY"),
    "admin_api_disabled": ErrorCode(
        403,
        "an operator's endpoint is off, or open to its own host alone",
        "start it with `--enable-admin-api`",
    ),
    "model_not_found": ErrorCode(404, "the server has no model of this name", "`GET /v1/models` lists the names"),
    "not_found": ErrorCode(404, "there is no such path, or no such object", "/docs lists the paths"),
    "not_served": ErrorCode(404, "a path of OpenAI's or vLLM's API that is not served here", "the message says why"),
    "method_not_allowed": ErrorCode(405, "the path takes another method", "the header Allow names it"),
    "duplicate_request_id": ErrorCode(
        409, "a request in progress has this `request_id`", "another id, or none: the server makes one"
    ),
    "wrong_role": ErrorCode(409, "an engine of this `--role` cannot do it", "ask an engine of the other role"),
    "generation_failed": ErrorCode(500, "a step failed on the device", "the log has the cause; send it again"),
    "internal_error": ErrorCode(500, "a fault of Headway", "the log has the traceback; please report it"),
    "slow_reader": ErrorCode(500, "the client read its stream too slowly", "read faster, or without `stream`"),
    "queue_full": ErrorCode(
        503, "`--max-num-seqs` requests run and `--max-waiting` wait", "again after Retry-After seconds; more servers"
    ),
    "too_many_body_bytes": ErrorCode(503, "large bodies in flight fill their share of memory", "again a little later"),
    "too_many_connections": ErrorCode(503, "more connections than the limit of open files allows", "`ulimit -n`"),
    "engine_paused": ErrorCode(503, "an operator has paused the engine", "again after Retry-After; `POST /resume`"),
    "engine_restarting": ErrorCode(503, "the engine died and is started again", "again after Retry-After seconds"),
    "engine_dead": ErrorCode(503, "the engine died for good", "the log says of what; `--engine-restarts N`"),
    "shutting_down": ErrorCode(503, "the server was asked to stop", "another server"),
    "unhealthy": ErrorCode(503, "`GET /health`: requests cannot be served now", "the message says why"),
    "timeout": ErrorCode(504, "the engine did not answer in time", "again; `headway doctor` if it stays so"),
}
