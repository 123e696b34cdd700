"""The frame of every benchmark: check the options, measure, print tables or JSON, draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from headway.bench import plot
from headway.bench.report import Row
from headway.bench.tables import Column, show


@dataclass(frozen=True)
class Table:
    """A table of results. rows: measured while they are iterated. notes: lines under the printed table."""

    title: str
    columns: Sequence[Column]
    rows: Iterable[Row]
    notes: Sequence[str] = ()


def run_benchmark(
    *tables: Table, as_json: bool, plot_file: Path | None = None, draw: Callable[..., None] | None = None
) -> list[list[Row]]:
    """Measure and print one table after the other, then draw; returns the rows of each table.

    draw: called with the rows of each table and, last, the file.
    Raises BadParameter, before any measurement, if the picture cannot be drawn.
    """
    plot.check(plot_file)
    done = []
    for table in tables:
        done.append(show(table.rows, table.columns, table.title, as_json=as_json))
        if table.notes and not as_json:
            Console().print("\n".join(table.notes), style="dim")
    if plot_file is not None:
        assert draw is not None, "a benchmark with --plot draws"
        draw(*done, plot_file)
    return done
