"""A page for browsers, made of a template in this folder."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=PackageLoader(__package__, "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "Vary": "Accept"}


def page(template: str, request: Request, **facts: Any) -> Response:
    """root: the path of a proxy, which begins all links."""
    root = str(request.scope.get("root_path", "")).rstrip("/")
    text = _TEMPLATES.get_template(template).render(root=root, **facts)
    return Response(text, media_type="text/html", headers=_HEADERS)
