"""Clients on virtual time: the requests that they send, and when each token of an answer has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler import Effects
from headway_lab.rigs.virtual_engine import VOCAB_SIZE
from headway_lab.rigs.virtual_time import VirtualTime


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one kind: mean tokens of prompt and answer. Each length is drawn between half and one and a half."""

    prompt_tokens: int
    output_tokens: int

    @property
    def most_tokens(self) -> int:
        """Of prompt and answer together."""
        return _most(self.prompt_tokens) + _most(self.output_tokens)


@dataclass(frozen=True, slots=True)
class Traffic:
    """`requests` requests, which come at random moments, `rate` per second on average; kinds come equally often, in
    random order. One seed gives the same requests in the same order at every rate."""

    kinds: tuple[Kind, ...]
    rate: float
    requests: int
    seed: int

    def draw(self) -> list[tuple[int, Request]]:
        """(index of its kind, request), by arrival."""
        rng = np.random.default_rng(self.seed)
        moments = np.cumsum(rng.exponential(1.0, self.requests)) / self.rate
        kinds = rng.permutation(np.arange(self.requests) % len(self.kinds))
        drawn = []
        for uid, (moment, index) in enumerate(zip(moments.tolist(), kinds.tolist(), strict=True)):
            kind = self.kinds[index]
            num_prompt_tokens, num_output_tokens = (
                int(rng.integers(max(1, mean // 2), _most(mean) + 1))
                for mean in (kind.prompt_tokens, kind.output_tokens)
            )
            request = Request(
                request_id=f"r{uid}",
                uid=uid,
                prompt=rng.integers(1, VOCAB_SIZE, num_prompt_tokens, dtype=np.int32),
                sampling=SamplingParams(temperature=0, max_tokens=num_output_tokens, ignore_eos=True),
                max_tokens=num_output_tokens,
                arrival_time=moment,
            )
            drawn.append((index, request))
        return drawn


class Clients:
    """Send the requests of some traffic, and note the tokens.

    kind_of: index of the kind, by uid. first_s: seconds from the arrival to the first token, by uid. gaps_s: seconds
    between two tokens of one answer, of all answers. num_tokens: of all answers. ended_at: when the last one was there.
    """

    def __init__(self, time: VirtualTime, traffic: Traffic, send: Callable[[Request], None]) -> None:
        self.kind_of: dict[int, int] = {}
        self.first_s: dict[int, float] = {}
        self.gaps_s: list[float] = []
        self.num_tokens = 0
        self.ended_at = 0.0
        self._time = time
        self._open = traffic.requests
        self._arrivals: dict[int, float] = {}
        self._last: dict[int, float] = {}
        for index, request in traffic.draw():
            self.kind_of[request.uid] = index
            self._arrivals[request.uid] = request.arrival_time
            time.at(request.arrival_time, partial(send, request))

    @property
    def are_done(self) -> bool:
        """Whether all answers are complete."""
        return not self._open

    def take(self, effects: Effects) -> None:
        """Of an engine that answers clients. Raises RuntimeError for an answer that ends with an error."""
        now = self._time.now
        for outputs in effects.tokens:
            for uid in outputs.uids.tolist():
                if uid in self._last:
                    self.gaps_s.append(now - self._last[uid])
                else:
                    self.first_s[uid] = now - self._arrivals[uid]
                self._last[uid] = now
            self.num_tokens += len(outputs.uids)
        for end in effects.ended:
            if end.error is not None:
                raise RuntimeError(f"request {end.request_id} has failed: {end.error}")
            self._open -= 1
            self.ended_at = now


def _most(mean: int) -> int:
    return mean + mean // 2
