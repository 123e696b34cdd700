"""docs/vllm-flags.md."""

from __future__ import annotations

from tools import vllm_flags_page


def test_the_page_of_flags_is_what_the_table_says() -> None:
    assert vllm_flags_page.FILE.read_text() == vllm_flags_page.page(), "run tools/vllm_flags_page.py"
