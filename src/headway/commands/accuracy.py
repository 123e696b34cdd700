"""`headway accuracy`: compares every token with transformers' `generate`, under many settings of the scheduler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from headway.accuracy.pair import TRANSPORTS
from headway.accuracy.subject import BUDGETS, MODELS, MORE_MODELS, SCHEDULERS, Outcome, Setting, settings, subjects
from headway.commands.lists import names, whole_numbers

EXAMPLES = (
    "headway accuracy",
    "headway accuracy --model llama,qwen3 --schedulers v2",
    "headway accuracy --budgets 16,64 --transports tcp --json",
)


def command(
    models: Annotated[
        Sequence[str],
        typer.Option(
            "--models",
            "--model",
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
    transports: Annotated[
        Sequence[str],
        typer.Option(
            parser=names(TRANSPORTS),
            metavar="NAME,...",
            help=f"Of {', '.join(TRANSPORTS)}: ways of KV from a prefill engine to a decode engine.",
        ),
    ] = TRANSPORTS,
    async_scheduling: Annotated[
        bool, typer.Option(help="Schedule the next step while the present one computes.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per setting, each on its own line.")
    ] = False,
) -> None:
    """Compare every token with transformers' generate: greedy, float32, on this machine's CPU.

    Runs models × schedulers × token budgets × a large and a small KV pool × prefix caching on and off.
    The small pool cannot hold all requests at once: v1 and v2 preempt, v0 queues. Then two engines: one computes the
    prompts, the other pulls their KV and answers; sampled answers must be those of one engine. Exit code 1: a token
    differs.
    """
    title = "Token for token as model.generate (greedy, float32)"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False)  # 80 characters wide
    for heading in ("model", "sched.", "budget", "pool", "cache", "KV by"):
        table.add_column(heading, justify="right" if heading == "budget" else "left")
    for heading in ("exact", "preempted", "cached", "pulled", "s"):
        table.add_column(heading, justify="right")
    wrong = cells = 0
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        for subject in subjects(models, Path(folder)):
            for setting in settings(subject.name, schedulers, budgets, transports, async_scheduling):
                status.update(f"{' '.join(_cells(setting))}: {wrong} of {cells} cells wrong")
                outcome = subject.run(setting)
                cells += 1
                wrong += not outcome.is_exact
                if as_json:
                    print(json.dumps(asdict(setting) | asdict(outcome)), flush=True)
                table.add_row(*_cells(setting), *_results(outcome), style=None if outcome.is_exact else "red")
    if not as_json:
        Console().print(table)
        print(f"{cells - wrong} of {cells} settings exact")
    if wrong:
        raise typer.Exit(1)


def _cells(setting: Setting) -> list[str]:
    return [
        setting.model,
        setting.scheduler,
        str(setting.max_num_batched_tokens),
        setting.pool,
        "on" if setting.prefix_caching else "off",
        setting.transport or "",
    ]


def _results(outcome: Outcome) -> list[str]:
    return [
        f"{outcome.exact}/{outcome.prompts}",
        str(outcome.preemptions),
        str(outcome.cached_tokens),
        str(outcome.pulled_tokens),
        f"{outcome.seconds:.2f}",
    ]
