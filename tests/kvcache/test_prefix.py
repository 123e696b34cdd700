"""PrefixCache: a hit is a proof."""

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headway.kvcache import BlockPool, PrefixCache
from headway.kvcache.lazy import lazy_zeros
from headway.kvcache.media import media_keys
from tests.examples import examples

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
    assert prefix.clear() == 2
    assert prefix.clear() == 0
    assert len(prefix) == 0 and not len(prefix.match(tokens(*range(8)), 2, ROOT)[0])
    pool.release(blocks)
    assert pool.counts.evictable == 0


def test_what_continues_an_orphan_is_kept_but_never_found() -> None:
    pool, prefix = cache()
    first = prefix.publish(ROOT, tokens(1, 1, 1, 1), pool.take(1).tolist())
    orphans = [prefix.orphan(), prefix.orphan()]
    last = prefix.publish(ROOT, tokens(2, 2, 2, 2), pool.take(1).tolist())
    assert len({first, *orphans, last}) == 4
    for orphan in orphans:
        child = prefix.publish(orphan, tokens(3, 3, 3, 3), pool.take(1).tolist())
        prefix.publish(child, tokens(4, 4, 4, 4), pool.take(1).tolist())
    assert len(prefix) == 6
    for start in (1, 2, 3):
        assert len(prefix.match(tokens(*[start] * 4, 3, 3, 3, 3, 4, 4, 4, 4), 3, ROOT)[0]) == (start < 3)


# -- media ----------------------------------------------------------------------------------------------------------

PLACEHOLDERS = tokens(*[0] * 20)


def matched(prefix: PrefixCache, *spans: tuple[int, int, bytes]) -> int:
    return len(prefix.match(PLACEHOLDERS, 5, ROOT, media_keys(spans, SIZE))[0])


def publish_with(prefix: PrefixCache, pool: BlockPool, *spans: tuple[int, int, bytes]) -> None:
    extras = media_keys(spans, SIZE)
    prefix.publish(ROOT + extras.get(0, b""), PLACEHOLDERS, pool.take(5).tolist(), extras)


def test_equal_tokens_that_show_something_else_are_other_blocks() -> None:
    pool, prefix = cache()
    publish_with(prefix, pool, (6, 8, b"cat"))
    assert matched(prefix, (6, 8, b"cat")) == 5
    for other in ((6, 8, b"dog"), (6, 7, b"cat"), (7, 8, b"cat"), (5, 8, b"cat")):
        assert matched(prefix, other) == 1, other
    assert matched(prefix) == 1
    assert matched(prefix, (10, 8, b"cat")) == 1  # a block later
    assert matched(prefix, (6, 8, b"cat"), (16, 1, b"cat")) == 4


def test_media_in_the_first_block_are_told_apart_too() -> None:
    pool, prefix = cache()
    publish_with(prefix, pool, (0, 2, b"cat"), (2, 2, b"dog"))
    assert matched(prefix, (0, 2, b"cat"), (2, 2, b"dog")) == 5
    assert matched(prefix, (0, 2, b"dog"), (2, 2, b"cat")) == 0
    assert matched(prefix, (0, 2, b"cow"), (2, 2, b"dog")) == 0
    assert matched(prefix, (0, 2, b"cat")) == matched(prefix) == 0


def test_a_sequence_is_continued_where_its_last_step_or_its_match_left_it() -> None:
    pool, prefix = cache(num_blocks=20)
    extras = media_keys([(0, 3, b"a"), (9, 2, b"b"), (17, 3, b"c")], SIZE)
    node = ROOT + extras[0]
    assert prefix.match(PLACEHOLDERS, 5, ROOT, extras)[1] == node
    node = prefix.publish(node, PLACEHOLDERS[:32], pool.take(2).tolist(), extras, first=0)
    assert prefix.publish(node, b"", [], extras, first=2) == node
    found, again = prefix.match(PLACEHOLDERS, 5, ROOT, extras)
    assert len(found) == 2 and again == node
    node = prefix.publish(node, PLACEHOLDERS[32:64], pool.take(2).tolist(), extras, first=2)
    (end,) = prefix.publish_each([node], PLACEHOLDERS[64:], pool.take(1).tolist())  # filled by decodes
    found, again = prefix.match(PLACEHOLDERS, 5, ROOT, extras)
    assert len(found) == 5 and again == end


def test_no_digest_can_be_mistaken_for_another_and_the_span_behind_it() -> None:
    one, two = media_keys([(0, 1, b"a")], SIZE)[0], media_keys([(0, 1, b"a"), (1, 1, b"b")], SIZE)[0]
    assert two.startswith(one)
    assert media_keys([(0, 1, b"a" + two[len(one) :])], SIZE)[0] != two


def test_no_salt_can_be_mistaken_for_another_and_its_media() -> None:
    pool, prefix = cache(num_blocks=40)
    extras = media_keys([(0, 2, b"cat")], SIZE)
    plain = {"", "a", "a/b", extras[0].decode(), "a" + extras[0].decode(), "\0", "\1"}
    for salt in (None, *sorted(plain)):
        for media in ({}, extras):
            root = prefix.root(salt)
            found, node = prefix.match(PLACEHOLDERS, 1, root, media)
            assert not len(found)
            prefix.publish(node, PLACEHOLDERS[:16], pool.take(1).tolist(), media)


def test_only_blocks_in_which_media_start_carry_them() -> None:
    assert media_keys([(2, 9, b"a"), (12, 1, b"b"), (13, 2, b"c")], SIZE).keys() == {0, 3}
    assert media_keys([], SIZE) == {}


class Sequence(NamedTuple):
    salt: str | None
    values: list[int]
    spans: list[tuple[int, int, bytes]]

    def blocks(self) -> list[tuple[object, ...]]:
        """What each block holds, place by place: the token, and which place of what it shows."""
        shown = {start + i: (digest, length, i) for start, length, digest in self.spans for i in range(length)}
        places = [(self.salt, value, shown.get(i)) for i, value in enumerate(self.values)]
        return [tuple(places[i : i + SIZE]) for i in range(0, len(places), SIZE)]


@st.composite
def sequences(draw: st.DrawFn) -> Sequence:
    # Few tokens and digests, and salts and digests that look like parts of keys.
    length = SIZE * draw(st.integers(1, 4))
    values = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
    spans, place = [], 0
    number = (1).to_bytes(8, "little")
    digest = st.one_of(
        st.sampled_from([b"", b"x", number, number * 3, bytes(8), tokens(0, 0, 0, 0)]), st.binary(max_size=9)
    )
    for _ in range(draw(st.integers(0, 3))):
        start, extent = place + draw(st.integers(0, 5)), draw(st.integers(1, 6))
        if start + extent > length:
            break
        spans.append((start, extent, draw(digest)))
        place = start + extent
    salts = [None, "", "x", *(key.decode() for key in media_keys(spans, SIZE).values() if key.isascii())]
    return Sequence(draw(st.sampled_from(salts)), values, spans)


@given(st.lists(sequences(), min_size=2, max_size=8))
@examples(3)
def test_exactly_the_blocks_of_equal_tokens_media_and_salt_are_found(given_: list[Sequence]) -> None:
    pool, prefix = cache(num_blocks=40)
    published: list[list[tuple[object, ...]]] = []
    for sequence in given_:
        blocks, contents = sequence.blocks(), tokens(*sequence.values)
        extras, root = media_keys(sequence.spans, SIZE), prefix.root(sequence.salt)
        known = max(
            (n for n in range(len(blocks) + 1) if any(blocks[:n] == other[:n] for other in published)), default=0
        )
        found, node = prefix.match(contents, len(blocks), root, extras)
        assert len(found) == known
        rest = pool.take(len(blocks) - known).tolist()
        prefix.publish(node, contents[known * SIZE * 4 :], rest, extras, first=known)
        published.append(blocks)
        assert len(prefix) == len({tuple(other[: n + 1]) for other in published for n in range(len(other))})


def test_an_untouched_table_costs_no_memory() -> None:
    def resident_bytes() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    before = resident_bytes()
    table = lazy_zeros((4096, 32768), np.int32)  # 512 MiB
    table[:, 0] = 1
    assert table[17, 0] == 1 and table[17, 1] == 0
    assert resident_bytes() - before < 64 << 20
