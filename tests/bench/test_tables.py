"""Rows as JSON lines or as a table."""

import json

from headway.bench.machine import machine
from headway.bench.tables import Column, markdown, plain_columns, show

ROWS = [
    {"system": "ours", "us": 1234.56, "p99": None, "on": True},
    {"system": "theirs", "us": 9.0, "p99": 1.0, "on": False, "times": 2.0, "times_low": 1.5, "times_high": 3.0},
]
COLUMNS = [
    Column("system", "system", ""),
    Column("time", "us"),
    Column("p99", "p99"),
    Column("on", "on"),
    Column("ratio", "times", ".1f", spread=True),
    Column("unknown", "nowhere"),
]


def test_json_is_one_flat_object_per_line_as_it_comes(capsys):
    def rows():
        for row in ROWS:
            yield row
            assert json.loads(capsys.readouterr().out) == row | machine()

    assert show(rows(), COLUMNS, "title", as_json=True) == [row | machine() for row in ROWS]


def test_a_table_has_a_line_per_row(capsys):
    assert show(iter(ROWS), COLUMNS, "title", as_json=False) == ROWS
    out = capsys.readouterr().out
    ours, theirs = (line for line in out.splitlines() if "ours" in line or "theirs" in line)
    assert [cell.strip() for cell in ours.split("│")[1:-1]] == ["ours", "1,234.6", "n/a", "yes", ""]
    assert [cell.strip() for cell in theirs.split("│")[1:-1]] == ["theirs", "9.0", "1.0", "", "2.0 (1.5 – 3.0)"]
    assert "title" in out and machine()["python"] in " ".join(out.split())  # wherever its line breaks


def test_a_column_that_no_row_has_is_left_out(capsys):
    show(iter(ROWS), COLUMNS, "title", as_json=False)
    assert "unknown" not in capsys.readouterr().out


def test_the_same_in_markdown():
    assert markdown(ROWS, COLUMNS).splitlines() == [
        "| system | time | p99 | on | ratio |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| ours | 1,234.6 | n/a | yes |  |",
        "| theirs | 9.0 | 1.0 |  | 2.0 (1.5 – 3.0) |",
    ]


def test_every_key_can_be_a_column():
    rows = [{"name": "a", "count": 1000, "ms": None}, {"name": "b", "count": 2, "ms": 0.5, "more": 1}]
    assert plain_columns(rows) == [
        Column("name", "name", ""),
        Column("count", "count", ",d"),
        Column("ms", "ms", ",.2f"),
        Column("more", "more", ",d"),
    ]
