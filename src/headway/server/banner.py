"""What a server says of itself when it takes its first request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from headway import __version__, default_model
from headway.client.engines import Engines
from headway.config import SchedulerConfig
from headway.model_files import ModelFiles
from headway.placement import Placement
from headway.server.settings import ServerSettings
from headway.sizes import readable

DEMO = (
    "demo model: it can do sums, copy, sort, reverse and recall of digits, and nothing else; name your own: "
    "headway serve MODEL"
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is served. url: where, with the path of a proxy. limits: of each engine. max_waiting: requests that may wait
    beyond its slots."""

    name: str
    kind: str
    num_weight_bytes: int
    is_demo: bool
    has_chat: bool
    placement: Placement
    limits: SchedulerConfig
    max_waiting: int
    url: str
    has_docs: bool
    asks_for_key: bool
    num_engines: int = 1

    @classmethod
    def of(cls, client: Engines, settings: ServerSettings, address: str) -> Subject:
        """address: scheme, host and port."""
        files = client.files
        return cls(
            name=files.name,
            kind=kind_of(files),
            num_weight_bytes=files.num_weight_bytes,
            is_demo=files.path == default_model.PATH,
            has_chat=bool(client.tokenizer.chat_template or settings.chat_template),
            placement=client.placement,
            limits=client.config,
            max_waiting=client.capacity - client.config.max_num_seqs,
            url=address + settings.doors.root_path,
            has_docs=settings.doors.docs,
            asks_for_key=bool(settings.doors.keys),
            num_engines=len(client.engines),
        )


def kind_of(files: ModelFiles) -> str:
    """The class of the model, as its configuration names it."""
    return next(iter(getattr(files.hf_config, "architectures", None) or ()), files.hf_config.model_type)


def banner(subject: Subject) -> Iterator[str]:
    """The lines of the banner."""
    limits, placement = subject.limits, subject.placement
    weights = readable(subject.num_weight_bytes)
    yield f"Headway {__version__} serves {subject.name} ({subject.kind}, {weights} of weights)"
    if subject.is_demo:
        yield DEMO
    yield f"on {placement.device} in {placement.dtype}, attention by {placement.attention}"
    num_blocks = limits.num_blocks - 1  # block 0 is of no request
    yield (
        (f"{subject.num_engines} engines, each with a " if subject.num_engines > 1 else "")
        + f"context of {limits.max_model_len:,} tokens; KV cache of {num_blocks * limits.block_size:,} tokens "
        f"({num_blocks:,} blocks of {limits.block_size}); {limits.max_num_seqs:,} requests at once, and "
        f"{subject.max_waiting:,} more may wait"
    )
    if (hint := hint_of(placement)) is not None:
        yield hint
    yield f"listening at {subject.url}" + (f"; API at {subject.url}/docs" if subject.has_docs else "")
    yield f"try: {_curl(subject)}"


def hint_of(placement: Placement) -> str | None:
    """The extra that would make it faster here; None: there is none, or it is installed."""
    if placement.attention != "torch":
        return None
    if placement.device == "cpu" and placement.dtype == "float32" and find_spec("numba") is None:
        return "hint: decodes are faster with a compiled kernel: pip install 'headway[cpu]'"
    if placement.device.startswith("cuda") and placement.dtype != "float32" and find_spec("flashinfer") is None:
        return "hint: attention is faster with FlashInfer: pip install 'headway[cuda]'"
    return None


def _curl(subject: Subject) -> str:
    path, body = "/v1/completions", {"prompt": "Once upon a time", "max_tokens": 32}
    if subject.is_demo:
        body = {"prompt": "68-5="}
    elif subject.has_chat:
        path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}
    key = " -H 'Authorization: Bearer KEY'" if subject.asks_for_key else ""
    return f"curl {subject.url}{path}{key} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
