"""What a cluster is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

import msgspec

from headway.config import ANY_PEER, EngineConfig, Role
from headway.server.settings import ServerSettings
from headway.spelling import near

T = TypeVar("T")
RouterName = Literal["prefix", "ray", "round-robin"]

_OF_THE_PROXY = ("host", "port", "tls")  # settings of Ray's own HTTP server
_COUNTS = {"data_parallel_size": "engines", "api_server_count": "apis"}
_ELSEWHERE = ("prefill", "prefill_api_key", "engine_restarts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """config: of every engine. settings: of every API replica.

    engines: replicas of the engine. max_engines: up to so many are started by load; None: their number is fixed.
    prefill_engines: engines that compute the prompts for the others; 0: every engine does both.
    apis: replicas of the API.
    cpus_per_engine, gpus_per_engine: what Ray reserves for each rank of an engine; cpus_per_api: for a replica.
    ttft_target: seconds to the first token at which an engine counts as fully loaded.
    target_load: the load that autoscaling aims at, 1: full.
    upscale_delay, downscale_delay: seconds for which the load must ask for another number.
    own_door: API replicas listen at `settings.host` and `settings.port` of their machines themselves; several on one
        machine share the port. Else HTTP comes by Ray's proxy, which takes its time for each piece of a stream.
    router: who chooses the engine of a request. "prefix": the cache and the load; "ray": Ray's default, the less busy
        one of two; "round-robin".

    Raises ValueError, naming the value and the limit, for anything that could not work.
    """

    config: EngineConfig = field(default_factory=EngineConfig)
    settings: ServerSettings = field(default_factory=ServerSettings)
    engines: int = 1
    max_engines: int | None = None
    prefill_engines: int = 0
    apis: int = 1
    cpus_per_engine: float = 1.0
    gpus_per_engine: float = 0.0
    cpus_per_api: float = 1.0
    ttft_target: float = 2.0
    target_load: float = 0.7
    upscale_delay: float = 10.0
    downscale_delay: float = 120.0
    own_door: bool = False
    router: RouterName = "prefix"

    def __post_init__(self) -> None:
        for name in ("engines", "apis"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.prefill_engines < 0:
            raise ValueError(f"prefill_engines must be at least 0, got {self.prefill_engines}")
        if self.max_engines is not None and self.max_engines < self.engines:
            raise ValueError(f"max_engines must be at least engines ({self.engines}), got {self.max_engines}")
        for name in ("cpus_per_engine", "gpus_per_engine", "cpus_per_api", "upscale_delay", "downscale_delay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {getattr(self, name)}")
        for name in ("ttft_target", "target_load"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.router not in get_args(RouterName):
            raise ValueError(f"router must be one of {', '.join(get_args(RouterName))}, got {self.router!r}")
        if self.config.role is not Role.MIXED:
            raise ValueError(
                f"prefill_engines gives the engines their roles, got role {self.config.role}: leave it out"
            )

    @property
    def scales(self) -> bool:
        """Whether the number of engines follows the load."""
        return self.max_engines is not None and self.max_engines > self.engines

    @property
    def most_requests(self) -> int:
        """Requests that an engine takes at once, running and in its intake."""
        return self.config.max_num_seqs + self.config.max_waiting

    def engine(self, role: Role = Role.MIXED) -> EngineConfig:
        """The settings of the engines of this role."""
        return replace(self.config, role=role, kv_peers=ANY_PEER if role is Role.DECODE else "")

    def lender(self, host: str) -> EngineConfig:
        """The settings of a prefill engine on this host."""
        return replace(self.engine(Role.PREFILL), kv_listen=f"{host}:0")

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> ClusterOptions:
        """The options in the arguments of `build_app`: the fields of this class, with `engine` for the settings of
        engines (`EngineConfig`) and `server` for those of API replicas (`ServerSettings`). `model` is short for
        engine.model.

        Raises ValueError, naming the argument, for an unknown name and a value of another type.
        """
        given = dict(args)
        engine = dict(_mapping("engine", given.pop("engine", {})))
        server = dict(_mapping("server", given.pop("server", {})))
        if "model" in given:
            engine.setdefault("model", given.pop("model"))
        own_door = _converted("own_door", given.get("own_door", False), bool)
        for name in _OF_THE_PROXY:
            if name in server and not own_door:
                raise ValueError(f"server.{name} is of Ray's proxy without own_door: see http_options of Ray Serve")
        for name, meant in _COUNTS.items():
            if name in server:
                raise ValueError(f"server.{name} is the argument {meant} on a Ray cluster")
        for name in _ELSEWHERE:
            if name in server:
                raise ValueError(f"server.{name} has no meaning on a Ray cluster: Ray finds and restarts the engines")
        own = {one.name for one in fields(cls)} - {"config", "settings"}
        _check_names("", given, own | {"engine", "server", "model"})
        values = {one.name: one.type for one in fields(cls) if one.name in given}
        numbers = {name: _converted(name, given[name], _TYPES[str(kind)]) for name, kind in values.items()}
        return cls(
            config=_record("engine", engine, EngineConfig),
            settings=_record("server", server, ServerSettings),
            **numbers,
        )

    def to_json(self) -> str:
        """The options as text, for replicas: `of_json` reads it."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def of_json(cls, text: str) -> ClusterOptions:
        """The options in this text."""
        return msgspec.json.decode(text, type=cls)


_TYPES: dict[str, Any] = {"bool": bool, "int": int, "float": float, "int | None": int | None, "RouterName": RouterName}


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} takes names and values, got {value!r}")
    return value


def _check_names(prefix: str, given: Mapping[str, Any], known: set[str]) -> None:
    for name in given:
        if name not in known:
            meant = near(str(name), known)
            hint = f"; did you mean {' or '.join(meant)}?" if meant else f"; known: {', '.join(sorted(known))}"
            raise ValueError(f"there is no argument {prefix}{name}{hint}")


def _record(name: str, given: Mapping[str, Any], kind: type[T]) -> T:
    _check_names(f"{name}.", given, {one.name for one in fields(kind)})  # type: ignore[arg-type]
    return _converted(name, dict(given), kind)


def _converted(name: str, value: object, kind: Any) -> Any:
    """`value` as this type. The command line of `serve run` gives every value as text."""
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from None
