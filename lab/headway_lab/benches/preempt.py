"""`headway bench preempt`: steps, and tokens computed again, when the pool is too small for all running requests."""

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
    HEADWAY,
    Contender,
    PeerOption,
    ThroughAdapterOption,
    groups,
    in_turn,
    sums,
    with_reserve,
)
from headway_lab.schedulers.workloads import BLOCK_SIZE, MAX_MODEL_LEN, Preemption

NO_RESERVE = with_reserve("none")  # whose admissions are those of engines without such a rule
OWN = (HEADWAY, with_reserve("blocks"), NO_RESERVE)

COLUMNS = (
    Column("system", "system", ""),
    Column("steps", "steps", ",d"),
    Column("running, mean", "rows"),
    Column("preemptions", "preemptions", ",d"),
    Column("tokens × minimal", "times_minimal_tokens", ".3f"),
    Column("schedule", "schedule_us"),
    Column("update", "update_us"),
    Column("total", "total_us"),
    Column("p99", "total_p99_us"),
    Column("whole run, ms", "run_ms"),
    *(
        Column(f"× {name} {what}", f"{prefix}times_{key}", ".1f", spread=True)
        for name, key in (("headway", "headway"), ("no reserve", "no_reserve"))
        for what, prefix in (("(rounds)", ""), ("run", "run_"))
    ),
)


def measure(workload: Preemption, systems: Sequence[Contender]) -> Iterator[Row]:
    """A row for each system, all run in turn.

    Peers are compared with the first system, and with ours without a reserve. With a rule some requests wait longer, so
    fewer run at a time and a step is less work. A whole run is the same work with every rule.
    """
    results = in_turn([system.run(workload) for system in systems])
    references = {"headway": systems[0]}
    if NO_RESERVE in systems:
        references["no_reserve"] = NO_RESERVE
    for system, rounds in zip(systems, results, strict=True):
        row = _row(workload, system, rounds)
        if system is not systems[0] and system not in OWN:
            for name, reference in references.items():
                ours = results[systems.index(reference)]
                row |= compared(rounds, ours, _step_us, f"times_{name}")
                row |= compared(rounds, ours, _run_us, f"run_times_{name}")
        yield row


def _step_us(samples: Samples) -> float:
    return statistics.median(sums(samples, "schedule_us", "update_us"))


def _run_us(samples: Samples) -> float:
    return sum(sums(samples, "schedule_us", "update_us"))


def _row(workload: Preemption, system: Contender, rounds: Rounds) -> Row:
    samples = pooled(rounds)
    p99 = percentile(sums(samples, "schedule_us", "update_us"), 99)
    return {
        "system": system.name,
        "version": system.version,
        "requests": workload.requests,
        "concurrent": workload.concurrent,
        "num_blocks": workload.num_blocks,
        "prompt_tokens": workload.prompt,
        "output_tokens": workload.output,
        "runs": workload.rounds,
        "steps": len(rounds[0]["rows"]),
        "rows": round(statistics.mean(samples["rows"]), 1),
        "preemptions": int(rounds[0]["preemptions"][0]),
        "computed_tokens": int(rounds[0]["computed_tokens"][0]),
        "times_minimal_tokens": round(rounds[0]["computed_tokens"][0] / workload.minimal_tokens, 3),
        "schedule_us": round(statistics.median(samples["schedule_us"]), 1),
        "update_us": round(statistics.median(samples["update_us"]), 1),
        "total_us": round(_step_us(samples), 1),
        "total_p99_us": None if p99 is None else round(p99, 1),
        "run_ms": round(_run_us(samples) / workload.rounds / 1e3, 1),
    }


def command(
    num_blocks: Annotated[int, typer.Option(help=f"Blocks of {BLOCK_SIZE} tokens in the pool.")] = 10_000,
    requests: Annotated[int, typer.Option(help="Requests, all there from the start.")] = 512,
    concurrent: Annotated[int, typer.Option(help="Requests that may run at a time.")] = 256,
    prompt: Annotated[int, typer.Option(help="Tokens in.")] = 512,
    output: Annotated[int, typer.Option(help="Tokens out.")] = 512,
    runs: Annotated[int, typer.Option(help="Runs of the whole workload.")] = 3,
    peer: PeerOption = None,
    through_adapter: ThroughAdapterOption = False,
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Run more requests than the pool has blocks for, until all end; time the steps and count the tokens that are
    computed again.

    With our reserve rules some requests wait longer, so that fewer are preempted: fewer run at a time, in more steps.
    So the time of the whole run is reported too, for each rule. There is no device.
    """
    for name, value in (("requests", requests), ("concurrent", concurrent), ("prompt", prompt), ("runs", runs)):
        if value < 1:
            raise typer.BadParameter(f"must be at least 1, got {value}", param_hint=f"--{name}")
    if output < 100:
        raise typer.BadParameter(
            f"must be at least 100, or there are too few steps for a 99th percentile, got {output}",
            param_hint="--output",
        )
    longest = -(-(prompt + output) // BLOCK_SIZE)
    if not longest < num_blocks:
        raise typer.BadParameter(
            f"must be above {longest}, which one request needs, got {num_blocks}", param_hint="--num-blocks"
        )
    workload = Preemption(
        runs,
        requests,
        prompt,
        output,
        concurrent,
        num_blocks,
        max_num_batched_tokens=max(8_192, concurrent),
        max_model_len=min(MAX_MODEL_LEN, (num_blocks - 1) * BLOCK_SIZE),
    )
    title = f"{requests} requests of {prompt} + {output} tokens in {num_blocks:,} blocks: µs per step"

    def rows() -> Iterator[Row]:
        with groups(peer, through_adapter) as each:
            for systems in each:
                own = systems[:1] if through_adapter else OWN
                yield from measure(workload, [*own, *systems[1:]])

    def draw(rows: Sequence[Row], file: Path) -> None:
        stacks = {
            f"{row['system']} {row['version']}\n{row['times_minimal_tokens']} × the tokens": {
                part: row[f"{part}_us"] for part in ("schedule", "update")
            }
            for row in rows
        }
        plot.bars(file, title, "µs per step, medians", stacks)

    run_benchmark(Table(title, COLUMNS, rows()), as_json=as_json, plot_file=plot_file, draw=draw)
