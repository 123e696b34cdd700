"""`headway bench choose`: what it costs to choose one of many engines, and to know of all of them.

    choose     per prompt: its digests, the order of the engines, the beginning and the end on the engine that is chosen
    messages   per message: a pulse of an engine, decoded and taken in; blocks that an engine has stored or dropped

Without I/O, on one thread: the share of a router's processor that this work takes. docs/scaling.md reckons with it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from headway.bench import plot
from headway.bench.benchmark import Table, run_benchmark
from headway.bench.plot import PlotOption
from headway.bench.report import Row
from headway.bench.tables import Column, JsonOption
from headway.commands.lists import numbers
from headway.engine_choice import EngineChoice, Load, Prefixes
from headway.scheduler.snapshot import Snapshot
from headway.wire import codec, to_client

VOCAB_SIZE = 32_000
PROMPTS = 200  # of each measurement
CONVERSATIONS = 50  # that the prompts belong to: most of each prompt is in the cache of one engine
BLOCKS_PER_MESSAGE = 64

CHOOSE_COLUMNS = (
    Column("engines", "engines", ",d"),
    Column("prompt tokens", "prompt_tokens", ",d"),
    Column("digests, µs", "digests_us", ".1f"),
    Column("order, µs", "order_us", ".1f"),
    Column("begin and end, µs", "begin_end_us", ".1f"),
    Column("per prompt, µs", "per_prompt_us", ".0f"),
)
MESSAGE_COLUMNS = (
    Column("message", "message", ""),
    Column("bytes", "bytes", ",d"),
    Column("per message, µs", "per_message_us", ".1f"),
    Column("of these, in the choice, µs", "choice_us", ".1f"),
)


@dataclass(frozen=True)
class ChooseRow:
    """Medians per prompt, in microseconds."""

    engines: int
    prompt_tokens: int
    digests_us: float
    order_us: float
    begin_end_us: float
    per_prompt_us: float


@dataclass(frozen=True)
class MessageRow:
    """Medians per message. choice_us: of it, in `EngineChoice`; the rest makes a message of bytes."""

    message: str
    bytes: int
    per_message_us: float
    choice_us: float


def choose(num_engines: int, prompt_tokens: int) -> ChooseRow:
    """Prompts of conversations that grow, given to the engine that comes first."""
    rng = np.random.default_rng(11)
    talks = rng.integers(0, VOCAB_SIZE, (CONVERSATIONS, 2 * prompt_tokens), np.int32)
    choice = EngineChoice(range(num_engines))
    for engine in range(num_engines):
        choice.report(engine, Load(int(rng.integers(0, 4096)), float(rng.random()), int(rng.integers(0, 64))), 0.0)
    digesting, ordering, giving = [], [], []
    for turn in range(PROMPTS):
        length = prompt_tokens // 2 + prompt_tokens * (turn // CONVERSATIONS) // (PROMPTS // CONVERSATIONS)
        tokens = talks[turn % CONVERSATIONS, :length]
        started = time.perf_counter()
        prompt = Prefixes.of(tokens)
        digested = time.perf_counter()
        first = choice.order(prompt, 0.0)[0]
        ordered = time.perf_counter()
        choice.begin(first, prompt)
        choice.end(first, prompt, failed=False, now=0.0)
        giving.append(time.perf_counter() - ordered)
        digesting.append(digested - started)
        ordering.append(ordered - digested)
    medians = [statistics.median(times) * 1e6 for times in (digesting, ordering, giving)]
    return ChooseRow(num_engines, prompt_tokens, *(round(each, 1) for each in (*medians, sum(medians))))


def pulse(num_engines: int) -> MessageRow:
    """The pulse of an engine that is busy, taken in by a client of so many engines."""
    snapshot = Snapshot(
        step_id=10**7, num_running=256, num_waiting=40, num_slots=256, num_blocks_total=16_383, num_blocks_free=1_000,
        num_requests_added=10**6, num_requests_ended=10**6, num_prompt_tokens=10**9, num_generation_tokens=10**9,
    )  # fmt: skip
    packed = codec.encode(to_client.Status(snapshot, stalled=False, failure=None))
    choice = EngineChoice(range(num_engines))

    def take() -> float:
        started = time.perf_counter()
        status = codec.decode_to_client(packed)
        decoded = time.perf_counter()
        assert isinstance(status, to_client.Status)
        now = status.snapshot
        choice.report(0, Load(now.num_waiting * 512, now.kv_cache_usage, now.num_running), 0.0)
        times.append(time.perf_counter() - decoded)
        return time.perf_counter() - started

    times: list[float] = []
    whole = _median_us(take)
    return MessageRow("pulse", len(packed), round(whole, 1), round(statistics.median(times) * 1e6, 1))


def blocks(num_engines: int) -> MessageRow:
    """The digests of so many blocks that an engine has stored, and of as many that it has dropped."""
    rng = np.random.default_rng(12)
    choice = EngineChoice(range(num_engines))
    digests = [rng.bytes(16) for _ in range(BLOCKS_PER_MESSAGE)]

    def take() -> float:
        started = time.perf_counter()
        choice.learn(0, digests)
        choice.forget(0, digests)
        return time.perf_counter() - started

    took = round(_median_us(take), 1)
    return MessageRow(f"{BLOCKS_PER_MESSAGE} blocks stored, and dropped", 2 * 16 * len(digests), took, took)


def _median_us(act: Callable[[], float]) -> float:
    return statistics.median(act() for _ in range(PROMPTS)) * 1e6


def command(
    engines: Annotated[
        Sequence[float], typer.Option(parser=numbers(1, 10_000), metavar="N,...", help="Engines to choose from.")
    ] = (8, 64, 256, 1000),
    prompt_tokens: Annotated[
        Sequence[float], typer.Option(parser=numbers(64, 100_000), metavar="N,...", help="Mean length of a prompt.")
    ] = (1024, 8192),
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Time the choice among engines, and what a router hears from them."""
    chosen = Table(
        "The choice of an engine, per prompt",
        CHOOSE_COLUMNS,
        (asdict(choose(int(count), int(tokens))) for tokens in prompt_tokens for count in engines),
    )
    most = int(max(engines))
    heard = Table(
        f"What an engine says, to a router that knows {most:,}",
        MESSAGE_COLUMNS,
        (asdict(row(most)) for row in (pulse, blocks)),
    )
    run_benchmark(chosen, heard, as_json=as_json, plot_file=plot_file, draw=_draw)


def _draw(chosen: Sequence[Row], _heard: Sequence[Row], file: Path) -> None:
    stacks = {
        f"{row['engines']:,} engines, {row['prompt_tokens']:,} tokens": {
            "digests": row["digests_us"],
            "order": row["order_us"],
            "begin and end": row["begin_end_us"],
        }
        for row in chosen
    }
    plot.bars(file, "The choice of an engine", "µs per prompt", stacks)
