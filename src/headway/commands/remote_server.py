"""A running server, as commands ask it over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

CONNECT_TIMEOUT = 5.0  # seconds


class RemoteServer:
    """url: what comes before all paths. timeout: seconds for an answer, or for the next piece of it. options: of httpx,
    for key and certificate."""

    def __init__(self, url: str, options: Mapping[str, Any], *, timeout: float) -> None:
        self.url = url.rstrip("/")
        # Without the environment's proxies: the usual server is on this host, which no proxy leads to.
        self.http = httpx.Client(timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT), trust_env=False, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End its connections."""
        self.http.close()

    def get(self, path: str) -> httpx.Response:
        """The server's answer, whatever its status. Raises ValueError, in one line, if there is none."""
        try:
            return self.http.get(self.url + path)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.no_answer(error) from None

    def no_answer(self, error: Exception) -> ValueError:
        """The error, in one line, for an error of httpx."""
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return ValueError(f"{self.url!r} is no URL of a server: {error}")
        return ValueError(f"cannot reach a server at {self.url}: {str(error) or type(error).__name__}")


def complaint(response: httpx.Response) -> str:
    """The error message in a response of OpenAI's API; of other servers, the HTTP status."""
    try:
        return str(response.json()["error"]["message"])
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError):
        return f"HTTP status {response.status_code}"
