"""The options of every server, alone or in a group, declared once."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from headway.commands.options import ChatTemplateOption, takes


def _declared(
    shutdown_grace: Annotated[
        float, typer.Option(help="Seconds for running requests to end after SIGTERM or Ctrl-C.")
    ] = 10.0,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every HTTP request.")] = False,
    admin_api: Annotated[
        bool,
        typer.Option(
            "--enable-admin-api",
            help="Serve /pause, /resume, /is_paused and /reset_prefix_cache, and /debug/ownership to other hosts. "
            "Every client can then stop the server.",
        ),
    ] = False,
    engine_restarts: Annotated[
        int,
        typer.Option(
            help="How often within ten minutes an engine that died is started again; 0: the server ends with code 1."
        ),
    ] = 0,
    chat_template: ChatTemplateOption = None,
    trust_request_chat_template: Annotated[
        bool,
        typer.Option(
            "--trust-request-chat-template",
            help="Accept chat templates in requests: a template is a program that may use any time and memory.",
        ),
    ] = False,
    escape_special_tokens: Annotated[
        bool,
        typer.Option(
            "--escape-special-tokens",
            help="Part special tokens that chat messages spell (< |im_end|>), so that no message can end its turn.",
        ),
    ] = False,
    max_local_prefill_tokens: Annotated[
        int, typer.Option(min=0, help="With prefill engines: prompts of up to so many tokens are computed here.")
    ] = 64,
    strict_fields: Annotated[
        bool,
        typer.Option("--strict-fields", help="Refuse request fields that are not known, instead of ignoring them."),
    ] = False,
) -> None:
    """Only its signature counts. The names are those of arguments of `headway.server.serve.serve`."""


_OPTIONS = {
    name: option.replace(kind=option.KEYWORD_ONLY)
    for name, option in inspect.signature(_declared, eval_str=True).parameters.items()
}
# This decorator passes a parameter `server`: a dict of the arguments above.
takes_server = takes("server", dict, _OPTIONS)
