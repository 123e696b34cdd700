"""CachedBlocks: news in order, gaps, and what is not believed."""

from __future__ import annotations

from typing import Any

from headway.client.cached_blocks import ASK_SECONDS, CachedBlocks
from headway.wire.to_client import CacheNews

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))


class Rig:
    def __init__(self, most: int = 100) -> None:
        self.now = 0.0
        self.asked = 0
        self.told: list[Any] = []
        self.blocks = CachedBlocks(self._ask, self._learn, self._forget, most, clock=lambda: self.now)

    def _ask(self) -> None:
        self.asked += 1

    def _learn(self, digests: list[bytes]) -> None:
        self.told.append(("+", *digests))

    def _forget(self, digests: list[bytes] | None) -> None:
        self.told.append(("-",) if digests is None else ("-", *digests))

    def take(self, *news: Any) -> list[Any]:
        self.told = []
        self.blocks.take(CacheNews(*news))
        return self.told


def test_news_are_passed_on_in_order() -> None:
    rig = Rig()
    assert rig.take(5, True, A) == [("-",), ("+", A)]
    assert rig.take(6, False, B + C, A) == [("+", B, C), ("-", A)]
    assert rig.asked == 1


def test_news_before_the_answer_are_ignored_and_the_engine_is_asked_again_after_a_while() -> None:
    rig = Rig()
    assert rig.take(5, False, A) == [] and rig.asked == 1
    rig.now = ASK_SECONDS + 1
    assert rig.take(6, False, A) == [] and rig.asked == 2


def test_a_gap_forgets_everything() -> None:
    rig = Rig()
    rig.take(5, True, A)
    assert rig.take(7, False, B) == [("-",)] and rig.asked == 2
    assert rig.take(8, False, C) == []
    assert rig.take(9, True, A) == [("-",), ("+", A)]
    assert rig.take(10, False, B) == [("+", B)]


def test_an_engine_that_says_more_than_it_can_hold_is_not_believed_any_more() -> None:
    rig = Rig(most=2)
    rig.take(0, True, A + B)
    assert rig.take(1, False, C) == [("-",)]
    rig.now = 1e9
    assert rig.take(2, False, A) == [] and rig.asked == 1
