"""EvictionQueue: first released, first given up, wherever blocks are taken out in between."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.kvcache.eviction import EvictionQueue
from tests.examples import examples


def blocks(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def test_blocks_leave_in_the_order_they_came() -> None:
    queue = EvictionQueue(8)
    queue.push(blocks(5, 3))
    queue.push(blocks(7))
    assert queue.pop(2).tolist() == [5, 3]
    assert queue.pop(1).tolist() == [7]


def test_a_removed_block_that_comes_back_stands_at_the_end() -> None:
    queue = EvictionQueue(8)
    queue.push(blocks(1, 2, 3))
    queue.remove(blocks(1))
    queue.push(blocks(1))
    assert queue.pop(3).tolist() == [2, 3, 1]


def test_many_stale_entries_before_the_live_ones_are_stepped_over() -> None:
    queue = EvictionQueue(1024)
    queue.push(np.arange(1000, dtype=np.int32))
    queue.remove(np.arange(990, dtype=np.int32))
    assert queue.pop(10).tolist() == list(range(990, 1000))


@examples(2)
@given(st.lists(st.tuples(st.sampled_from(["push", "remove", "pop"]), st.integers(1, 6)), max_size=80), st.randoms())
def test_it_behaves_like_an_ordered_set(moves: list[tuple[str, int]], random: object) -> None:
    size = 8  # small, so that the line is squeezed often
    queue, model = EvictionQueue(size), []  # type: ignore[var-annotated]
    for move, count in moves:
        if move == "push":
            chosen = [b for b in range(size) if b not in model][:count]
            random.shuffle(chosen)  # type: ignore[attr-defined]
            queue.push(blocks(*chosen))
            model += chosen
        elif move == "remove":
            chosen = random.sample(model, min(count, len(model)))  # type: ignore[attr-defined]
            queue.remove(blocks(*chosen))
            model = [b for b in model if b not in chosen]
        else:
            count = min(count, len(model))
            assert queue.pop(count).tolist() == model[:count]
            model = model[count:]
        assert len(queue) == len(model)
        assert queue.blocks().tolist() == model


def test_entries_are_looked_through_only_while_some_are_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, looks = EvictionQueue(8), []  # type: ignore[var-annotated]
    all_live = queue._all_live
    monkeypatch.setattr(queue, "_all_live", lambda head: looks.append(len(head)) or all_live(head))
    queue.push(blocks(5, 3, 7, 1))
    assert queue.pop(2).tolist() == [5, 3] and not looks
    queue.remove(blocks(1))
    assert queue.pop(1).tolist() == [7] and looks == [1]
