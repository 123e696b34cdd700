"""Who may come in: keys, origins of browsers, and the path at which a proxy shows the server."""

from __future__ import annotations

from dataclasses import dataclass

from headway.server.entrance.keys import ApiKey, Keys

OPEN_PATHS = frozenset(
    {"/", "/health", "/ping", "/metrics", "/version", "/docs", "/openapi.json"}
)  # without a key: for load balancers, Prometheus, and people who look what is served here


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """keys: empty: no key is asked for. protect: paths that are open, and ask for a key all the same.

    root_path: the path before all paths that a proxy adds, "/llm" for instance. docs: serve /docs and /openapi.json.
    allowed_origins: of web pages whose scripts may read answers, ["https://chat.example"]; "*": of all pages.
    allowed_methods, allowed_headers: of their requests. allow_credentials: they may send cookies.

    Raises ValueError for what could not work, or would be open to all.
    """

    keys: tuple[ApiKey, ...] = ()
    protect: tuple[str, ...] = ()
    root_path: str = ""
    docs: bool = True
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False

    def __post_init__(self) -> None:
        Keys(self.keys)  # refuses a key of two tenants
        for path in self.protect:
            if path not in OPEN_PATHS:
                raise ValueError(f"--protect takes a path that is open: {', '.join(sorted(OPEN_PATHS))}; got {path!r}")
        if self.protect and not self.keys:
            raise ValueError("--protect needs an API key: --api-key, --api-key-file or HEADWAY_API_KEY")
        if self.root_path and (self.root_path[0] != "/" or self.root_path[-1] == "/"):
            raise ValueError(f"--root-path must begin with a slash and end with none, got {self.root_path!r}")
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ValueError(
                "--allow-credentials with the origin '*' would let every web page act for its reader: name the origins"
            )
