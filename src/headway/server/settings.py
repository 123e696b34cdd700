"""The settings of a server that a user can choose, beside those of its engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from headway.logs import LogFormat, LogLevel
from headway.server.entrance.doors import Doors
from headway.server.entrance.tls import Tls

MOST_PROCESSES = 256  # of a kind, on one machine
UvicornLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Address
    host, port: where it listens; port 0: any free one.
    tls, doors: see there.

    Answers
    model_aliases: more names of the model, which requests may use.
    chat_template: used instead of the model's template: a file, the text of a template, or the name of a template of
        the tokenizer.
    trust_request_chat_template: requests may bring a template, whose time and memory have no limit.
    escape_special_tokens: special tokens that chat messages spell are text, and not tokens.
    strict_fields: refuse fields of requests that are not known, instead of ignoring them.
    tool_call_parser, reasoning_parser: how the model calls tools and thinks, see docs/tools.md.
    enable_auto_tool_choice: do not start if it is not known how the model calls tools.
    admin_api: serve /pause, /resume, /is_paused and /reset_prefix_cache, and /debug/ownership to every host.

    Prefill engines
    prefill: URLs of prefill engines, which this server asks to compute prompts of more than `max_local_prefill_tokens`
        tokens. What they lend must be among `kv_peers` of the engine.
    prefill_api_key: the key that they ask for.

    Processes
    api_server_count: API processes, which share the port. data_parallel_size: engines, which share the requests. With
        both 1 the API process owns its engine; else a supervisor owns all.

    Life
    shutdown_grace: seconds that running requests may go on after the signal.
    engine_restarts: how often within ten minutes an engine that died is started again.
    engine_args: for the engine process, see `python -m headway.engine.process --help`.

    Logs
    log_stats: a line with the load every ten seconds, while there is any.
    access_log: a line for every HTTP request, but for `quiet_paths`. log_format: of every line, of the engine process
    too. log_level: of Headway's own lines, likewise. uvicorn_log_level: of the HTTP server; None: warning, or info
    with `access_log`.

    Raises ValueError for anything that could not work.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tls: Tls = field(default_factory=Tls)
    doors: Doors = field(default_factory=Doors)
    model_aliases: tuple[str, ...] = ()
    chat_template: str | None = None
    trust_request_chat_template: bool = False
    escape_special_tokens: bool = False
    strict_fields: bool = False
    tool_call_parser: str | None = None
    enable_auto_tool_choice: bool = False
    reasoning_parser: str | None = None
    admin_api: bool = False
    prefill: tuple[str, ...] = ()
    prefill_api_key: str | None = field(default=None, repr=False)
    max_local_prefill_tokens: int = 64
    api_server_count: int = 1
    data_parallel_size: int = 1
    shutdown_grace: float = 10.0
    engine_restarts: int = 0
    engine_args: tuple[str, ...] = ()
    log_stats: bool = True
    access_log: bool = False
    quiet_paths: tuple[str, ...] = ()
    log_format: LogFormat = LogFormat.TEXT
    log_level: LogLevel = LogLevel.INFO
    uvicorn_log_level: UvicornLevel | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.shutdown_grace < math.inf:
            raise ValueError(f"shutdown_grace must be a number of seconds of at least 0, got {self.shutdown_grace}")
        if self.engine_restarts < 0:
            raise ValueError(f"engine_restarts must be at least 0, got {self.engine_restarts}")
        for name in ("api_server_count", "data_parallel_size"):
            if not 1 <= (number := getattr(self, name)) <= MOST_PROCESSES:
                raise ValueError(f"{name} must be in [1, {MOST_PROCESSES}], got {number}")
        for url in self.prefill:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"a prefill engine is named by its URL, http://HOST:PORT, got {url!r}")
