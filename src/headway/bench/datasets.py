"""The requests of `headway bench serve`: drawn at random, from the held-out problems, or from recorded traffic."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from headway import default_model
from headway.bench.load import LoadRequest
from headway.bench.server_process import ServerError
from headway.bench.traces import read_trace, scaled
from headway.bench.workload import (
    SyntheticTraffic,
    WorkloadRequest,
    arrival_times,
    from_trace,
    synthetic,
)

EXCERPTS = Path(__file__).resolve().parents[3] / "benchmarks" / "traces"
DEFAULT_NUM_PROMPTS = 200
HELD_OUT_MAX_TOKENS = 256  # more than the longest right answer has; longer answers are cut


class Dataset(StrEnum):
    """Where the requests of a benchmark come from."""

    RANDOM = "random"
    HELDOUT = "heldout"
    AZURE = "azure"
    MOONCAKE = "mooncake"

    @property
    def excerpt(self) -> Path | None:
        """The trace of this kind that comes with the repository; None if the dataset is no trace."""
        match self:
            case Dataset.AZURE:
                return EXCERPTS / "azure_2023_code.csv"
            case Dataset.MOONCAKE:
                return EXCERPTS / "mooncake_synthetic.jsonl"
        return None


@dataclass(frozen=True, slots=True)
class Target:
    """What prompts for a server depend on. max_model_len: tokens. token_ids: int32 [V], to draw prompts from."""

    model: str
    max_model_len: int | None
    token_ids: NDArray[np.int32]

    @classmethod
    def ask(cls, base_url: str, model: str | None, headers: Mapping[str, str] | None = None) -> Target:
        """Ask the server at `base_url`, which must answer /v1/models and /tokenize like a vLLM server.

        headers: of its API key.

        Raises ServerError if it does not, and ValueError if it does not serve `model`.
        """
        # The tokens of plain text: none of them is special, in any vocabulary.
        text = " ".join(string.ascii_letters + string.digits)
        try:
            with httpx.Client(base_url=base_url, timeout=30, headers=headers) as client:
                cards = {card["id"]: card for card in _answer(client.get("/v1/models"))["data"]}
                name: str = next(iter(cards), "") if model is None else model
                if name not in cards:
                    raise ValueError(f"the server does not serve {name!r}; it serves {', '.join(cards)}")
                body = {"model": name, "prompt": text, "add_special_tokens": False}
                tokens = _answer(client.post("/tokenize", json=body))["tokens"]
        except (httpx.HTTPError, httpx.InvalidURL, LookupError, json.JSONDecodeError) as error:
            raise ServerError(f"{base_url} does not answer as it should: {type(error).__name__}: {error}") from error
        return cls(name, cards[name].get("max_model_len"), np.unique(np.asarray(tokens, dtype=np.int32)))


def _answer(response: httpx.Response) -> Any:
    response.raise_for_status()
    return response.json()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests to send. Lengths are in tokens.

    dataset: None: as `for_model` chooses.
    num_prompts: requests; None: 200, or all requests of a trace.
    burstiness: see SyntheticTraffic.
    trace: the file to replay; None: the excerpt in the repository.
    minutes, time_scale: see `traces.scaled`.
    input_len, output_len: means of random lengths, which are uniform in mean × (1 ± range_ratio).
    prefix_len: tokens that all random prompts share, in addition to input_len.
    max_model_len: the most tokens of a request; None: the limit of the server.

    Raises ValueError, with the option and the limit.
    """

    dataset: Dataset | None = None
    num_prompts: int | None = None
    burstiness: float = 1.0
    trace: Path | None = None
    minutes: float | None = None
    time_scale: float = 1.0
    input_len: int = 128
    output_len: int = 32
    prefix_len: int = 0
    range_ratio: float = 0.0
    max_model_len: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_prompts is not None and self.num_prompts < 1:
            raise ValueError(f"--num-prompts must be at least 1, got {self.num_prompts}")
        if not (self.burstiness > 0 and math.isfinite(self.burstiness)):
            raise ValueError(f"--burstiness must be above 0 and finite, got {self.burstiness}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"--minutes must be above 0, got {self.minutes}")
        if not (self.time_scale >= 0 and math.isfinite(self.time_scale)):
            raise ValueError(f"--time-scale must be at least 0 and finite, got {self.time_scale}")
        if self.input_len < 1 or self.output_len < 1:
            raise ValueError(
                f"--input-len and --output-len must be at least 1, got {self.input_len}, {self.output_len}"
            )
        if self.prefix_len < 0:
            raise ValueError(f"--prefix-len must be at least 0, got {self.prefix_len}")
        if not 0 <= self.range_ratio < 1:
            raise ValueError(f"--range-ratio must be in [0, 1), got {self.range_ratio}")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ValueError(f"--max-model-len must be at least 2, got {self.max_model_len}")
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {self.seed}")
        self._check_trace()

    def _check_trace(self) -> None:
        if not self.is_trace and (self.trace is not None or self.minutes is not None):
            raise ValueError(f"--trace and --minutes need --dataset azure or mooncake{self._given}")
        if self.is_trace and not self.trace_file.is_file():
            if self.trace is not None:
                raise ValueError(f"no such trace: {self.trace_file}")
            raise ValueError(
                f"the excerpt for --dataset {self.dataset} comes with the repository, not with the package: run "
                "this in a clone, or name a file of that format by --trace"
            )

    @property
    def is_trace(self) -> bool:
        """Whether the arrival times come with the requests."""
        return self.dataset is not None and self.dataset.excerpt is not None

    @property
    def trace_file(self) -> Path:
        """The file to replay. Only for a dataset that is a trace."""
        assert self.dataset is not None
        file = self.trace or self.dataset.excerpt
        assert file is not None
        return file

    @property
    def _given(self) -> str:
        return "" if self.dataset is None else f", got {self.dataset}"

    def for_model(self, model: str) -> Workload:
        """With a dataset: the given one; else the held-out problems for the embedded model, which no other model was
        trained for, and random prompts for all others."""
        if self.dataset is not None:
            return self
        return replace(self, dataset=Dataset.HELDOUT if model == default_model.NAME else Dataset.RANDOM)

    def requests(self, target: Target, rate: float) -> list[LoadRequest]:
        """The requests for a server, in order of arrival. A dataset is needed. rate: requests per second; unused for a
        trace.

        Raises ValueError if they cannot fit the model or the trace cannot be read.
        """
        if self.dataset is Dataset.HELDOUT:
            return self._held_out(rate)
        if len(target.token_ids) < 2:
            raise ValueError("the model's tokenizer knows no letters or digits: prompts made for it would all be alike")
        made = self._replay(target) if self.is_trace else self._random(target, rate)
        return [LoadRequest(r.arrival_s, r.prompt.tolist(), r.output_tokens) for r in made]

    def _held_out(self, rate: float) -> list[LoadRequest]:
        problems = default_model.held_out()
        n = self.num_prompts or DEFAULT_NUM_PROMPTS
        order = np.random.default_rng(self.seed).permutation(len(problems))
        arrivals = arrival_times(n, rate, self.burstiness, self.seed)
        chosen = [problems[order[i % len(problems)]] for i in range(n)]
        return [
            LoadRequest(float(arrival), problem.prompt, HELD_OUT_MAX_TOKENS, problem.answer)
            for arrival, problem in zip(arrivals, chosen)
        ]

    def _random(self, target: Target, rate: float) -> list[WorkloadRequest]:
        low, high = self._around(self.input_len)
        output_tokens = self._around(self.output_len)
        limit = self.max_model_len or target.max_model_len
        longest = self.prefix_len + high + output_tokens[1]
        if limit is not None and longest > limit:
            raise ValueError(
                f"prefix, input and output come to {longest} tokens, more than the model's {limit} "
                "(--prefix-len, --input-len, --output-len)"
            )
        traffic = SyntheticTraffic(
            num_requests=self.num_prompts or DEFAULT_NUM_PROMPTS,
            rate=rate,
            burstiness=self.burstiness,
            prompt_tokens=(self.prefix_len + low, self.prefix_len + high),
            output_tokens=output_tokens,
            shared_prefix_tokens=self.prefix_len,
        )
        return synthetic(traffic, target.token_ids, self.seed)

    def _around(self, mean: int) -> tuple[int, int]:
        spread = int(mean * self.range_ratio)
        return max(1, mean - spread), mean + spread

    def _replay(self, target: Target) -> list[WorkloadRequest]:
        limit = self.max_model_len or target.max_model_len
        if limit is None:
            raise ValueError("the server does not tell its longest request: give --max-model-len")
        recorded = scaled(
            read_trace(self.trace_file), minutes=self.minutes, time_scale=self.time_scale, max_model_len=limit
        )
        return from_trace(recorded[: self.num_prompts], target.token_ids, self.seed)
