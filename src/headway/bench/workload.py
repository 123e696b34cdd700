"""Concrete requests: arrival time, prompt as token ids, number of output tokens.

Everything is drawn from a seed, so two runs (or two engines) get exactly the same requests. Block `b` of a trace stands
for the same tokens everywhere, so a replay shares the same prefixes as the recording.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from headway.bench.traces import TraceRequest

# The purposes of streams of random numbers; streams with different purposes are independent.
_ARRIVALS, _LENGTHS, _PREFIX, _OWN, _BLOCK = range(5)


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """One request to send. arrival_s: seconds after the start; prompt: int32 [num_prompt_tokens], read-only."""

    arrival_s: float
    prompt: NDArray[np.int32]
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticTraffic:
    """Traffic drawn at random.

    rate: requests per second; infinity sends all at once.
    burstiness: shape of the gamma distribution of the gaps: 1 is a Poisson process, below 1 comes in bursts, above 1
        is more even. The mean gap is 1 / rate for any.
    prompt_tokens, output_tokens: least and most, both included, drawn uniformly. The prompt includes the shared prefix.
    shared_prefix_tokens: leading tokens that all prompts have in common.

    Raises ValueError, with the value and the limit.
    """

    num_requests: int
    rate: float = math.inf
    burstiness: float = 1.0
    prompt_tokens: tuple[int, int] = (128, 128)
    output_tokens: tuple[int, int] = (32, 32)
    shared_prefix_tokens: int = 0

    def __post_init__(self) -> None:
        if self.num_requests < 1:
            raise ValueError(f"num_requests must be at least 1, got {self.num_requests}")
        for name, (low, high) in (
            ("prompt_tokens", self.prompt_tokens),
            ("output_tokens", self.output_tokens),
        ):
            if not 1 <= low <= high:
                raise ValueError(f"{name} must be a range from at least 1, got {low} to {high}")
        if not 0 <= self.shared_prefix_tokens < self.prompt_tokens[0]:
            raise ValueError(
                f"shared_prefix_tokens must be in [0, {self.prompt_tokens[0] - 1}], so that every prompt has a token "
                f"of its own, got {self.shared_prefix_tokens}"
            )


def arrival_times(num_requests: int, rate: float, burstiness: float, seed: int) -> NDArray[np.float64]:
    """Seconds after the start, float64 [num_requests], rising from 0; all 0 for an infinite rate."""
    if not rate > 0:
        raise ValueError(f"rate must be above 0 requests per second, got {rate}")
    if not (burstiness > 0 and math.isfinite(burstiness)):
        raise ValueError(f"burstiness must be above 0 and finite, got {burstiness}")
    times = np.zeros(num_requests)
    if math.isfinite(rate):
        gaps = _stream(seed, _ARRIVALS).gamma(burstiness, 1 / (rate * burstiness), num_requests - 1)
        np.cumsum(gaps, out=times[1:])
    return times


def synthetic(traffic: SyntheticTraffic, token_ids: NDArray[np.int32], seed: int) -> list[WorkloadRequest]:
    """The requests of `traffic`. token_ids: int32 [V], the tokens that prompts are drawn from."""
    n = traffic.num_requests
    arrivals = arrival_times(n, traffic.rate, traffic.burstiness, seed)
    lengths = _stream(seed, _LENGTHS)
    prompt_tokens = lengths.integers(*traffic.prompt_tokens, n, endpoint=True)
    output_tokens = lengths.integers(*traffic.output_tokens, n, endpoint=True)
    prefix = _draw(token_ids, traffic.shared_prefix_tokens, _stream(seed, _PREFIX))
    own = _stream(seed, _OWN)
    return [
        WorkloadRequest(
            arrival_s=float(arrivals[i]),
            prompt=_frozen([prefix, _draw(token_ids, int(prompt_tokens[i]) - len(prefix), own)]),
            output_tokens=int(output_tokens[i]),
        )
        for i in range(n)
    ]


def from_trace(requests: Iterable[TraceRequest], token_ids: NDArray[np.int32], seed: int) -> list[WorkloadRequest]:
    """The requests of a trace, with random tokens. token_ids: int32 [V], the tokens that prompts are drawn from.

    Tokens of a prompt without a prefix id are drawn anew for each request.
    """
    blocks: dict[int, NDArray[np.int32]] = {}
    own = _stream(seed, _OWN)

    def block(prefix_id: int, num_tokens: int, block_tokens: float) -> NDArray[np.int32]:
        # A block is always drawn whole: requests may cut it to different lengths, and must share the common part.
        if prefix_id not in blocks:
            blocks[prefix_id] = _draw(token_ids, math.ceil(block_tokens), _stream(seed, _BLOCK, prefix_id))
        return blocks[prefix_id][:num_tokens]

    made = []
    for request in requests:
        # Boundaries depend on the block's index alone, so that requests that share blocks share their boundaries.
        size = request.block_tokens
        ends = [min(int(i * size), request.prompt_tokens) for i in range(len(request.prefix_ids) + 1)]
        pieces = [block(b, end - start, size) for b, (start, end) in zip(request.prefix_ids, pairwise(ends))]
        pieces.append(_draw(token_ids, request.prompt_tokens - ends[-1], own))
        made.append(WorkloadRequest(request.arrival_s, _frozen(pieces), request.output_tokens))
    return made


def _stream(seed: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, *purpose))


def _draw(token_ids: NDArray[np.int32], num_tokens: int, rng: np.random.Generator) -> NDArray[np.int32]:
    return token_ids[rng.integers(0, len(token_ids), num_tokens)]


def _frozen(pieces: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    tokens = np.concatenate(pieces)
    tokens.flags.writeable = False
    return tokens
