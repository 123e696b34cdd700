"""`headway top`: a running server in numbers, live in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from headway.commands.server_urls import server_url

if TYPE_CHECKING:
    from headway.top.page import Page
    from headway.top.screen import Screen
    from headway.top.server import Server
    from headway.top.window import Window

EXAMPLES = (
    "headway top",
    "headway top 10.0.0.5:8000 --interval 5",
    "headway top --lines --count 12 > load.txt",
)


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
) -> None:
    """Watch a running server: rates, latencies, slots, blocks, queue.

    Ctrl-C leaves. Each number is of one window, that is the time between two looks.
    """
    from headway.top.screen import Screen
    from headway.top.server import Server

    server = Server(server_url(url).removesuffix("/v1"))
    before = server.page()
    screen = Screen(server.url)
    with suppress(KeyboardInterrupt):  # the usual way to leave
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


def _windows(server: Server, before: Page, interval: float, count: int) -> Iterator[tuple[Window, str | None]]:
    """A window for each look. If the server does not answer, the window before, and why there is none newer."""
    from headway.top.window import Window

    window = Window(before, before)
    number = 0
    while not count or number < count:
        time.sleep(interval)
        number += 1
        try:
            window = Window(window.now, server.page())
        except ValueError as error:
            yield window, str(error)
        else:
            yield window, None
