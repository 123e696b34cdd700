"""Runs everything that needs another engine: makes the environments that are missing, runs tests/adapters as a whole,
and prints which answers were equal.

    make adapters [ARGS="-k served"]        more arguments go to pytest

The environments lie in the user's cache folder: each is made once, in minutes, and takes 2 to 3 GB. Exit status 1 if a
test fails; 2 if an environment cannot be made.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from headway_lab.peers.environment import Environment, PeerMissing
from headway_lab.peers.fastdeploy import FASTDEPLOY
from headway_lab.peers.vllm_engine import VLLM_ENGINE
from headway_lab.peers.vllm_source import VLLM_SOURCE
from headway_lab.peers.vllm_tests import VLLM_TESTS
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS: tuple[Environment, ...] = (
    VLLM_SOURCE,
    VLLM_ENGINE,
    VLLM_TESTS,
    FASTDEPLOY,
)


class Summary:
    """A plugin of pytest that collects the cells of tables. A test names its cell, before it asserts anything, by
    record_property("cell", (row, column, what it says if the test passes))."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            for name, cell in report.user_properties:
                if name == "cell":
                    row, column, text = cell
                    self._rows.setdefault(row, {})[column] = "[red]FAILED[/]" if report.failed else text

    def tables(self) -> list[Table]:
        """The cells in the order in which the tests ran. Rows with the same columns are in one table."""
        by_columns: dict[tuple[str, ...], Table] = {}
        for row, cells in self._rows.items():
            columns = tuple(sorted(cells, reverse=True))
            table = by_columns.setdefault(columns, Table("", *columns))
            table.add_row(row, *(cells[column] for column in columns))
        return list(by_columns.values())


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    try:
        for environment in ENVIRONMENTS:
            environment.python()
    except PeerMissing as error:
        print(error, file=sys.stderr)
        return 2
    os.environ["HEADWAY_ADAPTERS"] = "1"  # everything, not the short part that `make test` runs
    os.environ.setdefault("HEADWAY_ADAPTER_CASES", "200")
    summary = Summary()
    plugins: list[Any] = [summary]
    status = pytest.main(["tests/adapters", "-p", "no:cacheprovider", "-rs", *arguments], plugins=plugins)
    console = Console(width=120)
    for table in summary.tables():
        console.print(table)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
