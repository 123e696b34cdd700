"""Engines and API processes as deployments of Ray Serve, on one machine or many.

    client ──HTTP──▶ Ray's proxy ──▶ API replica                        Engine replica
                                     the FastAPI application            owns an engine process, tells of its health
                                       │ Ray's router, by our rules        │ stdin, ipc: Attach, Detach
                                       │ ── a call ───────────────────────▶│ open while it has requests there
                                       │                                   ▼
                                       └── requests, tokens: wire/ over tcp ── engine process

Ray places and restarts replicas, and counts what each has to do. It carries no token: requests go from the API replica
to the engine process, and tokens come back, by the messages of `wire/` over encrypted sockets whose keys Ray hands out.
By the same sockets each engine process says to each API replica which blocks its cache holds (`CacheNews`, with numbers
that show a gap); so all of them choose alike, whatever was sent by which.

options.py          what a cluster is made of, from the arguments of `build_app`
app.py              the deployments
engine_replica.py   one engine and its desk;  api_replica.py: the application, and its engines
remote_engines.py   the engines of an API replica, as the server sees them;  holds.py: its open calls
placed_request.py   a request that is placed when it is first read
offices.py          where Ray's router and the engines of a process meet;  request_router.py: Ray's side
desk.py             what API replicas tell an engine replica
scaling.py          how loaded an engine is, and how many there should be
start.py            `headway serve --ray`

Only app, the replicas, the router and start import Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


class RayMissing(ValueError):
    """Ray is not installed here; the message says, in one line, how to get it."""


def check_ray() -> None:
    """Raises RayMissing where Ray Serve is not installed."""
    try:
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise RayMissing(f"Ray Serve is not installed ({error}): pip install 'headway[ray]'") from None


def build_app(args: Mapping[str, Any]) -> Application:
    """The application, for `serve run headway.cluster.ray:build_app model=...` and for the YAML of `serve deploy`.

    args: see `options.ClusterOptions.read`. Raises ValueError, with one line, for what could not work.
    """
    check_ray()
    from headway.cluster.ray.app import application
    from headway.cluster.ray.options import ClusterOptions

    return application(ClusterOptions.read(args))
