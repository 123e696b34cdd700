"""Routes for the operator of the server, and not for its clients.

    POST /pause    POST /resume    GET /is_paused    POST /reset_prefix_cache      GET /debug/ownership

The first four need the option `--enable-admin-api`: a client that can reach them can stop the server, and they ask for
no password. The last changes nothing, but it names requests and costs the scheduler a recount. So without the option it
answers only requests from the server's own host, and no request that a proxy forwards.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from headway.client.strict_model import StrictModel
from headway.server.answers.answer_bodies import Ownership, PauseState, Reset, Status
from headway.server.errors import ApiError
from headway.server.service import answer, service_of

Q = TypeVar("Q", bound=BaseModel)

MAX_TIMEOUT = 3600.0  # seconds
_SWITCH = "--enable-admin-api"
_PASSED_ON = ("forwarded", "via", "x-forwarded-for", "x-real-ip", "origin")  # of proxies, and of web pages


async def _require_switch(request: Request) -> None:
    if not service_of(request).admin_api:
        what = f"{request.method} {request.url.path}"
        raise ApiError(403, f"{what} is off: start the server with {_SWITCH}", code="admin_api_disabled")


admin = APIRouter(dependencies=[Depends(_require_switch)])
debug = APIRouter()


class _Query(StrictModel):
    model_config = ConfigDict(strict=False, allow_inf_nan=False)  # values in a URL are texts


class PauseQuery(_Query):
    """The mode "keep" and `clear_cache` are vLLM's names for "preempt" and `reset_prefix_cache`."""

    mode: Literal["abort", "preempt", "keep"] = "abort"
    reset_prefix_cache: bool | None = None
    clear_cache: bool | None = None
    timeout: float = Field(30.0, gt=0, le=MAX_TIMEOUT)

    @property
    def resets(self) -> bool:
        """Whether to reset the prefix cache, by either name; by default it is reset."""
        return (True if self.clear_cache is None else self.clear_cache) and self.reset_prefix_cache is not False


class ResetQuery(_Query):
    timeout: float = Field(5.0, gt=0, le=MAX_TIMEOUT)


def _read(request: Request, model: type[Q]) -> Q:
    """The query string as `model`. Raises ValidationError, also for an unknown parameter."""
    return model.model_validate(dict(request.query_params))


def _described(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a query string that the route reads itself."""
    properties = model.model_json_schema()["properties"]
    return {"parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]}


@admin.post("/pause", openapi_extra=_described(PauseQuery))
async def pause(request: Request) -> Response:
    """Refuse new requests (503) and compute nothing until /resume. Answers when the device is idle.

    mode=abort: requests in the engine end now, with their output so far and finish_reason "abort". mode=preempt: they
    wait for /resume. The prefix cache is reset unless reset_prefix_cache=false. 504 if the device is not idle within
    `timeout` seconds; the server is paused all the same.
    """
    query = _read(request, PauseQuery)
    mode: Literal["abort", "preempt"] = "abort" if query.mode == "abort" else "preempt"
    await service_of(request).client.pause(mode, reset_prefix_cache=query.resets, timeout=query.timeout)
    return answer(Status("paused"))


@admin.post("/resume")
async def resume(request: Request) -> Response:
    """Accept requests again, and go on with the requests that wait since /pause."""
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
    """Empty the prefix cache. Running requests go on."""
    query = _read(request, ResetQuery)
    return answer(Reset(await service_of(request).client.reset_prefix_cache(query.timeout)))


@debug.get("/debug/ownership")
async def ownership(request: Request) -> Response:
    """Recount the slots and blocks of all owners: 200, with `ok` true or false. `headway doctor` asks for it."""
    service = service_of(request)
    if not (service.admin_api or _is_local(request)):
        raise ApiError(
            403,
            f"this is answered only on the server's own host; for other hosts start the server with {_SWITCH}",
            code="admin_api_disabled",
        )
    report = await service.client.audit()
    limits = [engine.config for engine in service.client.engines.values()]
    return answer(
        Ownership(
            ok=report.ok,
            problems=report.problems,
            num_requests=report.num_requests,
            num_slots=sum(one.max_num_seqs for one in limits),
            num_slots_used=report.num_slots_used,
            num_blocks=sum(one.num_blocks - 1 for one in limits),
            num_blocks_referenced=report.num_blocks_referenced,
            num_blocks_evictable=report.num_blocks_evictable,
            num_blocks_free=report.num_blocks_free,
            num_leases=report.num_leases,
            owners=report.owners,
        )
    )


def _is_local(request: Request) -> bool:
    """Whether the request comes from this host, and neither a proxy nor a web page sends it, as far as its headers
    show."""
    if request.client is None or any(name in request.headers for name in _PASSED_ON):
        return False
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
