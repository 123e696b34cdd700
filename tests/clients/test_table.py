"""The page of clients says what the tests of clients show, and `make clients` runs all of them."""

from pathlib import Path

import pytest

from tests.clients import table
from tests.clients.table import Shown


def written(tmp_path: Path, source: str, name: str = "test_openai.py") -> list[Shown]:
    (tmp_path / name).write_text(source)
    return table.shown(tmp_path)


def test_the_page_has_the_table_of_the_tests() -> None:
    page = table.PAGE.read_text(encoding="utf-8")
    assert table.written(page) == table.table(table.shown()), "`make clients ARGS=--write` writes it"


def test_every_client_has_tests() -> None:
    assert {cell.client for cell in table.shown()} == set(table.CLIENTS)


def test_marks_are_read_without_the_library(tmp_path: Path) -> None:
    source = (
        "import no_such_library\n"
        "@pytest.mark.shows('seed')\n@pytest.mark.shows('embeddings', 'refused by name')\n"
        "async def test_one(): ...\n"
    )
    assert written(tmp_path, source) == [
        Shown("test_openai::test_one", "openai", "seed", "yes"),
        Shown("test_openai::test_one", "openai", "embeddings", "refused by name"),
    ]


def test_a_test_without_a_mark_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test_one does not say what it shows"):
        written(tmp_path, "def test_one(): ...")


def test_an_unknown_feature_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'telepathy'"):
        written(tmp_path, "@pytest.mark.shows('telepathy')\ndef test_one(): ...")


def test_an_unknown_client_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test_curl is of no known client"):
        written(tmp_path, "", name="test_curl.py")


SEED = Shown("test_openai::test_seed", "openai", "seed", "yes")
AGAIN = Shown("test_openai::test_seed_again", "openai", "seed", "yes")
STOP = Shown("test_llm::test_stop", "llm", "stop strings", "yes")


def test_a_row_for_each_feature_and_a_column_for_each_client() -> None:
    assert table.table([SEED, STOP]).splitlines() == [
        "|  | openai (Python) | llm |",
        "| --- | --- | --- |",
        "| stop strings | – | yes |",
        "| seed | yes | – |",
    ]


@pytest.mark.parametrize("failing", [SEED, AGAIN], ids=["first", "second"])
def test_a_cell_fails_if_one_of_its_tests_fails(failing: Shown) -> None:
    assert "| seed | **fails** |" in table.table([SEED, AGAIN], frozenset([failing.test]))


def test_tests_of_one_cell_say_the_same() -> None:
    other = Shown("test_openai::test_no_seed", "openai", "seed", "refused by name")
    with pytest.raises(ValueError, match="says 'refused by name' where another test says 'yes'"):
        table.table([SEED, other])


def test_the_table_of_a_page_is_exchanged_alone() -> None:
    page = f"before\n{table.BEGIN}old\n{table.END}after\n"
    new = table.rewritten(page, "new\n")
    assert new == f"before\n{table.BEGIN}new\n{table.END}after\n" and table.written(new) == "new\n"
