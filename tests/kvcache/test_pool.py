"""BlockPool: no block is lost or owned twice."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headway.kvcache import BlockPool
from headway.kvcache.pool import OwnershipError

NONE_OWNED = np.zeros(0, dtype=np.int32)


def test_the_padding_block_is_never_handed_out() -> None:
    pool = BlockPool(4, 16)
    assert sorted(pool.take(3).tolist()) == [1, 2, 3]
    assert pool.num_available == 0


def test_free_blocks_go_before_cached_ones() -> None:
    pool = BlockPool(6, 16)
    first = pool.take(2)
    pool.keep([int(first[0])])
    pool.release(first)
    assert pool.counts == (4, 1, 0)
    assert first[0] not in pool.take(4)
    assert pool.take(1).tolist() == [first[0]]


def test_the_end_of_a_sequence_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(4, 16)
    evicted: list[int] = []
    pool.on_evict = lambda blocks: evicted.extend(blocks.tolist())
    sequence = pool.take(3)
    for block in sequence.tolist():
        pool.keep([block])
    pool.release(sequence)
    pool.take(3)
    assert evicted == sequence[::-1].tolist()


def test_a_shared_block_stays_until_its_last_owner_lets_go() -> None:
    pool = BlockPool(4, 16)
    blocks = pool.take(2)
    pool.share(blocks)
    pool.release(blocks)
    assert pool.counts.referenced == 2
    pool.release(blocks)
    assert pool.counts == (3, 0, 0)


def test_dropping_the_cache_frees_idle_blocks_at_once_and_others_on_release() -> None:
    pool = BlockPool(5, 16)
    idle, busy = pool.take(1), pool.take(1)
    for block in (*idle.tolist(), *busy.tolist()):
        pool.keep([block])
    pool.release(idle)
    pool.drop_cached()
    assert pool.counts == (3, 0, 1)
    pool.release(busy)
    assert pool.counts == (4, 0, 0)
    assert pool.problems(NONE_OWNED) == []


def test_an_owner_who_holds_more_than_was_counted_is_found_out() -> None:
    pool = BlockPool(4, 16)
    pool.take(2)
    pool.check(2)
    with pytest.raises(OwnershipError, match="2 references counted, 3 held"):
        pool.check(3)


def test_the_audit_names_a_block_with_a_wrong_count() -> None:
    pool = BlockPool(4, 16)
    blocks = pool.take(2)
    assert f"block {blocks[1]} has 1 references, its owners hold 0" in texts(pool, blocks[:1])


def test_the_audit_finds_a_block_that_is_in_two_states() -> None:
    pool = BlockPool(4, 16)
    pool._free[0] = pool._free[1]
    assert {"block 2 is in 2 states instead of one", "block 3 is in 0 states instead of one"} == set(texts(pool))


def test_the_audit_finds_an_evictable_block_without_contents() -> None:
    pool = BlockPool(4, 16)
    blocks = pool.take(1)
    pool.keep([int(blocks[0])])
    pool.release(blocks)
    pool._cached[:] = False
    assert texts(pool) == [f"block {blocks[0]} is evictable and not cached"] == [pool.problem_of(int(blocks[0]))]


def test_a_look_at_one_block_sees_what_contradicts_itself() -> None:
    pool = BlockPool(4, 16)
    (one, other) = pool.take(2).tolist()
    assert pool.problem_of(one) is None
    pool.keep([one])
    pool.release(np.array([one], np.int32))
    assert pool.problem_of(one) is None
    pool._references[one] = 2
    assert pool.problem_of(one) == f"block {one} is evictable and has 2 references"
    pool._references[other] = -1
    assert pool.problem_of(other) == f"block {other} was released 1 times too often"


def test_only_unshared_blocks_come_free_with_one_owner() -> None:
    pool = BlockPool(6, 16)
    blocks = pool.take(3)
    pool.share(blocks[:1])
    assert pool.num_exclusive(blocks) == 2
    assert [pool.num_references_to(block) for block in blocks.tolist()] == [2, 1, 1]


def texts(pool: BlockPool, owned: np.ndarray = NONE_OWNED) -> list[str]:
    """What a full check of a pool finds."""
    return [problem.text for problem in pool.problems(owned)]


class PoolMachine(RuleBasedStateMachine):
    """Owners take, share, keep and release; a plain count of references must agree."""

    SIZE = 12

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.SIZE, 16)
        self.cached: set[int] = set()
        self.pool.on_evict = self.evicted
        self.owners: list[list[int]] = []

    def evicted(self, blocks: np.ndarray) -> None:
        for block in blocks.tolist():
            self.cached.remove(block)  # fails if it was not cached

    def held(self) -> Counter[int]:
        return Counter(block for owner in self.owners for block in owner)

    @rule(count=st.integers(0, SIZE))
    def take(self, count: int) -> None:
        count = min(count, self.pool.num_available)
        blocks = self.pool.take(count).tolist()
        assert len(set(blocks)) == count and 0 not in blocks
        assert not set(blocks) & set(self.held())
        self.owners.append(blocks)

    @precondition(lambda self: self.cached)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.cached)), unique=True, min_size=1))
        idle = [block for block in chosen if not self.held()[block]]
        assert self.pool.num_idle(np.array(chosen, dtype=np.int32)) == len(idle)
        self.pool.share(np.array(chosen, dtype=np.int32))
        self.owners.append(chosen)

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.held())))
        self.pool.keep([block])
        self.cached.add(block)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        owner = self.owners.pop(data.draw(st.integers(0, len(self.owners) - 1)))
        self.pool.release(np.array(owner, dtype=np.int32))

    @rule()
    def drop_cached(self) -> None:
        self.pool.drop_cached()
        self.cached.clear()

    @invariant()
    def nothing_is_lost(self) -> None:
        held = self.held()
        owned = np.array([block for owner in self.owners for block in owner], dtype=np.int32)
        assert self.pool.problems(owned) == []
        idle_cached = len(self.cached - set(held))
        assert self.pool.counts == (self.SIZE - 1 - len(held) - idle_cached, idle_cached, len(held))


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(stateful_step_count=40)
