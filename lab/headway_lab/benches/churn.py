"""`headway bench churn`: the scheduler's time for a whole request when answers are short."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from headway.bench import plot
from headway.bench.benchmark import Table, run_benchmark
from headway.bench.plot import PlotOption
from headway.bench.report import Row, percentile
from headway.bench.rounds import Rounds, Samples, compared, pooled
from headway.bench.tables import Column, JsonOption
from headway_lab.schedulers.contenders import (
    Contender,
    PeerOption,
    ThroughAdapterOption,
    groups,
    in_turn,
    sums,
)
from headway_lab.schedulers.workloads import Churn

MIN_STEPS = 100  # for a 99th percentile
WARM_UP = 1_000  # requests; at least twice the number that run at a time
ROUNDS = 10
PARTS = ("add_us", "schedule_us", "update_us")  # of the scheduler's time

COLUMNS = (
    Column("system", "system", ""),
    Column("requests", "requests", ",d"),
    Column("add", "add_us_per_request"),
    Column("schedule", "schedule_us_per_request"),
    Column("update", "update_us_per_request"),
    Column("scheduler", "scheduler_us_per_request"),
    Column("create", "create_us_per_request"),
    Column("step, median", "step_us"),
    Column("step, p99", "step_p99_us"),
    Column("× headway (rounds)", "times_headway", ".1f", spread=True),
)


def measure(workload: Churn, systems: Sequence[Contender]) -> Iterator[Row]:
    """A row for each system, run in turn; the others are compared with the first."""
    results = in_turn([system.run(workload) for system in systems])
    for system, rounds in zip(systems, results, strict=True):
        row = _row(workload, system, rounds)
        if system is not systems[0]:
            row |= compared(rounds, results[0], _per_request)
        yield row


def _per_request(samples: Samples) -> float:
    """The scheduler's time per request, in µs."""
    return sum(sum(samples[part]) for part in PARTS) / sum(samples["ended"])


def _row(workload: Churn, system: Contender, rounds: Rounds) -> Row:
    samples = pooled(rounds)
    ended = int(sum(samples["ended"]))
    steps = sums(samples, "schedule_us", "update_us")
    p99 = percentile(steps, 99)
    parts = {f"{part}_per_request": round(sum(samples[part]) / ended, 1) for part in ("create_us", *PARTS)}
    return {
        "system": system.name,
        "version": system.version,
        "requests": ended,
        "steps": len(steps),
        "concurrent": workload.concurrent,
        "prompt_tokens": workload.prompt,
        "output_tokens": workload.output,
        **parts,
        "scheduler_us_per_request": round(_per_request(samples), 1),
        "step_us": round(statistics.median(steps), 1),
        "step_p99_us": None if p99 is None else round(p99, 1),
    }


def command(
    requests: Annotated[int, typer.Option(help="Requests to time, after the warm-up.")] = 5_000,
    concurrent: Annotated[int, typer.Option(help="Requests at a time; a new request follows each that ends.")] = 256,
    prompt: Annotated[int, typer.Option(help="Tokens in.")] = 512,
    output: Annotated[int, typer.Option(help="Tokens out.")] = 32,
    peer: PeerOption = None,
    through_adapter: ThroughAdapterOption = False,
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Time the scheduler per request while requests come and go: add, schedule and update, without a device.

    The creation of a request (check, pack; in vLLM: hash) is reported separately: engines do it outside the step.
    """
    if concurrent < 1:
        raise typer.BadParameter(f"must be at least 1, got {concurrent}", param_hint="--concurrent")
    for name, value, most in (("prompt", prompt, 8_192), ("output", output, 8_192)):
        if not 1 <= value <= most:
            raise typer.BadParameter(f"must be from 1 to {most}, got {value}", param_hint=f"--{name}")
    least = -(-MIN_STEPS // output) * concurrent  # each slot has enough requests, one after the other, for MIN_STEPS
    if requests < least:
        raise typer.BadParameter(
            f"must be at least {least} for a 99th percentile of the steps, got {requests}", param_hint="--requests"
        )
    num_blocks = max(20_000, 2 * concurrent * -(-(prompt + output) // 16))
    workload = Churn(
        -(-requests // ROUNDS),
        ROUNDS,
        warm_up=max(WARM_UP, 2 * concurrent),
        prompt=prompt,
        output=output,
        concurrent=concurrent,
        max_num_batched_tokens=max(8_192, concurrent),
        num_blocks=num_blocks,
    )
    title = f"Churn, {prompt} tokens in, {output} out, {concurrent} at a time: µs per request"

    def rows() -> Iterator[Row]:
        with groups(peer, through_adapter) as each:
            for systems in each:
                yield from measure(workload, systems)

    def draw(rows: Sequence[Row], file: Path) -> None:
        stacks = {
            f"{row['system']} {row['version']}": {part[:-3]: row[f"{part}_per_request"] for part in PARTS}
            for row in rows
        }
        plot.bars(file, title, "µs of the scheduler per request", stacks)

    run_benchmark(Table(title, COLUMNS, rows()), as_json=as_json, plot_file=plot_file, draw=draw)
