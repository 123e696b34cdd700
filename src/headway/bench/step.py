"""`headway bench step`: what one scheduling step costs when everybody decodes."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from headway.config import SchedulerConfig
from headway.executor.simulated import SimulatedTokens
from headway.request import Request, SamplingParams
from headway.scheduler import AddRequest, Scheduler, StepResult

BLOCK_SIZE = 16
PROMPT_TOKENS = 128
VOCAB_SIZE = 32_000
REFERENCE_ITERATIONS = 20_000
REFERENCE_US = 555.0
"""The reference loop on the idle machine on which the peers were measured (2-core AMD EPYC VM, CPython 3.11)."""

VLLM_US = {64: 716.0, 256: 2_780.0, 1_024: 14_272.0, 4_096: 64_499.0}
"""vLLM 0.33.0's v1 Scheduler on that machine, schedule + update_from_output, prefix caching on, medians."""

_MIN_STEPS = 20  # fewer give no median worth printing


@dataclass(frozen=True, slots=True)
class StepCost:
    """Medians over the steps of one run, in microseconds of the scheduling thread's CPU time.

    total_us is the median of the sums. reference_us: a plain Python loop timed beside each step. scaled_total_us:
    the total at the machine speed at which the loop takes REFERENCE_US.
    """

    running: int
    steps: int
    schedule_us: float
    update_us: float
    total_us: float
    total_p99_us: float | None
    reference_us: float
    scaled_total_us: float


def steady_decode(running: int, steps: int, *, enable_prefix_caching: bool = True) -> StepCost:
    """Time `schedule` and `update` while `running` requests decode.

    Prompts of 128 to 143 tokens, so that in every step one request in sixteen enters a new block, and one fills a
    block that is published to the prefix cache.
    """
    scheduler = _all_decoding(running, steps, enable_prefix_caching)
    device = SimulatedTokens(running, VOCAB_SIZE)
    schedule_ns, update_ns, reference_ns = [], [], []
    warm_up = max(10, steps // 10)
    for step in range(warm_up + steps):
        before = _reference_ns()
        started = time.thread_time_ns()
        batch, _ = scheduler.schedule()
        scheduled = time.thread_time_ns()
        assert batch is not None and batch.num_decodes == len(batch) == running
        result = StepResult(batch.step_id, device.sample(batch))
        answered = time.thread_time_ns()
        scheduler.apply(result)
        applied = time.thread_time_ns()
        if step >= warm_up:
            schedule_ns.append(scheduled - started)
            update_ns.append(applied - answered)
            reference_ns.append((before + _reference_ns()) / 2)
    totals = sorted((a + b) / 1e3 for a, b in zip(schedule_ns, update_ns, strict=True))
    reference_us = statistics.median(reference_ns) / 1e3
    total_us = statistics.median(totals)
    return StepCost(
        running=running,
        steps=steps,
        schedule_us=round(statistics.median(schedule_ns) / 1e3, 1),
        update_us=round(statistics.median(update_ns) / 1e3, 1),
        total_us=round(total_us, 1),
        total_p99_us=round(float(np.percentile(totals, 99)), 1) if steps >= 100 else None,
        reference_us=round(reference_us, 1),
        scaled_total_us=round(total_us * REFERENCE_US / reference_us, 1),
    )


def _all_decoding(running: int, steps: int, enable_prefix_caching: bool) -> Scheduler:
    """A scheduler in which every request has computed its prompt and has room for all the steps to come."""
    longest = PROMPT_TOKENS + BLOCK_SIZE + 2 * steps + 64
    config = SchedulerConfig(
        max_num_seqs=running,
        max_num_batched_tokens=max(16_384, running),
        max_model_len=max(131_072, longest),
        block_size=BLOCK_SIZE,
        num_blocks=max(running * (longest // BLOCK_SIZE + 2), 131_072 // BLOCK_SIZE) + 16,
        enable_prefix_caching=enable_prefix_caching,
        reserve="none",  # the pool is measured for these steps, not for all that max_tokens would allow
    )
    scheduler = Scheduler(config)
    rng = np.random.default_rng(1)
    for uid in range(running):
        prompt = rng.integers(1_000, VOCAB_SIZE, PROMPT_TOKENS + uid % BLOCK_SIZE, dtype=np.int32)
        request = Request(
            uid=uid,
            request_id=f"req-{uid:06d}",
            prompt=prompt,
            sampling=SamplingParams(max_tokens=None, ignore_eos=True),
            max_tokens=config.max_model_len - len(prompt),
        )
        scheduler.apply(AddRequest(request))
    device = SimulatedTokens(running, VOCAB_SIZE)
    while True:
        batch, _ = scheduler.schedule()
        assert batch is not None
        scheduler.apply(StepResult(batch.step_id, device.sample(batch)))
        if batch.num_decodes == running:
            return scheduler


def _reference_ns() -> int:
    started = time.thread_time_ns()
    x = 0
    for i in range(REFERENCE_ITERATIONS):
        x += i
    return time.thread_time_ns() - started


def command(
    running: Annotated[
        str, typer.Option(metavar="N,...", help="Requests that decode at the same time; several are run in turn.")
    ] = "64,256,1024,4096",
    steps: Annotated[
        int | None, typer.Option(help="Steps to time.", show_default="960 at 64 running, fewer for more, 80 at least")
    ] = None,
    prefix_caching: Annotated[bool, typer.Option(help="Publish the blocks that fill up.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row and line.")] = False,
) -> None:
    """Time the scheduler's own work per step: schedule + update, on a simulated device.

    Beside every step a plain Python loop of 20,000 additions is timed; the scaled column divides its slowness out, so
    that rows taken on a busy or slower machine can be set beside the peers' published figures.
    """
    counts = _counts(running)
    if steps is not None and steps < _MIN_STEPS:
        raise typer.BadParameter(f"must be at least {_MIN_STEPS} for a median, got {steps}", param_hint="--steps")
    rows = (
        steady_decode(count, steps or max(80, 61_440 // max(count, 64)), enable_prefix_caching=prefix_caching)
        for count in counts
    )
    if as_json:
        for row in rows:
            print(json.dumps(asdict(row)), flush=True)
    else:
        _print_table(rows)


def _counts(running: str) -> list[int]:
    try:
        counts = [int(part) for part in running.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise typer.BadParameter(
            f"must be positive numbers with commas between them, got {running!r}", param_hint="--running"
        )
    return counts


def _print_table(rows: Iterator[StepCost]) -> None:
    table = Table(title="Steady decode, medians in µs per step")
    for heading in ("running", "schedule", "update", "total", "p99", "reference loop", "total, scaled", "vLLM 0.33"):
        table.add_column(heading, justify="right")
    for row in rows:
        vllm = VLLM_US.get(row.running)
        table.add_row(
            f"{row.running:,}",
            f"{row.schedule_us:,.1f}",
            f"{row.update_us:,.1f}",
            f"{row.total_us:,.1f}",
            f"{row.total_p99_us:,.1f}" if row.total_p99_us is not None else "n/a",
            f"{row.reference_us:,.0f}",
            f"{row.scaled_total_us:,.1f}",
            f"{vllm:,.0f} ({vllm / row.scaled_total_us:,.0f}×)" if vllm else "",
        )
    console = Console()
    console.print(table)
    console.print(
        "vLLM's column was measured before, on another day, with the loop at 555 µs: hence the scaling. "
        "It is not part of this run.",
        style="dim",
    )
