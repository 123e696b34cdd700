"""The options of every server, alone or in a group, declared once."""

from __future__ import annotations

import inspect
import json
import logging
import os
from typing import Annotated, Any, Literal

import typer

from headway.commands.environment import PREFILL_KEY_VARIABLE
from headway.commands.options import ChatTemplateOption, ReasoningParserOption, ToolCallParserOption, takes
from headway.logs import LogFormat, LogLevel
from headway.server.entrance.doors import Doors
from headway.server.entrance.keys import given_keys, is_open_to_others
from headway.server.entrance.tls import Tls
from headway.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_SERVER = "Server"
_DOORS = "Keys, TLS and browsers"
_LOGS = "Logs"
_IN_PS = "A key on the command line can be seen by every user of the machine (ps)"


def _declared(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes any free port.")] = 8000,
    shutdown_grace: Annotated[
        float,
        typer.Option(help="Seconds for running requests to end after SIGTERM or Ctrl-C.", rich_help_panel=_SERVER),
    ] = 10.0,
    admin_api: Annotated[
        bool,
        typer.Option(
            "--enable-admin-api",
            help="Serve /pause, /resume, /is_paused and /reset_prefix_cache, and /debug/ownership to other hosts. "
            "Every client can then stop the server.",
            rich_help_panel=_SERVER,
        ),
    ] = False,
    engine_restarts: Annotated[
        int,
        typer.Option(
            help="How often within ten minutes an engine that died is started again; 0: the server ends with code 1.",
            rich_help_panel=_SERVER,
        ),
    ] = 0,
    model_aliases: Annotated[
        list[str],
        typer.Option(
            "--model-alias",
            metavar="NAME",
            help="One more name of the model; may be given several times.",
            rich_help_panel=_SERVER,
        ),
    ] = [],  # noqa: B006  typer makes a new list for each call
    chat_template: ChatTemplateOption = None,
    trust_request_chat_template: Annotated[
        bool,
        typer.Option(
            "--trust-request-chat-template",
            help="Accept chat templates in requests: a template is a program that may use any time and memory.",
            rich_help_panel=_SERVER,
        ),
    ] = False,
    escape_special_tokens: Annotated[
        bool,
        typer.Option(
            "--escape-special-tokens",
            help="Part special tokens that chat messages spell (<|im_end|>), so that no message can end its turn.",
            rich_help_panel=_SERVER,
        ),
    ] = False,
    max_local_prefill_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            help="With prefill engines: prompts of up to so many tokens are computed here.",
            rich_help_panel=_SERVER,
        ),
    ] = 64,
    strict_fields: Annotated[
        bool,
        typer.Option(
            "--strict-fields",
            help="Refuse request fields that are not known, instead of ignoring them.",
            rich_help_panel=_SERVER,
        ),
    ] = False,
    tool_call_parser: ToolCallParserOption = None,
    enable_auto_tool_choice: Annotated[
        bool,
        typer.Option(
            "--enable-auto-tool-choice",
            help="Refuse to start if the form of the model's calls is not known.",
            rich_help_panel="Tools and reasoning",
        ),
    ] = False,
    reasoning_parser: ReasoningParserOption = None,
    api_key: Annotated[
        list[str],
        typer.Option(
            metavar="KEY",
            help=f"Key that requests must show (Authorization: Bearer KEY); may be given several times. {_IN_PS}: "
            "better in HEADWAY_API_KEY, or in a file.",
            show_default="no key is asked for",
        ),
    ] = [],  # noqa: B006
    api_key_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.toml",
            rich_help_panel=_DOORS,
            help='Keys in TOML, [[key]] tables of key = "...", and if wanted tenant and cache_salt.',
            show_default=False,
        ),
    ] = None,
    protect: Annotated[
        list[str],
        typer.Option(
            metavar="PATH",
            rich_help_panel=_DOORS,
            help="Ask for a key at this path too, /metrics for instance. Without it /health, /ping, /metrics, "
            "/version, / and the documents are open. May be given several times.",
        ),
    ] = [],  # noqa: B006
    ssl_certfile: Annotated[
        str | None, typer.Option(metavar="PEM", rich_help_panel=_DOORS, help="Certificate of the server: serve https.")
    ] = None,
    ssl_keyfile: Annotated[
        str | None,
        typer.Option(
            metavar="PEM", rich_help_panel=_DOORS, help="Its private key.", show_default="in the file of --ssl-certfile"
        ),
    ] = None,
    ssl_keyfile_password: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            envvar="HEADWAY_SSL_KEYFILE_PASSWORD",
            rich_help_panel=_DOORS,
            help="Of an encrypted private key.",
        ),
    ] = None,
    ssl_ca_certs: Annotated[
        str | None,
        typer.Option(metavar="PEM", rich_help_panel=_DOORS, help="Authorities that sign certificates of clients."),
    ] = None,
    ssl_cert_reqs: Annotated[
        int,
        typer.Option(
            rich_help_panel=_DOORS, help="Certificates of clients: 0: none is asked for; 1: optional; 2: required."
        ),
    ] = 0,
    ssl_ciphers: Annotated[
        str | None,
        typer.Option(metavar="LIST", rich_help_panel=_DOORS, help="Ciphers up to TLS 1.2.", show_default="OpenSSL's"),
    ] = None,
    root_path: Annotated[
        str, typer.Option(metavar="PATH", rich_help_panel=_DOORS, help="Path that a proxy puts before all paths.")
    ] = "",
    allowed_origins: Annotated[
        str,
        typer.Option(
            metavar="JSON",
            rich_help_panel=_DOORS,
            help="Origins of web pages whose scripts may read answers: '[\"https://chat.example\"]'; '[\"*\"]': all.",
        ),
    ] = "[]",
    allowed_methods: Annotated[
        str, typer.Option(metavar="JSON", rich_help_panel=_DOORS, help="Methods of their requests.")
    ] = '["*"]',
    allowed_headers: Annotated[
        str, typer.Option(metavar="JSON", rich_help_panel=_DOORS, help="Headers of their requests.")
    ] = '["*"]',
    allow_credentials: Annotated[
        bool, typer.Option("--allow-credentials", rich_help_panel=_DOORS, help="Let them send cookies.")
    ] = False,
    no_docs: Annotated[
        bool,
        typer.Option("--disable-fastapi-docs", rich_help_panel=_DOORS, help="Do not serve /docs and /openapi.json."),
    ] = False,
    no_stats: Annotated[
        bool,
        typer.Option(
            "--disable-log-stats", rich_help_panel=_LOGS, help="Write no line with the load every ten seconds."
        ),
    ] = False,
    access_log: Annotated[
        bool, typer.Option("--access-log", rich_help_panel=_LOGS, help="Log every HTTP request.")
    ] = False,
    quiet_paths: Annotated[
        str,
        typer.Option(
            "--disable-access-log-for-endpoints",
            metavar="PATH,...",
            rich_help_panel=_LOGS,
            help="With --access-log: leave requests of these paths out.",
        ),
    ] = "",
    log_format: Annotated[
        LogFormat, typer.Option(rich_help_panel=_LOGS, help="text, or json: one object per line, of every process.")
    ] = LogFormat.TEXT,
    log_level: Annotated[
        LogLevel,
        typer.Option(
            case_sensitive=False, rich_help_panel=_LOGS, help="Write lines of this weight and above, of every process."
        ),
    ] = LogLevel.INFO,
    uvicorn_log_level: Annotated[
        Literal["critical", "error", "warning", "info", "debug", "trace"] | None,
        typer.Option(metavar="LEVEL", rich_help_panel=_LOGS, help="Of the HTTP server.", show_default="warning"),
    ] = None,
) -> None:
    """Only its signature counts."""


def _settings(
    *,
    api_key: list[str],
    api_key_file: str | None,
    protect: list[str],
    no_docs: bool,
    no_stats: bool,
    root_path: str,
    allow_credentials: bool,
    quiet_paths: str,
    **more: Any,
) -> ServerSettings:
    """The options as a record. Raises ValueError for values that cannot be."""
    plain, keys = given_keys(api_key, api_key_file)
    if api_key_file is not None and is_open_to_others(api_key_file):
        logger.warning("other users of this machine can read the keys in %s: chmod 600 is safer", api_key_file)
    tls = {name.removeprefix("ssl_"): more.pop(name) for name in list(more) if name.startswith("ssl_")}
    origins = {name: _texts(name, more.pop(name)) for name in list(more) if name.startswith("allowed_")}
    prefill_key = os.environ.get(PREFILL_KEY_VARIABLE) or (plain[0] if plain else None)
    return ServerSettings(
        tls=Tls(**tls),
        doors=Doors(
            keys=tuple(keys),
            protect=tuple(protect),
            root_path=root_path,
            docs=not no_docs,
            allow_credentials=allow_credentials,
            **origins,
        ),
        prefill_api_key=prefill_key,
        log_stats=not no_stats,
        model_aliases=tuple(more.pop("model_aliases")),
        quiet_paths=tuple(filter(None, quiet_paths.split(","))),
        **more,
    )


def _texts(name: str, given: str) -> tuple[str, ...]:
    """A list of texts in JSON."""
    try:
        texts = json.loads(given)
    except json.JSONDecodeError:
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        flag = name.replace("_", "-")
        raise ValueError(f"--{flag} takes a list of texts in JSON, '[\"https://chat.example\"]', got {given!r}")
    return tuple(texts)


_OPTIONS = {
    name: option.replace(kind=option.KEYWORD_ONLY)
    for name, option in inspect.signature(_declared, eval_str=True).parameters.items()
}
# This decorator passes a parameter `server`: `ServerSettings` of the options above.
takes_server = takes("server", _settings, _OPTIONS)
