"""How an engine publishes its KV events: the options of `--kv-events-config`, one JSON object."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

Publisher = Literal["zmq", "null"]
EventFormat = Literal["map", "array"]
HashFormat = Literal["int", "bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KVEventsConfig:
    """The names and defaults are those of vLLM; the last two options are Headway's own.

    enable_kv_cache_events: without it nothing is published. publisher: "zmq", or "null" for none; None: zmq.
    endpoint: the PUB socket. An address with `*` or `::`, `ipc:` or `inproc:` is bound, any other is connected to.
    replay_endpoint: the ROUTER socket that repeats batches; always bound. None: there is none.
    buffer_steps: batches that can be repeated.
    hwm: batches that wait for one slow subscriber; further ones are lost for this subscriber.
    max_queue_size: turns of the writer that wait for the publisher; the events of further turns are lost.
    topic: the first frame of each message. llm-d expects kv@HOST@MODEL.
    event_format: events as maps (vLLM from 0.24 on) or as arrays (before).
    hash_format: block hashes as unsigned integers of 64 bits, the end of the digest; or the digest, 32 bytes.

    Raises ValueError, naming the value and the limit.
    """

    enable_kv_cache_events: bool = False
    publisher: Publisher | None = None
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""
    event_format: EventFormat = "map"
    hash_format: HashFormat = "int"

    def __post_init__(self) -> None:
        if type(self.enable_kv_cache_events) is not bool:
            raise ValueError(f"enable_kv_cache_events must be true or false, got {self.enable_kv_cache_events!r}")
        for name, choices in (
            ("publisher", (*get_args(Publisher), None)),
            ("event_format", get_args(EventFormat)),
            ("hash_format", get_args(HashFormat)),
        ):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(filter(None, choices))}, got {value!r}")
        for name in ("buffer_steps", "hwm", "max_queue_size"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value < 2**31:
                raise ValueError(f"{name} must be an integer from 1 to {2**31 - 1}, got {value!r}")
        for name in ("endpoint", "replay_endpoint", "topic"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name, value) != ("replay_endpoint", None):
                raise ValueError(f"{name} must be text, got {value!r}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a JSON object. Raises ValueError for any other text, and for a field that does not exist."""
        try:
            values: Any = json.loads(text)
        except ValueError as error:
            raise ValueError(f"kv_events_config is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"kv_events_config must be a JSON object, got {text!r}")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(values.keys() - set(known)):
            raise ValueError(f"kv_events_config has no field {unknown[0]!r}; it has {', '.join(known)}")
        return cls(**values)

    @property
    def publishes(self) -> bool:
        """Whether anything is published."""
        return self.enable_kv_cache_events and self.publisher != "null"
