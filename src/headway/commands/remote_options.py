"""The options of commands that ask a server, declared once: its key, its certificate, the model."""

from __future__ import annotations

import os
import ssl
from typing import Annotated, Any

import typer

from headway.server.entrance.keys import KEYS_VARIABLE, keys_in


class AnswerError(Exception):
    """An answer ended before its end, and says why."""


_PANEL = "A running server"
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help=f"Key of the server. Others can see it (ps): better in {KEYS_VARIABLE}, whose first key is taken.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
CaCertsOption = Annotated[
    str | None,
    typer.Option(
        "--ssl-ca-certs",
        metavar="PEM",
        help="Authority that signs the server's certificate.",
        show_default="the usual",
        rich_help_panel=_PANEL,
    ),
]
ModelNameOption = Annotated[
    str | None,
    typer.Option(
        "--model-name",
        metavar="NAME",
        help="The model to ask for; the same as --model.",
        show_default="the first that the server names",
        rich_help_panel=_PANEL,
    ),
]


def key_headers(api_key: str | None) -> dict[str, str]:
    """The header with the key, from the option or the environment; none without a key."""
    given = api_key or next(iter(keys_in(os.environ.get(KEYS_VARIABLE, ""))), None)
    return {} if given is None else {"Authorization": f"Bearer {given}"}


def http_options(api_key: str | None, ca_certs: str | None) -> dict[str, Any]:
    """Arguments of httpx for a server. Raises ValueError for authorities that cannot be read."""
    options: dict[str, Any] = {"headers": key_headers(api_key)}
    if ca_certs is not None:
        try:
            options["verify"] = ssl.create_default_context(cafile=ca_certs)
        except OSError as error:  # of the file, or of what is in it
            raise ValueError(f"--ssl-ca-certs {ca_certs} cannot be used: {error.strerror or error}") from None
    return options
