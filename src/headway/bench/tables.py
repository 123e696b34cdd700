"""Rows of figures: on standard output as JSON or as a table for people, and in Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from headway.bench.machine import described, machine
from headway.bench.report import Row

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per row and line.")]


class Column(NamedTuple):
    """heading, and the key of the row's value. form: a format specification for it; empty for text.

    spread: the value stands with the range that `compared` has found for it.
    """

    heading: str
    key: str
    form: str = ",.1f"
    spread: bool = False


def show(rows: Iterable[Row], columns: Sequence[Column], title: str, *, as_json: bool) -> list[Row]:
    """Print rows as they come (JSON) or when all are there (table), with the machine they are from; returns them.

    A column that no row has a value for is left out; where only some have none, the place says n/a.
    """
    if as_json:
        return [_printed(row | machine()) for row in rows]
    rows = list(rows)
    table = Table(title=title, caption=described(), caption_justify="left")
    columns = _filled(rows, columns)
    for column in columns:
        table.add_column(column.heading, justify="left" if column.form == "" else "right")
    for row in rows:
        table.add_row(*(_cell(row, column) for column in columns))
    # Where nobody looks at it as it is printed (a file, a pipe), there is no width to fit it in.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    return rows


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The same as a table in Markdown."""
    columns = _filled(rows, columns)
    lines = [
        [column.heading for column in columns],
        ["---" if column.form == "" else "---:" for column in columns],
        *([_cell(row, column) for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain_columns(rows: Sequence[Row]) -> list[Column]:
    """A column for every key, under its own name."""
    return [Column(key, key, _form(rows, key)) for key in dict.fromkeys(key for row in rows for key in row)]


def _form(rows: Sequence[Row], key: str) -> str:
    kinds = {type(row[key]) for row in rows if row.get(key) is not None}
    if not kinds <= {int, float}:
        return ""
    return ",.2f" if float in kinds else ",d"


def _filled(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


def _printed(row: Row) -> Row:
    print(json.dumps(row), flush=True)
    return row


def _cell(row: Row, column: Column) -> str:
    if column.key not in row:
        return ""
    value = row[column.key]
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else ""
    shown = format(value, column.form)
    if column.spread:
        low, high = (format(row[f"{column.key}_{end}"], column.form) for end in ("low", "high"))
        shown += f" ({low} – {high})"
    return shown
