"""`headway top`: a running server in numbers, live in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from headway.commands.remote_options import ApiKeyOption, CaCertsOption, http_options
from headway.commands.server_urls import server_url

if TYPE_CHECKING:
    from headway.commands.remote_server import RemoteServer
    from headway.top.page import Page
    from headway.top.screen import Screen
    from headway.top.window import Window

EXAMPLES = (
    "headway top",
    "headway top 10.0.0.5:8000 --interval 5",
    "headway top --lines --count 12 > load.txt",
)


_TIMEOUT = 5.0  # seconds


def command(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Address of the server; HOST:PORT will do.")
    ] = "http://127.0.0.1:8000",
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.2, help="Seconds between two looks at the server.")
    ] = 2.0,
    count: Annotated[
        int, typer.Option("--count", "-n", min=0, help="End after so many windows; 0: never.", show_default=False)
    ] = 0,
    lines: Annotated[
        bool, typer.Option("--lines", help="A line for each window, as where standard output is no terminal.")
    ] = False,
    api_key: ApiKeyOption = None,
    ssl_ca_certs: CaCertsOption = None,
) -> None:
    """Watch a running server: rates, latencies, slots, blocks, queue.

    Ctrl-C leaves. Each number is of one window, that is the time between two looks.
    """
    from headway.commands.remote_server import RemoteServer
    from headway.top.screen import Screen

    url = server_url(url).removesuffix("/v1")
    server = RemoteServer(url, http_options(api_key, ssl_ca_certs), timeout=_TIMEOUT)
    before = page_of(server)
    screen = Screen(server.url)
    with server, suppress(KeyboardInterrupt):  # the usual way to leave
        windows = _windows(server, before, interval, count)
        if lines or not sys.stdout.isatty():
            for window, trouble in windows:
                print(trouble or screen.line(window), flush=True)
        else:
            _draw(screen, windows)


def _draw(screen: Screen, windows: Iterator[tuple[Window, str | None]]) -> None:
    from rich.live import Live

    with Live(screen=True, auto_refresh=False) as live:
        for window, trouble in windows:
            live.update(screen.picture(window, trouble), refresh=True)


def _windows(server: RemoteServer, before: Page, interval: float, count: int) -> Iterator[tuple[Window, str | None]]:
    """A window for each look. If the server does not answer, the window before, and why there is none newer."""
    from headway.top.window import Window

    window = Window(before, before)
    number = 0
    while not count or number < count:
        time.sleep(interval)
        number += 1
        try:
            window = Window(window.now, page_of(server))
        except ValueError as error:
            yield window, str(error)
        else:
            yield window, None


def page_of(server: RemoteServer) -> Page:
    """Its metrics now, which cost it some milliseconds. Raises ValueError, in one line, if it does not give them."""
    from headway.commands.remote_server import complaint
    from headway.top.page import Page

    answer = server.get("/metrics")
    if answer.status_code != 200:
        raise ValueError(f"{server.url} does not answer: {complaint(answer)}")
    try:
        return Page(answer.text, time.monotonic())
    except ValueError as error:
        raise ValueError(f"{server.url} is no Headway server, or one of another version: {error}") from None
