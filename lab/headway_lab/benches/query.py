"""`headway bench query`: what a query costs its caller, and what a flood of finishes costs the loop.

    ask      `reserve_decode` from another thread while steps of fixed length run
    finish   one call that ends many of the running requests, from the call until the loop is free for its next pass

Both on the simulated device, for the manager with one lock (V1) and the manager with the mailbox (V2), in the same run.

A processor that has slept runs slowly at first. So queries are asked both in quick succession and seldom, and a plain
loop timed before each query shows how slow the processor was.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
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
from headway.config import Role, SchedulerConfig, SchedulerName
from headway.engine.engine import Engine
from headway.executor.simulated import SimulatedExecutor, SimulatedTokens, StepTimeModel
from headway.managers import MANAGERS, Manager
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.scheduler import StepResult

SCHEDULERS: tuple[SchedulerName, ...] = ("v1", "v2")
VOCAB_SIZE = 32_000
PROMPT_TOKENS = 64
RUNNING = 1_024
FINISHES = (64, 256)
REPEATS = 15  # of a flood; the median is reported
LOOP_ITERATIONS = 300
MIN_QUERIES = 100  # for a 99th percentile
ORIGINAL_V2_FINISH_MS = {64: 115.0, 256: 325.0}  # FastDeploy's pull request 7937 in May 2026, at 1,024 running

QUERY_COLUMNS = (
    Column("queries", "queries", ",d"),
    Column("scheduler", "scheduler", ""),
    Column("step", "step_ms", "g"),
    Column("pause", "pause_ms", "g"),
    Column("running", "running", ",d"),
    Column("p50", "p50_ms", ".3f"),
    Column("p99", "p99_ms", ".3f"),
    Column("max", "max_ms", ".3f"),
    Column("loop, µs", "loop_us", ".0f"),
)
FINISH_COLUMNS = (
    Column("finishes", "finishes", ",d"),
    Column("scheduler", "scheduler", ""),
    Column("running", "running", ",d"),
    Column("call", "call_ms", ".3f"),
    Column("loop held up", "held_up_ms", ".3f"),
    Column("worst", "worst_ms", ".3f"),
    Column("original V2", "original_v2_ms", "g"),
)


@dataclass(frozen=True)
class QueryRow:
    """Latencies of queries, in the caller, while steps of `step_ms` run.

    pause_ms: mean time between two. loop_us: median of a plain loop just before, some 12 µs on a warm processor.
    """

    scheduler: str
    step_ms: float
    pause_ms: float
    running: int
    queries: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    loop_us: float


@dataclass(frozen=True)
class FinishRow:
    """How long one call that ends `finishes` requests keeps the loop from its next pass; medians.

    call_ms: in the caller. held_up_ms: from the call until the finishes are applied and the next pass is made, less
    what a pass takes without them. original_v2_ms: what the original's V2 was held up for.
    """

    scheduler: str
    running: int
    finishes: int
    repeats: int
    call_ms: float
    held_up_ms: float
    worst_ms: float
    original_v2_ms: float | None


def _config(running: int) -> SchedulerConfig:
    return SchedulerConfig(
        max_num_seqs=running + 8,
        max_num_batched_tokens=16_384,
        max_model_len=8_192,
        num_blocks=(running + 8) * 64,
        role=Role.DECODE,
        reserve="none",
    )


def _add(manager: Manager, name: str) -> None:
    prompt = np.random.default_rng(len(name)).integers(1, VOCAB_SIZE, PROMPT_TOKENS, dtype=np.int32)
    sampling = SamplingParams(max_tokens=None, ignore_eos=True)
    manager.add(manager.door.make_request(NewRequest(request_id=name, prompt=prompt, sampling=sampling)))


def ask_while_steps_run(
    scheduler: SchedulerName, step_ms: float, running: int, queries: int, pause_ms: float
) -> QueryRow:
    """Time queries that succeed, at moments that do not depend on the steps."""
    executor = SimulatedExecutor(StepTimeModel(base_s=step_ms / 1e3), max_num_seqs=running + 8, vocab_size=VOCAB_SIZE)
    manager = MANAGERS[scheduler](_config(running))
    engine = Engine(manager, executor, lambda _: None)
    engine.start()
    try:
        for i in range(running):
            _add(manager, f"running-{i}")
        while manager.snapshot().num_running < running:
            time.sleep(0.01)
        pauses = np.random.default_rng(7).uniform(0.0, 2.0 * pause_ms / 1e3, queries)
        latencies, loops = [], []
        for i, pause in enumerate(pauses):
            time.sleep(pause)
            prompt = np.full(PROMPT_TOKENS, 1 + i % (VOCAB_SIZE - 1), np.int32)
            request = manager.door.make_request(
                NewRequest(request_id=f"asked-{i}", prompt=prompt, sampling=SamplingParams(max_tokens=8))
            )
            loops.append(_loop_us())
            started = time.perf_counter()
            reservation = manager.reserve_decode(request, timeout=60.0)
            latencies.append((time.perf_counter() - started) * 1e3)
            assert reservation is not None, "there was room"
            manager.drop_reservations([request.uid])
    finally:
        engine.shutdown()
    return QueryRow(
        scheduler=scheduler,
        step_ms=step_ms,
        pause_ms=pause_ms,
        running=running,
        queries=queries,
        p50_ms=round(float(np.percentile(latencies, 50)), 3),
        p99_ms=round(float(np.percentile(latencies, 99)), 3),
        max_ms=round(max(latencies), 3),
        loop_us=round(statistics.median(loops), 1),
    )


def _loop_us() -> float:
    started = time.perf_counter()
    sum(i * i for i in range(LOOP_ITERATIONS))
    return (time.perf_counter() - started) * 1e6


def finish_many(scheduler: SchedulerName, running: int, finishes: int) -> FinishRow:
    """Drive a manager by hand: a step is out, then one call ends many requests, then the loop takes its turn."""
    calls, turns = [], []
    for _ in range(REPEATS):
        manager = MANAGERS[scheduler](_config(running))
        for i in range(running):
            _add(manager, f"running-{i}")
        device = SimulatedTokens(manager.config.max_num_seqs, VOCAB_SIZE)
        usual = []
        batch = None
        while batch is None or batch.num_decodes < running or len(usual) < 20:
            started = time.perf_counter()
            manager.drain()
            batch = manager.schedule()
            usual.append(time.perf_counter() - started)
            assert batch is not None
            manager.update(StepResult(batch.step_id, device.sample(batch)))
        ids = [f"running-{i}" for i in range(0, running, running // finishes)][:finishes]
        started = time.perf_counter()
        manager.finish(ids)
        told = time.perf_counter()
        manager.drain()
        manager.schedule()
        done = time.perf_counter()
        calls.append((told - started) * 1e3)
        turns.append((done - started - statistics.median(usual[-20:])) * 1e3)
        assert len(manager.take_effects().ended) == finishes
    return FinishRow(
        scheduler=scheduler,
        running=running,
        finishes=finishes,
        repeats=REPEATS,
        call_ms=round(statistics.median(calls), 3),
        held_up_ms=round(statistics.median(turns), 3),
        worst_ms=round(max(turns), 3),
        original_v2_ms=ORIGINAL_V2_FINISH_MS.get(finishes) if scheduler == "v2" else None,
    )


def command(
    step_ms: Annotated[float, typer.Option(help="Milliseconds that a step of the simulated device takes.")] = 30.0,
    running: Annotated[int, typer.Option(help="Requests that decode while queries are asked.")] = 64,
    queries: Annotated[int, typer.Option(help="Queries to time, one at a time.")] = 300,
    pause_ms: Annotated[
        Sequence[float],
        typer.Option(parser=numbers(0, 1000), metavar="MS,...", help="Mean milliseconds between two of them."),
    ] = (1, 30),
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Time queries while steps run, and floods of finishes, for V1 (one lock) and V2 (mailbox)."""
    if queries < MIN_QUERIES:
        raise typer.BadParameter(
            f"must be at least {MIN_QUERIES} for a 99th percentile, got {queries}", param_hint="--queries"
        )
    if not 0 < step_ms <= 1000:
        raise typer.BadParameter(f"must be above 0 and at most 1000, got {step_ms}", param_hint="--step-ms")
    if running < 1:
        raise typer.BadParameter(f"must be at least 1, got {running}", param_hint="--running")
    asked = Table(
        "reserve_decode while steps run, ms in the caller; the original V2 answers between steps",
        QUERY_COLUMNS,
        (
            asdict(ask_while_steps_run(scheduler, step_ms, running, queries, pause))
            for pause in pause_ms
            for scheduler in SCHEDULERS
        ),
    )
    finished = Table(
        f"One call ends many of {RUNNING:,} running requests, ms; the original's column is of another day and machine",
        FINISH_COLUMNS,
        (asdict(finish_many(scheduler, RUNNING, count)) for count in FINISHES for scheduler in SCHEDULERS),
    )
    run_benchmark(asked, finished, as_json=as_json, plot_file=plot_file, draw=_draw)


def _draw(asked: Sequence[Row], finished: Sequence[Row], file: Path) -> None:
    stacks = {
        f"{row['scheduler']}, asked every {row['pause_ms']:g} ms": {
            "p50": row["p50_ms"] * 1e3,
            "up to p99": (row["p99_ms"] - row["p50_ms"]) * 1e3,
        }
        for row in asked
    }
    plot.bars(file, "A query while steps run", "µs in the caller", stacks)
