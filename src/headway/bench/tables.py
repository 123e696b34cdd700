"""Prints rows of figures, as JSON or as a table, and writes them in Markdown."""

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
    """A column. key: of its value in the row. form: a format specification; empty for text.

    spread: the range that `compared` has found stands beside the value.
    """

    heading: str
    key: str
    form: str = ",.1f"
    spread: bool = False


def show(rows: Iterable[Row], columns: Sequence[Column], title: str, *, as_json: bool) -> list[Row]:
    """Print rows one by one (JSON) or together (table), with the machine that they are from; returns the rows.

    A column without any value is left out. Where only some rows have no value, the table shows n/a.
    """
    if as_json:
        return [_printed(row | machine()) for row in rows]
    rows = list(rows)
    table = Table(title=title, caption=described(machine()), caption_justify="left")
    columns = _filled(rows, columns)
    for column in columns:
        table.add_column(column.heading, justify="left" if column.form == "" else "right")
    for row in rows:
        table.add_row(*(_cell(row, column) for column in columns))
    # A file or a pipe has no width to fit the table in.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    return rows


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The rows as a table in Markdown."""
    columns = _filled(rows, columns)
    lines = [
        [column.heading for column in columns],
        ["---" if column.form == "" else "---:" for column in columns],
        *([_cell(row, column) for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain_columns(rows: Sequence[Row]) -> list[Column]:
    """A column for every key, with the key as its heading."""
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
