"""PrefixCache: a hit is a proof."""

import numpy as np

from headway.kvcache import BlockPool, PrefixCache
from headway.kvcache.lazy import lazy_zeros

SIZE = 4
ROOT = PrefixCache.root(None)


def tokens(*values: int) -> bytes:
    return np.array(values, dtype=np.int32).tobytes()


def cache(num_blocks: int = 10) -> tuple[BlockPool, PrefixCache]:
    pool = BlockPool(num_blocks, SIZE)
    return pool, PrefixCache(pool)


def test_a_published_sequence_is_found_up_to_where_it_differs() -> None:
    pool, prefix = cache()
    blocks = pool.take(2)
    prefix.publish(ROOT, tokens(1, 2, 3, 4, 5, 6, 7, 8), blocks.tolist())
    found, _ = prefix.match(tokens(1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9), 3, ROOT)
    assert found.tolist() == blocks.tolist()
    found, _ = prefix.match(tokens(1, 2, 3, 4, 5, 6, 7, 9), 2, ROOT)
    assert found.tolist() == blocks[:1].tolist()
    found, node = prefix.match(tokens(9, 2, 3, 4), 1, ROOT)
    assert found.tolist() == [] and node == ROOT


def test_no_more_blocks_are_matched_than_asked_for() -> None:
    pool, prefix = cache()
    prefix.publish(ROOT, tokens(*range(8)), pool.take(2).tolist())
    assert len(prefix.match(tokens(*range(8)), 1, ROOT)[0]) == 1


def test_the_same_block_of_tokens_after_another_prefix_is_another_block() -> None:
    pool, prefix = cache()
    a, b = pool.take(2), pool.take(2)
    prefix.publish(ROOT, tokens(1, 1, 1, 1, 7, 7, 7, 7), a.tolist())
    prefix.publish(ROOT, tokens(2, 2, 2, 2, 7, 7, 7, 7), b.tolist())
    assert prefix.match(tokens(2, 2, 2, 2, 7, 7, 7, 7), 2, ROOT)[0].tolist() == b.tolist()


def test_salts_share_nothing() -> None:
    pool, prefix = cache()
    prefix.publish(prefix.root("a"), tokens(1, 2, 3, 4), pool.take(1).tolist())
    for salt in (None, "b", "", "a/"):
        assert not len(prefix.match(tokens(1, 2, 3, 4), 1, prefix.root(salt))[0])
    assert len(prefix.match(tokens(1, 2, 3, 4), 1, prefix.root("a"))[0]) == 1


def test_of_two_equal_sequences_the_first_published_is_found_and_both_continue_alike() -> None:
    pool, prefix = cache()
    first, second, child = (pool.take(1).tolist() for _ in range(3))
    node = prefix.publish(ROOT, tokens(1, 2, 3, 4), first)
    assert prefix.publish(ROOT, tokens(1, 2, 3, 4), second) == node
    prefix.publish(node, tokens(5, 6, 7, 8), child)
    assert prefix.match(tokens(1, 2, 3, 4, 5, 6, 7, 8), 2, ROOT)[0].tolist() == first + child
    assert len(prefix) == 2


def test_one_block_of_each_of_several_sequences_is_published_at_once() -> None:
    pool, prefix = cache()
    parent = prefix.publish(ROOT, tokens(1, 1, 1, 1), pool.take(1).tolist())
    blocks = pool.take(2).tolist()
    nodes = prefix.publish_each([parent, ROOT], tokens(2, 2, 2, 2, 3, 3, 3, 3), blocks)
    assert prefix.match(tokens(1, 1, 1, 1, 2, 2, 2, 2), 2, ROOT)[0].tolist()[1:] == blocks[:1]
    found, node = prefix.match(tokens(3, 3, 3, 3), 1, ROOT)
    assert found.tolist() == blocks[1:] and node == nodes[1]


def test_an_evicted_block_is_no_longer_found_nor_are_its_children() -> None:
    pool, prefix = cache(num_blocks=4)
    blocks = pool.take(3)
    contents = tokens(*range(12))
    prefix.publish(ROOT, contents, blocks.tolist())
    pool.release(blocks)
    pool.take(1)  # the last of the sequence goes first
    assert prefix.match(contents, 3, ROOT)[0].tolist() == blocks[:2].tolist()
    pool.take(2)
    assert not len(prefix.match(contents, 3, ROOT)[0]) and len(prefix) == 0


def test_a_sequence_computed_again_does_not_revive_the_children_of_its_former_self() -> None:
    pool, prefix = cache()
    parent, child = pool.take(1), pool.take(1)
    node = prefix.publish(ROOT, tokens(1, 1, 1, 1), parent.tolist())
    prefix.publish(node, tokens(2, 2, 2, 2), child.tolist())
    pool.release(parent)
    pool.take(pool.num_available)  # evicts the parent, while the child is in use
    pool.release(child)
    again = pool.take(1)
    prefix.publish(ROOT, tokens(1, 1, 1, 1), again.tolist())
    assert prefix.match(tokens(1, 1, 1, 1, 2, 2, 2, 2), 2, ROOT)[0].tolist() == again.tolist()


def test_clear_forgets_everything() -> None:
    pool, prefix = cache()
    blocks = pool.take(2)
    prefix.publish(ROOT, tokens(*range(8)), blocks.tolist())
    prefix.clear()
    assert len(prefix) == 0 and not len(prefix.match(tokens(*range(8)), 2, ROOT)[0])
    pool.release(blocks)
    assert pool.counts.evictable == 0


def test_an_untouched_table_costs_no_memory() -> None:
    def resident_bytes() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    before = resident_bytes()
    table = lazy_zeros((4096, 32768), np.int32)  # 512 MiB
    table[:, 0] = 1
    assert table[17, 0] == 1 and table[17, 1] == 0
    assert resident_bytes() - before < 64 << 20
