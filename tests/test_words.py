"""tools/words.py: which words it finds, where, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import words


@pytest.mark.parametrize(
    "text",
    [
        "Nobody waits.",
        "held for nobody",
        "def whoever_comes_first(): ...",
        "_NOBODY = 0",
        "requests and those that decode",
        "requests and those\n    that decode",
        "# of requests those\n# that decode",
        " * blocks, and the one\n * which is free",
        '"the slot, or the one " f"whose request ended"',
        "def test_those_that_wait(): ...",
        "ones that wait",
        "anyone",
    ],
)
def test_finds_a_pronoun(text: str) -> None:
    assert len(list(words.banned(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "requests that decode",
        "the thread who waits",
        "one request that decodes",
        "those requests that decode",
        "those of the prompt. That is all.",
        "those, which is why",
        "somebodies",
        "at one. Who",
        "done that",
    ],
)
def test_leaves_other_sentences_alone(text: str) -> None:
    assert not list(words.banned(text))


def test_names_the_line_on_which_the_words_begin() -> None:
    assert list(words.banned("a\nb nobody\nc those\nthat d\n")) == [(2, "nobody"), (3, "those that")]


def test_prints_each_place_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text('"""Fine."""\nx = 1  # for whomever\n')
    (tmp_path / "README.md").write_text("Nobody\n")
    assert words.main([], tmp_path) == 1
    assert capsys.readouterr().out == "README.md:1: Nobody\nsrc/a.py:2: whomever\n"


def test_reads_the_newest_section_of_the_changelog_and_no_measured_data(tmp_path: Path) -> None:
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## 2\nfine\n\n## 1\nnobody\n")
    (tmp_path / "docs" / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "benchmarks" / "results" / "a.md").write_text("nobody\n")
    assert words.main([], tmp_path) == 0
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## 2\nnobody\n\n## 1\nfine\n")
    assert words.main([], tmp_path) == 1


def test_tests_may_use_pairs_but_not_the_first_four_words(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    file = tmp_path / "tests" / "test_a.py"
    file.write_text("# those that wait for anyone\n")
    assert words.main([], tmp_path) == 0
    file.write_text("def test_that_nobody_waits(): ...\n")
    assert words.main([], tmp_path) == 1
