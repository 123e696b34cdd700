"""The server that `headway top` asks."""

from __future__ import annotations

import time

import httpx

from headway.top.page import Page

_TIMEOUT = 5.0  # seconds


class Server:
    """A server by its URL. Its page of metrics costs it some milliseconds."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # Without the environment's proxies: the usual server is on this host, which no proxy leads to.
        self._http = httpx.Client(timeout=_TIMEOUT, trust_env=False)

    def page(self) -> Page:
        """Its metrics now. Raises ValueError, in one line, if it does not give them."""
        try:
            answer = self._http.get(f"{self.url}/metrics")
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ValueError(f"{self.url!r} is no URL of a server: {error}") from None
        except httpx.HTTPError as error:
            raise ValueError(f"cannot reach a server at {self.url}: {str(error) or type(error).__name__}") from None
        if answer.status_code != 200:
            raise ValueError(f"{self.url}/metrics answers with HTTP status {answer.status_code}")
        try:
            return Page(answer.text, time.monotonic())
        except ValueError as error:
            raise ValueError(f"{self.url} is no Headway server, or one of another version: {error}") from None
