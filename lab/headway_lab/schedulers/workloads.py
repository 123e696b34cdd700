"""The workloads of the schedulers: ours, and those of the peers, each in its own process.

    steady decode    a fixed number of requests, each of which computes one token a step
    churn            short answers: requests begin and end in most steps
    long prompt      one prompt of many blocks, first unknown, then cached
    preemption       more requests than the pool has blocks for

A workload drives a `System` and yields its samples round by round, so that the rounds of several systems can run in
turn. Times are in µs of the thread's CPU time. A scheduler never sleeps, so this leaves out the time in which a busy
machine gives the processor to other programs.

This file also runs in the environments of the peers: it imports numpy, and nothing of headway.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from headway.bench.rounds import Samples

BLOCK_SIZE = 16
VOCAB_SIZE = 32_000
FIRST_TOKEN = 1_000  # the lowest token id in prompts
MAX_MODEL_LEN = 131_072
ENDLESS = 100_000  # output tokens of a request that is not to end
PRIORITIES = 4
LARGEST_BLOCK = 256  # tokens: that of the peer with the largest blocks, the last of which a request may leave empty
SPARE = 2  # a pool that must suffice has this many times the used blocks, as some systems keep a share of it free
REFERENCE_ITERATIONS = 20_000
SETTLE = 5  # steps of a round that are not timed: until then the processor's caches hold data of the round before

FEATURES: dict[str, Any] = {
    "temperature": 0.8,
    "top_p": 0.95,
    "top_k": 50,
    "min_p": 0.01,
    "seed": 1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "logit_bias": {5: 1.0},
    "min_tokens": 8,
    "stop_token_ids": [VOCAB_SIZE - 2, VOCAB_SIZE - 1],  # never sampled
    "logprobs": 5,
}
"""Sampling parameters of a request with every feature on, by the names that Headway and vLLM share."""


@dataclass(frozen=True)
class Capacity:
    """The size of a system. num_blocks: of BLOCK_SIZE tokens, with one padding block that no request gets.

    features: sampling parameters that every request has; if there are any, priorities and a reserve are on too.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_blocks: int
    prefix_caching: bool = True
    features: Mapping[str, Any] = field(default_factory=dict)


class System(Protocol):
    """A scheduler as the workloads see it, without a device.

    `create`, `add`, `schedule` and `update` are timed, and do no more than the scheduler's own code.
    """

    def pack(self, tokens: NDArray[np.int32]) -> Any:
        """A prompt as it reaches the process of this scheduler."""

    def create(self, name: str, prompt: Any, max_tokens: int, priority: int) -> Any:
        """A request, made from a list of token ids or from what `pack` returned; it never stops early."""

    def add(self, request: Any) -> None:
        """Add a request."""

    def schedule(self) -> Any:
        """The next step; None if there is nothing to compute."""

    def size(self, batch: Any) -> tuple[int, int]:
        """Requests and tokens of a step."""

    def compute(self, batch: Any) -> Any:
        """The result that a device would give."""

    def update(self, batch: Any, result: Any) -> Any:
        """Apply the result; returns what came of it."""

    def num_ended(self, outcome: Any) -> int:
        """How many requests have ended, by what `update` returned."""

    def end(self, request: Any) -> None:
        """End a request whose answer is no longer wanted."""

    def forget_cached(self) -> None:
        """Empty the prefix cache."""

    @property
    def num_preemptions(self) -> int:
        """Preemptions since the start."""


Make = Callable[[Capacity], System]


@dataclass(frozen=True)
class SteadyDecode:
    """`running` requests decode, `steps` steps per round, while `waiting` ones find no slot.

    Prompts of 128 to 143 tokens, so that in every step one request in sixteen enters a new block, and one fills a
    block that is published to the prefix cache.

    pause_s: seconds that the thread sleeps before each step, as it does while a device computes. After the sleep the
        processor's caches and predictors have forgotten its data.
    """

    running: int
    steps: int
    rounds: int
    waiting: int = 0
    prefix_caching: bool = True
    features: bool = False
    pause_s: float = 0.0
    prompt: int = 128

    @property
    def warm_up(self) -> int:
        """Steps before the first round."""
        return max(10, self.rounds * self.steps // 10)

    def run(self, make: Make) -> Iterator[Samples]:
        """schedule_us, update_us: of each step. reference_us: a plain Python loop, before and after each round."""
        longest = self.prompt + BLOCK_SIZE
        most = longest + self.warm_up + self.rounds * (SETTLE + self.steps) + 2
        num_blocks = self.running * SPARE * -(-(most + LARGEST_BLOCK) // BLOCK_SIZE) + 1
        system = make(
            Capacity(
                max_num_seqs=self.running,
                max_num_batched_tokens=max(16_384, self.running * longest),  # all prompts at once
                max_model_len=MAX_MODEL_LEN,
                num_blocks=max(num_blocks, MAX_MODEL_LEN // BLOCK_SIZE + 1),
                prefix_caching=self.prefix_caching,
                features=FEATURES if self.features else {},
            )
        )
        _freeze()
        rng = np.random.default_rng(1)
        for i in range(self.running):
            tokens = _draw(rng, self.prompt + i % BLOCK_SIZE).tolist()
            system.add(system.create(f"running-{i:06d}", tokens, ENDLESS, i % PRIORITIES))
        while _one_step(system) != (self.running, self.running):
            pass
        for i in range(self.waiting):
            system.add(system.create(f"waiting-{i:06d}", [FIRST_TOKEN] * BLOCK_SIZE, ENDLESS, PRIORITIES))
        for _ in range(self.warm_up):
            _one_step(system)
        for _ in range(self.rounds):
            yield self._round(system)

    def _round(self, system: System) -> Samples:
        samples: Samples = {"schedule_us": [], "update_us": [], "reference_us": [reference_us()]}
        for _ in range(SETTLE):
            _one_step(system)
        for _ in range(self.steps):
            if self.pause_s:
                time.sleep(self.pause_s)
            started = _clock()
            batch = system.schedule()
            scheduled = _clock()
            assert system.size(batch) == (self.running, self.running), "not exactly the running requests decode"
            result = system.compute(batch)
            answered = _clock()
            system.update(batch, result)
            updated = _clock()
            samples["schedule_us"].append((scheduled - started) / 1e3)
            samples["update_us"].append((updated - answered) / 1e3)
        samples["reference_us"].append(reference_us())
        return samples


@dataclass(frozen=True)
class Churn:
    """`concurrent` requests at a time, of `prompt` tokens in and `output` out; `requests` end in each round."""

    requests: int
    rounds: int
    warm_up: int
    prompt: int = 512
    output: int = 32
    concurrent: int = 256
    max_num_batched_tokens: int = 8_192
    num_blocks: int = 20_000

    def run(self, make: Make) -> Iterator[Samples]:
        """create_us, add_us: of each request. schedule_us, update_us: of each step. ended: requests, of the round."""
        system = make(Capacity(self.concurrent, self.max_num_batched_tokens, MAX_MODEL_LEN, self.num_blocks))
        _freeze()
        rng = np.random.default_rng(2)
        traffic = self._traffic(system, rng)
        for _ in _until_ended(traffic, self.warm_up):
            pass
        for _ in range(self.rounds):
            samples: Samples = {"create_us": [], "add_us": [], "schedule_us": [], "update_us": [], "ended": [0]}
            for step in _until_ended(traffic, self.requests):
                for name, values in step.items():
                    samples[name] += values
            samples["ended"] = [sum(samples["ended"])]
            yield samples

    def _traffic(self, system: System, rng: np.random.Generator) -> Iterator[Samples]:
        """One step after another; a new request follows each that ends."""
        coming, count = self.concurrent, 0
        while True:
            samples: Samples = {"create_us": [], "add_us": []}
            for _ in range(coming):
                prompt = system.pack(_draw(rng, self.prompt))
                started = _clock()
                request = system.create(f"request-{count:08d}", prompt, self.output, 0)
                created = _clock()
                system.add(request)
                added = _clock()
                samples["create_us"].append((created - started) / 1e3)
                samples["add_us"].append((added - created) / 1e3)
                count += 1
            started = _clock()
            batch = system.schedule()
            scheduled = _clock()
            result = system.compute(batch)
            answered = _clock()
            outcome = system.update(batch, result)
            updated = _clock()
            coming = system.num_ended(outcome)
            samples["schedule_us"] = [(scheduled - started) / 1e3]
            samples["update_us"] = [(updated - answered) / 1e3]
            samples["ended"] = [coming]
            yield samples


@dataclass(frozen=True)
class LongPrompt:
    """One prompt of `tokens` tokens is made a request and scheduled, `repeats` times in each round.

    cold: nothing of it is cached. warm: all of it is, and the request that computed it has gone.
    packed: it comes as it reaches the process of the scheduler; else as a list of Python integers.
    """

    repeats: int
    rounds: int
    tokens: int = 32_768
    packed: bool = False

    def run(self, make: Make) -> Iterator[Samples]:
        """cold_us, warm_us: to create, add and schedule. cold_create_us, ...: its parts. cold_update_us: to take the
        step's result in, which publishes the blocks."""
        num_blocks = 4 * self.tokens // BLOCK_SIZE
        system = make(Capacity(16, self.tokens + 1_024, 2 * self.tokens, num_blocks))
        _freeze()
        rng = np.random.default_rng(3)
        self._once(system, rng, "warm-up", {})
        for number in range(self.rounds):
            samples: Samples = {}
            for i in range(self.repeats):
                self._once(system, rng, f"{number}-{i}", samples)
            yield samples

    def _once(self, system: System, rng: np.random.Generator, name: str, samples: Samples) -> None:
        tokens = _draw(rng, self.tokens)
        for state in ("cold", "warm"):
            prompt = system.pack(tokens) if self.packed else tokens.tolist()
            started = _clock()
            request = system.create(f"{state}-{name}", prompt, 4, 0)
            created = _clock()
            system.add(request)
            batch = system.schedule()
            scheduled = _clock()
            computed = system.size(batch)[1]
            assert computed == self.tokens if state == "cold" else computed < self.tokens // 2, f"{state}: {computed}"
            result = system.compute(batch)
            answered = _clock()
            system.update(batch, result)
            updated = _clock()
            times = {
                f"{state}_us": scheduled - started,
                f"{state}_create_us": created - started,
                f"{state}_schedule_us": scheduled - created,
                f"{state}_update_us": updated - answered,
            }
            for key, nanoseconds in times.items():
                samples.setdefault(key, []).append(nanoseconds / 1e3)
            system.end(request)
            while (rest := system.schedule()) is not None and system.size(rest)[0]:
                system.update(rest, system.compute(rest))
        system.forget_cached()


@dataclass(frozen=True)
class Preemption:
    """`requests` at once, of `prompt` tokens in and `output` out, until all end, in each round. The pool has blocks
    for only some of the running requests at their full length."""

    rounds: int
    requests: int = 512
    prompt: int = 512
    output: int = 512
    concurrent: int = 256
    num_blocks: int = 10_000
    max_num_batched_tokens: int = 8_192
    max_model_len: int = MAX_MODEL_LEN

    @property
    def minimal_tokens(self) -> int:
        """What must be computed at least: every token but each request's last."""
        return self.requests * (self.prompt + self.output - 1)

    def run(self, make: Make) -> Iterator[Samples]:
        """schedule_us, update_us, rows: of each step. preemptions, computed_tokens: of the round."""
        for _ in range(self.rounds):
            yield self._round(make)

    def _round(self, make: Make) -> Samples:
        system = make(Capacity(self.concurrent, self.max_num_batched_tokens, self.max_model_len, self.num_blocks))
        _freeze()
        rng = np.random.default_rng(4)
        for i in range(self.requests):
            tokens = _draw(rng, self.prompt).tolist()
            system.add(system.create(f"request-{i:06d}", tokens, self.output, 0))
        samples: Samples = {"schedule_us": [], "update_us": [], "rows": []}
        ended = computed = idle = 0
        while ended < self.requests:
            started = _clock()
            batch = system.schedule()
            scheduled = _clock()
            rows, tokens = system.size(batch)
            idle = 0 if rows else idle + 1
            assert idle <= 1, "no request can go on"  # one step without rows: the last result of overlapped steps
            result = system.compute(batch)
            answered = _clock()
            outcome = system.update(batch, result)
            updated = _clock()
            ended += system.num_ended(outcome)
            computed += tokens
            if not idle:
                samples["schedule_us"].append((scheduled - started) / 1e3)
                samples["update_us"].append((updated - answered) / 1e3)
                samples["rows"].append(rows)
        return samples | {"preemptions": [system.num_preemptions], "computed_tokens": [computed]}


Workload = SteadyDecode | Churn | LongPrompt | Preemption
BY_NAME: dict[str, type[Workload]] = {kind.__name__: kind for kind in (SteadyDecode, Churn, LongPrompt, Preemption)}


def reference_us() -> float:
    """A plain Python loop: how fast this processor runs Python just now."""
    started = _clock()
    x = 0
    for i in range(REFERENCE_ITERATIONS):
        x += i
    return (_clock() - started) / 1e3


_clock = time.thread_time_ns


def _freeze() -> None:
    """Keep the collector off everything that was loaded, as engines do when they start. Drops earlier systems."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _draw(rng: np.random.Generator, count: int) -> NDArray[np.int32]:
    return rng.integers(FIRST_TOKEN, VOCAB_SIZE, count, dtype=np.int32)


def _one_step(system: System) -> tuple[int, int]:
    batch = system.schedule()
    size = system.size(batch)
    system.update(batch, system.compute(batch))
    return size


def _until_ended(traffic: Iterator[Samples], requests: int) -> Iterator[Samples]:
    ended = 0.0
    while ended < requests:
        step = next(traffic)
        ended += step["ended"][0]
        yield step
