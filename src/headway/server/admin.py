"""Routes for whoever runs the server, and not for its clients.

    POST /pause    POST /resume    GET /is_paused    POST /reset_prefix_cache      GET /debug/ownership

The first four are there if the server is started with `--enable-admin-api`: whoever can reach them can stop it, and
they ask for no password. The last changes nothing, but names requests and costs the scheduler a recount, so without
that option it answers on the server's own host alone, and not to what a proxy passes on.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from headway.server.errors import ApiError
from headway.server.responses import Ownership, PauseState, Reset, Status
from headway.server.service import answer, service_of

Q = TypeVar("Q", bound=BaseModel)

MAX_TIMEOUT = 3600.0  # seconds
_SWITCH = "--enable-admin-api"
_PASSED_ON = ("forwarded", "via", "x-forwarded-for", "x-real-ip")  # headers that proxies add


async def _require_switch(request: Request) -> None:
    if not service_of(request).admin_api:
        what = f"{request.method} {request.url.path}"
        raise ApiError(403, f"{what} is off: start the server with {_SWITCH}", code="admin_api_disabled")


admin = APIRouter(dependencies=[Depends(_require_switch)])
debug = APIRouter()


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PauseQuery(_Query):
    """mode "keep" and clear_cache are what vLLM calls "preempt" and reset_prefix_cache."""

    mode: Literal["abort", "preempt", "keep"] = "abort"
    reset_prefix_cache: bool | None = None
    clear_cache: bool | None = None
    timeout: float = Field(30.0, gt=0, le=MAX_TIMEOUT)

    @property
    def resets(self) -> bool:
        """What is said by either name; by default the cache is reset."""
        return (True if self.clear_cache is None else self.clear_cache) and self.reset_prefix_cache is not False


class ResetQuery(_Query):
    timeout: float = Field(5.0, gt=0, le=MAX_TIMEOUT)


def _read(request: Request, model: type[Q]) -> Q:
    """The query string. Raises ValidationError, also for a parameter that is not known."""
    return model.model_validate(dict(request.query_params))


def _described(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a query string that the route reads itself."""
    properties = model.model_json_schema()["properties"]
    return {"parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]}


@admin.post("/pause", openapi_extra=_described(PauseQuery))
async def pause(request: Request) -> Response:
    """Refuse new requests (503) and compute nothing until /resume; answers when the device is idle.

    mode=abort ends the requests inside with what they have so far and finish_reason "abort"; mode=preempt keeps them.
    The prefix cache is reset unless reset_prefix_cache=false. 504 if the device is not idle within `timeout` seconds;
    the server is paused all the same.
    """
    query = _read(request, PauseQuery)
    mode: Literal["abort", "preempt"] = "abort" if query.mode == "abort" else "preempt"
    await service_of(request).client.pause(mode, reset_prefix_cache=query.resets, timeout=query.timeout)
    return answer(Status("paused"))


@admin.post("/resume")
async def resume(request: Request) -> Response:
    """Take requests again, and go on with those that were kept."""
    _read(request, _Query)
    await service_of(request).client.resume()
    return answer(Status("resumed"))


@admin.get("/is_paused")
async def is_paused(request: Request) -> Response:
    """Whether new requests are refused because of a pause."""
    _read(request, _Query)
    return answer(PauseState(await service_of(request).client.is_paused()))


@admin.post("/reset_prefix_cache", openapi_extra=_described(ResetQuery))
async def reset_prefix_cache(request: Request) -> Response:
    """Forget what is cached of earlier prompts. Running requests go on."""
    query = _read(request, ResetQuery)
    return answer(Reset(await service_of(request).client.reset_prefix_cache(query.timeout)))


@debug.get("/debug/ownership")
async def ownership(request: Request) -> Response:
    """Who owns which slots and blocks, recounted: 200 with `ok` true or false. What `headway doctor` asks."""
    service = service_of(request)
    if not (service.admin_api or _is_local(request)):
        raise ApiError(
            403,
            f"this is answered on the server's own host; for others start the server with {_SWITCH}",
            code="admin_api_disabled",
        )
    report, limits = await service.client.audit(), service.client.config
    return answer(
        Ownership(
            ok=report.ok,
            problems=report.problems,
            num_requests=report.num_requests,
            num_slots=limits.max_num_seqs,
            num_slots_used=report.num_slots_used,
            num_blocks=limits.num_blocks - 1,
            num_blocks_referenced=report.num_blocks_referenced,
            num_blocks_evictable=report.num_blocks_evictable,
            num_blocks_free=report.num_blocks_free,
            num_leases=report.num_leases,
            owners=report.owners,
        )
    )


def _is_local(request: Request) -> bool:
    """Whether it comes from this host, and from nobody behind a proxy here that says so."""
    if request.client is None or any(name in request.headers for name in _PASSED_ON):
        return False
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
