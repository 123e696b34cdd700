"""`headway doctor`: the owner of each slot and block in a running server, and a check that all is in order."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from headway.commands.remote_options import ApiKeyOption, CaCertsOption, http_options
from headway.commands.server_urls import server_url

if TYPE_CHECKING:
    from headway.server.answers.answer_bodies import Ownership

EXAMPLES = (
    "headway doctor",
    "headway doctor 10.0.0.5:8000",
    "headway doctor https://llm.example --json",
)
PROBLEMS = 1  # exit code
ANSWER_TIMEOUT = 60.0  # seconds; the recount itself may take the engine 30
PATH = "/debug/ownership"


def command(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Address of the server; HOST:PORT will do.")
    ] = "http://127.0.0.1:8000",
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's report as one JSON object.")] = False,
    api_key: ApiKeyOption = None,
    ssl_ca_certs: CaCertsOption = None,
) -> None:
    """Ask a running server which request owns which slot and blocks.

    Exit code 0: all is in order. 1: there is a problem, or the engine is dead.
    2: the server does not answer. A server answers this question to its own host
    only; with --enable-admin-api, to any host.
    """
    import msgspec

    from headway.commands.remote_server import RemoteServer, complaint
    from headway.server.answers.answer_bodies import Ownership

    url = server_url(url).removesuffix("/v1")
    with RemoteServer(url, http_options(api_key, ssl_ca_certs), timeout=ANSWER_TIMEOUT) as server:
        response = server.get(PATH)
    if response.status_code >= 500:
        print(f"headway: {url}: {complaint(response)}", file=sys.stderr)
        raise typer.Exit(PROBLEMS)
    if response.status_code != 200:
        raise ValueError(f"{url} does not answer: {complaint(response)}")
    try:
        report = msgspec.json.decode(response.content, type=Ownership)
    except msgspec.DecodeError as error:
        raise ValueError(f"{url} is no Headway server, or one of another version: {error}") from None
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(url, report)
    if not report.ok:
        raise typer.Exit(PROBLEMS)


def _print(url: str, report: Ownership) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    verdict = "all is in order" if report.ok else f"{len(report.problems)} problem(s)"
    console.print(Text(f"{url}: {verdict}", style="bold" if report.ok else "bold red"))
    for problem in report.problems:
        console.print(Text(f"  {_shown(problem)}", style="red"))
    console.print(
        f"{report.num_requests} requests; {report.num_slots_used} of {report.num_slots} slots used; of "
        f"{report.num_blocks} blocks {report.num_blocks_referenced} referenced, {report.num_blocks_evictable} "
        f"evictable, {report.num_blocks_free} free; {report.num_leases} leases",
        soft_wrap=True,
    )
    if report.owners:
        table = Table("owner", "kind", box=None, header_style="bold")
        for name in ("slot", "blocks", "held for"):
            table.add_column(name, justify="right")
        table.add_column("peer")
        for owner in report.owners:
            slot = "" if owner.slot is None else str(owner.slot)
            held = "" if owner.seconds is None else f"{owner.seconds:,.1f} s"
            whose, peer = Text(_shown(owner.name), overflow="fold"), Text(owner.peer or "")
            table.add_row(whose, owner.kind, slot, str(owner.num_blocks), held, peer)
        console.print(table)


def _shown(text: str) -> str:
    """The text, safe to print. Clients choose request ids, so characters that could move the cursor are escaped."""
    return text if text.isprintable() else repr(text)
