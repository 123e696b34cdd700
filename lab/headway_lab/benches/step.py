"""`headway bench step`: the scheduler's time for one step when all requests decode."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from headway.bench import plot
from headway.bench.benchmark import Table, run_benchmark
from headway.bench.plot import PlotOption
from headway.bench.report import Row, percentile
from headway.bench.rounds import Rounds, Samples, compared, pooled
from headway.bench.tables import Column, JsonOption
from headway.commands.lists import whole_numbers
from headway_lab.schedulers.contenders import (
    Contender,
    PeerName,
    PeerOption,
    ThroughAdapterOption,
    groups,
    in_turn,
    sums,
)
from headway_lab.schedulers.workloads import SteadyDecode

MIN_STEPS = 100  # for a 99th percentile
MAX_PAUSE_MS = 1_000
ROUNDS = 10
WAITING_WITH_FEATURES = 16  # as many as a pass looks at, when there is a slot

COLUMNS = (
    Column("running", "running", ",d"),
    Column("waiting", "waiting", ",d"),
    Column("features", "features"),
    Column("pause, ms", "pause_ms", "g"),
    Column("system", "system", ""),
    Column("schedule", "schedule_us"),
    Column("update", "update_us"),
    Column("total", "total_us"),
    Column("p99", "total_p99_us"),
    Column("per extra running", "us_per_extra_running", ".3f"),
    Column("× plain", "times_plain", ".2f"),
    Column("× headway (rounds)", "times_headway", ".1f", spread=True),
    Column("reference loop", "reference_us", ",.0f"),
)


def measure(workloads: Sequence[SteadyDecode], systems: Sequence[Contender]) -> list[Row]:
    """A row for each workload and system, all run in turn. The others are compared with the first system, and with
    the first workload."""
    runs = [(workload, system) for workload in workloads for system in systems]
    results = in_turn([system.run(workload) for workload, system in runs])
    rows = []
    for (workload, system), rounds in zip(runs, results, strict=True):
        row = _row(workload, system, rounds)
        if system is not systems[0]:
            row |= compared(rounds, results[runs.index((workload, systems[0]))], _total)
        if workload is not workloads[0]:
            plain = results[runs.index((workloads[0], system))]
            row["times_plain"] = round(_total(pooled(rounds)) / _total(pooled(plain)), 2)
        rows.append(row)
    return rows


def _total(samples: Samples) -> float:
    return statistics.median(sums(samples, "schedule_us", "update_us"))


def _row(workload: SteadyDecode, system: Contender, rounds: Rounds) -> Row:
    samples = pooled(rounds)
    p99 = percentile(sums(samples, "schedule_us", "update_us"), 99)
    return {
        "system": system.name,
        "version": system.version,
        "running": workload.running,
        "waiting": workload.waiting,
        "features": workload.features,
        "prefix_caching": workload.prefix_caching,
        "pause_ms": workload.pause_s * 1e3,
        "steps": len(samples["schedule_us"]),
        "schedule_us": round(statistics.median(samples["schedule_us"]), 1),
        "update_us": round(statistics.median(samples["update_us"]), 1),
        "total_us": round(_total(samples), 1),
        "total_p99_us": None if p99 is None else round(p99, 1),
        "reference_us": round(statistics.median(samples["reference_us"]), 1),
    }


def command(
    running: Annotated[
        Sequence[int],
        typer.Option(
            parser=whole_numbers(1, 1_000_000),
            metavar="N,...",
            help="Requests that decode at the same time; several are run one by one.",
        ),
    ] = (64, 256, 1024, 4096, 16384),
    steps: Annotated[
        int | None, typer.Option(help="Steps to time.", show_default="960 at 64 running, fewer for more, 100 at least")
    ] = None,
    waiting: Annotated[int, typer.Option(help="Also measure with this many requests in the queue.")] = 0,
    features: Annotated[
        bool,
        typer.Option(
            "--features",
            help="Also measure with all features of a request: penalties, logprobs, seeds, stop tokens, priorities; "
            "and with requests that wait because of the reserve rule.",
        ),
    ] = False,
    pause_ms: Annotated[
        float,
        typer.Option(help="Also measure with this sleep before each step, in ms, as while a device computes."),
    ] = 0.0,
    prefix_caching: Annotated[bool, typer.Option(help="Publish the blocks that fill up.")] = True,
    peer: PeerOption = None,
    through_adapter: ThroughAdapterOption = False,
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Time the scheduler's own work per step, schedule + update, without a device. Medians.

    Steps follow each other without a pause, except in the rows with one. With every round a plain Python loop of 20,000
    additions is timed; it shows how fast the machine was at that moment.
    """
    if steps is not None and steps < MIN_STEPS:
        raise typer.BadParameter(
            f"must be at least {MIN_STEPS} for a 99th percentile, got {steps}", param_hint="--steps"
        )
    if waiting < 0:
        raise typer.BadParameter(f"must be at least 0, got {waiting}", param_hint="--waiting")
    if not 0 <= pause_ms <= MAX_PAUSE_MS:
        raise typer.BadParameter(f"must be in [0, {MAX_PAUSE_MS}], got {pause_ms:g}", param_hint="--pause-ms")
    if features and PeerName.TRANSFORMERS in (peer or ()):
        raise typer.BadParameter(
            "transformers' continuous batching has no priorities and no reserve to switch on; measure it without",
            param_hint="--features",
        )

    def workloads(count: int) -> list[SteadyDecode]:
        total = steps or max(MIN_STEPS, 61_440 // max(count, 64))
        plain = SteadyDecode(count, -(-total // ROUNDS), ROUNDS, prefix_caching=prefix_caching)
        chosen = [plain]
        if waiting:
            chosen.append(replace(plain, waiting=waiting))
        if features:
            chosen.append(replace(plain, features=True, waiting=max(waiting, WAITING_WITH_FEATURES)))
        if pause_ms:
            chosen.append(replace(plain, pause_s=pause_ms / 1e3))
        return chosen

    def rows() -> Iterator[Row]:
        with groups(peer, through_adapter) as each:
            for systems in each:
                yield from _measure_all([workloads(count) for count in running], systems)

    table = Table("Steady decode, µs per step", COLUMNS, rows())
    run_benchmark(table, as_json=as_json, plot_file=plot_file, draw=_draw)


def _measure_all(sizes: Sequence[Sequence[SteadyDecode]], systems: Sequence[Contender]) -> Iterator[Row]:
    fewer: dict[object, Row] = {}  # the plain row of each system at the size before
    for workloads in sizes:
        for row in measure(workloads, systems):
            if not row["waiting"] and not row["pause_ms"]:
                row["us_per_extra_running"] = _slope(fewer.get(row["system"]), row)
                fewer[row["system"]] = row
            yield row


def _slope(fewer: Row | None, more: Row) -> float | None:
    """The cost of one more running request, between two rows; None without a row with fewer."""
    if fewer is None or more["running"] <= fewer["running"]:
        return None
    return round((more["total_us"] - fewer["total_us"]) / (more["running"] - fewer["running"]), 4)


def _draw(rows: Sequence[Row], file: Path) -> None:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        label = f"{row['system']} {row['version']}"
        if row["features"]:
            label += ", all features"
        elif row["pause_ms"]:
            label += f", {row['pause_ms']:g} ms between steps"
        elif row["waiting"]:
            label += f", {row['waiting']:,} waiting"
        xs, ys = series.setdefault(label, ([], []))
        xs.append(row["running"])
        ys.append(row["total_us"])
    plot.lines(file, "Scheduling one step of steady decode", "running requests", "µs per step", series, log=True)
