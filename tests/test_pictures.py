"""The pictures of the documentation, as `tools/pictures.py` makes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import pictures

PAGES = {"bench-serve.png": "benchmarks.md", "top.svg": "watch.md"}


@pytest.mark.parametrize(("name", "page"), PAGES.items())
def test_a_picture_is_small_and_shown_by_its_page(name: str, page: str) -> None:
    assert 0 < (pictures.IMAGES / name).stat().st_size <= pictures.MOST_BYTES
    assert f"../images/{name})" in (pictures.IMAGES.parent / "how-to" / page).read_text()


def test_a_screen_makes_no_browser_ask_another_host() -> None:
    for text in (pictures.SVG, (pictures.IMAGES / "top.svg").read_text()):
        assert "@font-face" not in text and not re.search(r"(url|href|src)\W+https?:", text)


def test_every_picture_is_made_by_the_tool() -> None:
    assert sorted(PAGES) == sorted(path.name for path in Path(pictures.IMAGES).iterdir())
