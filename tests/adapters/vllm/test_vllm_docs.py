"""docs/vllm.md lists what vLLM's adapter refuses, all of it, in the words of its messages."""

from pathlib import Path

import pytest

from headway.adapters.vllm import refusals

PAGE = (Path(__file__).parents[3] / "docs" / "vllm.md").read_text()


def list_after(comment: str) -> list[str]:
    """The points of the list that follows a comment."""
    _, found, rest = PAGE.partition(f"<!-- {comment}:")
    assert found, comment
    points, _, _ = rest.partition("-->\n")[2].partition("\n\n")
    return [point.removeprefix("- ") for point in points.splitlines()]


def test_the_page_lists_what_the_engine_refuses() -> None:
    wanted = [str(refusal) for refusal in refusals.ENGINE_REFUSALS] + list(refusals.KV_CACHE_REFUSALS)
    assert list_after("refusals of the engine") == wanted


def test_the_page_lists_what_a_request_may_not_have() -> None:
    assert list_after("refusals of requests") == list(refusals.REQUEST_REFUSALS)


def test_the_adapter_is_found_where_there_is_no_vllm_but_its_scheduler_is_not() -> None:
    import headway.adapters.vllm as adapter

    with pytest.raises(ModuleNotFoundError, match="vllm"):
        _ = adapter.HeadwayScheduler
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = adapter.Nothing
