"""GET / for browsers: what runs here, and where to read on."""

from __future__ import annotations

from fastapi import Request, Response

from headway import __version__, default_model
from headway.server.banner import DEMO, kind_of
from headway.server.pages.page import page
from headway.server.service import Service

_LINKS = (
    ("/docs", "the paths and the fields of requests"),
    ("/v1/models", "the names of the model"),
    ("/metrics", "numbers for Prometheus"),
    ("/health", "whether requests can be served"),
)


def wants_page(request: Request) -> bool:
    """Whether a browser asks: programs ask for anything, or for JSON."""
    return "text/html" in request.headers.get("Accept", "")


def front_page(request: Request, service: Service) -> Response:
    """The page of this server, now."""
    client = service.client
    now, limits = client.snapshot, [engine.config for engine in client.engines.values()]
    num_tokens = sum((config.num_blocks - 1) * config.block_size for config in limits)
    num_slots = sum(config.max_num_seqs for config in limits)
    health = "the server stops" if service.draining else client.why_unhealthy() or "well"
    facts = {
        "kind": kind_of(client.files),
        "computes": f"on {client.placement.device} in {client.placement.dtype}",
        "context": f"{client.config.max_model_len:,} tokens",
        "KV cache": f"{num_tokens:,} tokens, {now.kv_cache_usage:.0%} in use",
        "requests": f"{now.num_running:,} run on {num_slots:,} slots, {now.num_waiting:,} wait",
        "health": health,
    }
    has_docs = request.app.openapi_url is not None
    return page(
        "front.html",
        request,
        model=service.model_name,
        version=__version__,
        demo=DEMO if client.files.path == default_model.PATH else None,
        facts=list(facts.items()),
        links=[link for link in _LINKS if link[0] != "/docs" or has_docs],
    )
