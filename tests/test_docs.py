"""The documentation says what is so: its links lead somewhere, its examples run, its references are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import reference

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
PROGRAM = re.compile(r"<!-- run -->\n```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_to_a_file(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_every_page_has_a_place_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    left_out = [page for page in pages if f": {page}\n" not in site and not page.startswith("benchmarks/")]
    assert not left_out


def test_the_program_of_the_quickstart_prints_the_sums(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = PROGRAM.findall((ROOT / "docs/quickstart.md").read_text(encoding="utf-8"))
    exec(compile(program, "quickstart", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.split() == ["46", "15"]


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_reference_is_what_the_code_says(name: str) -> None:
    written = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert reference.PAGES[name]() == written, "run tools/reference.py --write"


def test_a_page_that_differs_from_the_code_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    monkeypatch.setattr(reference, "PAGES", {"a.md": lambda: "new\n", "b.md": lambda: "same\n"})
    (tmp_path / "a.md").write_text("old\n")
    (tmp_path / "b.md").write_text("same\n")
    assert reference.main([]) == 1
    assert "a.md" in capsys.readouterr().out
    assert reference.main(["--write"]) == 0
    assert reference.main([]) == 0
