"""`headway chaos`: what clients see of prefill and decode engines under faults."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headway_lab.chaos.storm import Outcome

PROBLEMS = 1  # exit code
MOST_SHOWN = 20
Row = dict[str, Any]


def command(
    seconds: Annotated[float, typer.Option(min=1.0, help="How long faults are injected.")] = 60.0,
    seed: Annotated[int, typer.Option(help="The plan of the faults is drawn from it.")] = 0,
    log: Annotated[Path | None, typer.Option(help="File for all lines that the servers print.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row and line.")] = False,
) -> None:
    """Inject faults into real prefill and decode engines, and check every answer.

    Processes are killed and stopped, connections cut and delayed, clients
    leave, servers are paused. Every request must end exactly once, with the
    answer of a mixed engine; afterwards all slots and blocks must be free.
    The exit code is 1 if not.
    """
    # Here, so that `headway --help`, which loads this module, is quick.
    from headway.bench.tables import Column, show
    from headway.cluster.group import GroupStartError
    from headway_lab.chaos.plan import plan
    from headway_lab.chaos.storm import run
    from headway_lab.chaos.topology import SERVERS, WIRES

    with ExitStack() as stack:
        file: IO[str] | None = None if log is None else stack.enter_context(log.open("w", encoding="utf-8"))

        def tell(name: str, line: str) -> None:
            if file is not None:
                print(f"{name} | {line}", file=file, flush=True)

        faults = plan(seed, seconds, SERVERS, WIRES)
        try:
            outcome = asyncio.run(run(faults, seconds, seed, tell=tell, say=_say))
        except GroupStartError as error:
            raise ValueError(f"the engines do not start: {error}") from None
    columns = (Column("", "group", ""), Column("what", "what", ""), Column("count", "count", ",.10g"))
    show(_rows(outcome), columns, f"Chaos: {seconds:g} s, seed {seed}", as_json=as_json)
    for problem in outcome.problems[:MOST_SHOWN]:
        _say(problem)
    if (more := len(outcome.problems) - MOST_SHOWN) > 0:
        _say(f"and {more} more")
    if outcome.problems:
        raise typer.Exit(PROBLEMS)


def _rows(outcome: Outcome) -> Iterator[Row]:
    from headway_lab.chaos.plan import FaultKind

    for kind in FaultKind:
        yield {"group": "faults", "what": str(kind), "count": outcome.faults[kind]}
    yield {"group": "faults", "what": "found their process dead", "count": outcome.num_in_vain}
    yield {"group": "faults", "what": "servers started again whole", "count": outcome.num_deaths}
    for what, counted in outcome.counted.items():
        yield {"group": "traffic", "what": what, "count": round(counted)}
    for (way, what), count in sorted(outcome.outcomes.items()):
        yield {"group": "requests", "what": f"{way}: {what}", "count": count}
    yield {"group": "checks", "what": "seconds until all was free", "count": round(outcome.free_after_s, 1)}
    yield {"group": "checks", "what": "leaks", "count": len(outcome.leaks)}
    yield {"group": "checks", "what": "mismatches", "count": len(outcome.mismatches)}
    yield {"group": "checks", "what": "requests without exactly one end", "count": len(outcome.broken_ends)}
    yield {"group": "checks", "what": "failures without a fault of the server", "count": len(outcome.unexcused)}
    yield {"group": "checks", "what": "servers that were not well again", "count": len(outcome.not_well)}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
