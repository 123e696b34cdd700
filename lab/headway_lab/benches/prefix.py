"""`headway bench prefix`: what one long prompt costs before its first chunk, unknown and cached."""

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
from headway.bench.report import Row
from headway.bench.rounds import Rounds, Samples, compared, pooled
from headway.bench.tables import Column, JsonOption
from headway_lab.schedulers.contenders import HEADWAY, Contender, PeerOption, contenders, in_turn
from headway_lab.schedulers.workloads import BLOCK_SIZE, LongPrompt

MIN_REPEATS = 5
ROUNDS = 5
STATES = ("cold", "warm")

COLUMNS = (
    Column("system", "system", ""),
    Column("prompt as", "form", ""),
    *(
        Column(f"{state} {what}".strip(), f"{state}_{what}_us" if what else f"{state}_us", ",.0f")
        for state in STATES
        for what in ("create", "schedule", "", "update")
    ),
    *(
        Column(f"{state} × {form}", f"{state}_times_headway_{form}", ".1f", spread=True)
        for state in STATES
        for form in ("list", "packed")
    ),
)


def measure(workload: LongPrompt, systems: Sequence[Contender]) -> Iterator[Row]:
    """Rows for our own system, with a list and packed, and one for each peer with a list; all are run in turn."""
    runs = [(HEADWAY, workload), (HEADWAY, replace(workload, packed=True))]
    runs += [(system, workload) for system in systems if system is not HEADWAY]
    results = in_turn([system.run(shape) for system, shape in runs])
    for (system, shape), rounds in zip(runs, results, strict=True):
        row = _row(shape, system, rounds)
        if system is not HEADWAY:
            for state in STATES:
                for form, ours in zip(("list", "packed"), results, strict=False):
                    row |= compared(rounds, ours, _median(f"{state}_us"), f"{state}_times_headway_{form}")
        yield row


class _median:
    """The median of the samples with this name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, samples: Samples) -> float:
        return statistics.median(samples[self._name])


def _row(workload: LongPrompt, system: Contender, rounds: Rounds) -> Row:
    samples = pooled(rounds)
    return {
        "system": system.name,
        "version": system.version,
        "form": "packed int32" if workload.packed else "list",
        "prompt_tokens": workload.tokens,
        "repeats": len(samples["cold_us"]),
        **{name: round(statistics.median(values), 1) for name, values in samples.items()},
    }


def command(
    tokens: Annotated[int, typer.Option(help="Of the prompt.")] = 32_768,
    repeats: Annotated[int, typer.Option(help="Prompts to time, each cold and then warm.")] = 25,
    peer: PeerOption = None,
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Time one long prompt from its tokens to the step that computes it: create the request, add it, schedule.

    From a Python list through the door, and from packed int32 as the engine process receives it. Medians.
    """
    if repeats < MIN_REPEATS:
        raise typer.BadParameter(f"must be at least {MIN_REPEATS}, got {repeats}", param_hint="--repeats")
    if not 8 * BLOCK_SIZE <= tokens <= 65_536:
        raise typer.BadParameter(f"must be from {8 * BLOCK_SIZE} to 65536, got {tokens}", param_hint="--tokens")
    workload = LongPrompt(-(-repeats // ROUNDS), ROUNDS, tokens)
    title = f"A prompt of {tokens:,} tokens: µs to create and to schedule it"

    def rows() -> Iterator[Row]:
        with contenders(peer) as systems:
            yield from measure(workload, systems)

    def draw(rows: Sequence[Row], file: Path) -> None:
        stacks = {
            f"{row['system']}, {row['form']}, {state}": {
                part: row[f"{state}_{part}_us"] for part in ("create", "schedule")
            }
            for row in rows
            for state in STATES
        }
        plot.bars(file, title, "µs", stacks)

    run_benchmark(Table(title, COLUMNS, rows()), as_json=as_json, plot_file=plot_file, draw=draw)
