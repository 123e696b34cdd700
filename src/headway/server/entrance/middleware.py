"""The layers around all routes, in their order.

    envelope (request id, metrics, last errors) ─ CORS ─ key ─ routes

A preflight of CORS passes without a key, since browsers send none with it. A refusal of the key has the headers of
CORS, since a script could not read it otherwise.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from headway.server.entrance.doors import Doors
from headway.server.entrance.envelope import HEADER, Envelope
from headway.server.entrance.key_check import KeyCheck
from headway.server.entrance.keys import Keys
from headway.server.metrics.server_metrics import ServerMetrics


def install(app: FastAPI, doors: Doors, metrics: ServerMetrics) -> None:
    """Put the layers around the routes of `app`; the last is the outermost."""
    if doors.keys:
        app.add_middleware(KeyCheck, keys=Keys(doors.keys), protected=doors.protect)
    if doors.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=doors.allowed_origins,
            allow_methods=doors.allowed_methods,
            allow_headers=doors.allowed_headers,
            allow_credentials=doors.allow_credentials,
            expose_headers=(HEADER,),
        )
    app.add_middleware(Envelope, metrics=metrics)
