"""URLs of servers, as people type them: `localhost:8000` is http://localhost:8000."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_WITH_PORT = re.compile(r"([^\s/:@?#]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}(/\S*)?")  # HOST:PORT, and what follows


def server_url(given: str, path: str = "") -> str:
    """The URL of a server, without a slash at its end; http:// is assumed. path: for a URL that has none of its own,
    /v1. Raises ValueError, in one line, for what is no URL of a server."""
    text = given.strip()
    url = f"http://{text}" if _WITH_PORT.fullmatch(text) else text
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # raises for a port that cannot be
    except ValueError as error:
        raise _no_url(given, str(error)) from None
    if parts.scheme not in ("http", "https") or not host:
        raise _no_url(given, "it has no http:// or https:// and no port" if not parts.scheme else "")
    url = url.rstrip("/")
    return url + path if parts.path in ("", "/") and not parts.query else url


def _no_url(given: str, why: str) -> ValueError:
    return ValueError(f"{given!r} is no URL of a server{': ' * bool(why)}{why}: write http://HOST:PORT or HOST:PORT")
