"""`headway accuracy`: compares every token with transformers' `generate`, under many settings of the scheduler."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from headway.accuracy.subject import BUDGETS, MODELS, MORE_MODELS, POOLS, SCHEDULERS, Outcome, Setting, subjects
from headway.commands.lists import names, whole_numbers


def command(
    models: Annotated[
        Sequence[str],
        typer.Option(
            parser=names((*MODELS, *MORE_MODELS)),
            metavar="NAME,...",
            help=f"Of {', '.join(MODELS)}; and, not by default, {', '.join(MORE_MODELS)}.",
        ),
    ] = MODELS,
    schedulers: Annotated[
        Sequence[str], typer.Option(parser=names(SCHEDULERS), metavar="NAME,...", help="Of v0, v1, v2.")
    ] = SCHEDULERS,
    budgets: Annotated[
        Sequence[int],
        typer.Option(parser=whole_numbers(8, 65_536), metavar="N,...", help="Values of max_num_batched_tokens."),
    ] = BUDGETS,
    async_scheduling: Annotated[
        bool, typer.Option(help="Schedule the next step while the present one computes.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per setting, each on its own line.")
    ] = False,
) -> None:
    """Compare every token with transformers' generate: greedy, float32, on this machine's CPU.

    Runs models × schedulers × token budgets × a large and a small KV pool × prefix caching on and off.
    The small pool cannot hold all requests at once: v1 and v2 preempt, v0 queues. Exit code 1: a token differs.
    """
    table = Table(title="Token for token as model.generate (greedy, float32)")
    for heading in ("model", "scheduler", "budget", "pool", "prefix caching", "exact", "preempted", "cached", "s"):
        table.add_column(
            heading, justify="right" if heading in ("budget", "exact", "preempted", "cached", "s") else "left"
        )
    wrong = cells = 0
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        for subject in subjects(models, Path(folder)):
            for scheduler, budget, pool, caching in itertools.product(schedulers, budgets, POOLS, (True, False)):
                setting = Setting(subject.name, scheduler, budget, pool, caching, async_scheduling)
                status.update(f"{subject.name} {scheduler} budget {budget} {pool} pool, {wrong} of {cells} cells wrong")
                outcome = subject.run(setting)
                cells += 1
                wrong += not outcome.is_exact
                if as_json:
                    print(json.dumps(asdict(setting) | asdict(outcome)), flush=True)
                table.add_row(*_cells(setting, outcome), style=None if outcome.is_exact else "red")
    if not as_json:
        Console().print(table)
        print(f"{cells - wrong} of {cells} settings exact")
    if wrong:
        raise typer.Exit(1)


def _cells(setting: Setting, outcome: Outcome) -> list[str]:
    return [
        setting.model,
        setting.scheduler,
        str(setting.max_num_batched_tokens),
        setting.pool,
        "on" if setting.prefix_caching else "off",
        f"{outcome.exact}/{outcome.prompts}",
        str(outcome.preemptions),
        str(outcome.cached_tokens),
        f"{outcome.seconds:.2f}",
    ]
