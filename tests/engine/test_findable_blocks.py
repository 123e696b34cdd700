"""FindableBlocks: what the core tells in its own names is, in digests, exactly what lookups find."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from headway.engine.findable_blocks import AllRemoved, BlocksRemoved, BlocksStored, Change, FindableBlocks
from headway.kvcache import BlockPool, KVEvent, PrefixCache, media_keys
from headway.kvcache.node import parse_node
from headway.scheduler import Effects
from headway.simulation.events import Event
from headway.simulation.faults import Faults
from headway.simulation.movements import Movements
from headway.simulation.setting import Setting
from headway.simulation.siblings import Siblings
from headway.simulation.simulation import Simulation

SIZE = 4
ROOT = PrefixCache.root(None)
PROMPT = np.arange(16, dtype=np.int32).tobytes()


def digest(before: bytes, contents: bytes) -> bytes:
    return hashlib.blake2b(before + contents, digest_size=32, person=b"headway.kv.1").digest()


def findable(prefix: PrefixCache) -> set[bytes]:
    """The digests of all blocks that a lookup can reach and that hold KV, read from the index itself."""
    size = prefix._pool.block_size
    contents: dict[int, tuple[bytes, bytes, int]] = {}  # node id -> where it continues, its tokens, its block
    for key, first in prefix._index.items():
        node, tokens = key[: -4 * size], key[-4 * size :]
        run = prefix._runs[first]
        if run is None:
            contents[int.from_bytes(prefix._nodes[first], "little")] = (node, tokens, first)
            continue
        for i, block in enumerate(run.blocks):
            contents[run.first_id + i] = (node, run.tokens[i * 4 * size : (i + 1) * 4 * size], block)
            node = (run.first_id + i).to_bytes(8, "little")
    known: dict[int, bytes | None] = {}
    for node_id in sorted(contents):  # a node is named after its parent
        node, tokens, block = contents[node_id]
        parent, root, extra = parse_node(node)
        before = digest(b"", size.to_bytes(8, "little") + root) if root else known.get(parent)
        found = before is not None and not prefix._pool.pending[block]
        known[node_id] = digest(before, extra + tokens) if found and before is not None else None
    return {one for one in known.values() if one is not None}


class Router:
    """A subscriber: the digests that it believes in."""

    def __init__(self, block_size: int) -> None:
        self.blocks = FindableBlocks(block_size)
        self.believed: set[bytes] = set()
        self.seen: Counter[type] = Counter()

    def take(self, events: list[KVEvent]) -> None:
        for change in self.blocks.apply(events):
            self.seen[type(change)] += 1
            if isinstance(change, BlocksStored):
                assert change.parent is None or change.parent in self.believed, "told before its parent"
                assert len(change.tokens) == len(change.digests) * 4 * self.blocks._block_size
                assert not self.believed & set(change.digests), "told twice"
                self.believed |= set(change.digests)
            elif isinstance(change, BlocksRemoved):
                assert self.believed >= set(change.digests), "removed, but never told"
                self.believed -= set(change.digests)
            else:
                self.believed.clear()


COURSES = {
    "mixed": (Setting.of_seed, Faults),
    "siblings": (Setting.of_siblings, Siblings),
    "transfers": (Setting.of_transfers, Movements),
}


@pytest.mark.parametrize("traffic", COURSES)
def test_the_events_of_any_run_add_up_to_what_lookups_find(traffic: str) -> None:
    of_seed, faults = COURSES[traffic]
    seen: Counter[type] = Counter()
    for seed in range(8):
        drawn = of_seed(seed)
        config = replace(drawn.config, enable_prefix_caching=True, keeps_kv_events=True)
        simulation = Simulation(replace(drawn, config=config, audits=False))
        router = Router(config.block_size)
        tell = simulation.core._after

        def after(effects: Effects, router: Router = router, simulation: Simulation = simulation, tell=tell) -> None:
            router.take(effects.kv_events)
            prefix = simulation.core.scheduler._state.prefix
            assert router.believed == findable(prefix), f"{simulation.num_events} events of {simulation.setting}"
            tell(effects)

        simulation.core._after = after
        draw = faults(seed, simulation).draw
        for _ in range(400):
            simulation.happen(draw())
        simulation.happen(Event("clear"))
        assert not router.believed
        assert len(router.blocks) == 0
        seen += router.seen
    assert seen[BlocksStored] > 100 and seen[BlocksRemoved] > 20 and seen[AllRemoved] >= 6


def test_a_cache_that_is_not_asked_for_events_keeps_none() -> None:
    pool = BlockPool(8, SIZE)
    prefix = PrefixCache(pool)
    prefix.publish(ROOT, PROMPT, pool.take(4).tolist())
    prefix.clear()
    assert prefix.take_events() == []


class Cache:
    """A cache and who follows it."""

    def __init__(self, num_blocks: int = 12, block_size: int = SIZE) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.prefix = PrefixCache(self.pool, keeps_events=True)
        self.blocks = FindableBlocks(block_size)

    def changes(self) -> list[Change]:
        return self.blocks.apply(self.prefix.take_events())


def test_consecutive_blocks_are_one_record_with_their_parent_and_tokens() -> None:
    cache = Cache()
    node = cache.prefix.publish(ROOT, PROMPT[:32], cache.pool.take(2).tolist())
    (first,) = cache.changes()
    assert isinstance(first, BlocksStored)
    assert (len(first.digests), first.parent, first.tokens) == (2, None, PROMPT[:32])
    cache.prefix.publish(node, PROMPT[32:], cache.pool.take(2).tolist())
    (second,) = cache.changes()
    assert isinstance(second, BlocksStored)
    assert (second.parent, second.tokens) == (first.digests[1], PROMPT[32:])


def test_a_block_of_a_step_in_flight_is_told_when_the_step_has_succeeded() -> None:
    cache = Cache()
    good, bad = cache.pool.take(1), cache.pool.take(1)
    node = cache.prefix.publish(ROOT, PROMPT[:16], good.tolist(), step_id=1)
    cache.prefix.publish(node, PROMPT[16:32], bad.tolist(), step_id=2)
    assert cache.changes() == []
    cache.pool.settle(good)
    (stored,) = cache.changes()
    assert isinstance(stored, BlocksStored) and stored.tokens == PROMPT[:16]
    cache.pool.withdraw(bad)
    assert cache.changes() == []


def test_with_a_block_go_the_blocks_that_continue_it_and_they_come_back_under_equal_digests() -> None:
    cache = Cache(num_blocks=6)
    parent, child = cache.pool.take(1), cache.pool.take(1)
    node = cache.prefix.publish(ROOT, PROMPT[:16], parent.tolist())
    cache.prefix.publish(node, PROMPT[16:32], child.tolist())
    told = [one for change in cache.changes() if isinstance(change, BlocksStored) for one in change.digests]
    cache.pool.release(parent)  # the child is still held
    taken = cache.pool.take(4)
    assert cache.changes() == [BlocksRemoved(tuple(told))]
    again = cache.prefix.publish(ROOT, PROMPT[:16], taken[:1].tolist())
    cache.prefix.publish(again, PROMPT[16:32], taken[1:2].tolist())
    assert [one for change in cache.changes() for one in change.digests] == told  # type: ignore[union-attr]
    cache.pool.release(child)  # the old child leaves: the new one stays
    cache.pool.take(1)
    assert cache.changes() == []


def test_equal_prefixes_have_equal_digests_in_engines_that_computed_them_in_other_pieces() -> None:
    whole, pieces = Cache(), Cache()
    whole.prefix.publish(ROOT, PROMPT, whole.pool.take(4).tolist())
    node = pieces.prefix.publish(pieces.prefix.root("other"), PROMPT, pieces.pool.take(4).tolist())
    node = ROOT
    for i in range(4):
        (node,) = pieces.prefix.publish_each([node], PROMPT[16 * i : 16 * i + 16], pieces.pool.take(1).tolist())
    (one,) = whole.changes()
    others = pieces.changes()[1:]
    assert isinstance(one, BlocksStored)
    assert one.digests == tuple(change.digests[0] for change in others if isinstance(change, BlocksStored))


def test_equal_prefixes_have_equal_digests_in_another_process() -> None:
    code = (
        "import numpy as np\n"
        "from tests.engine.test_findable_blocks import *\n"
        "cache = Cache()\n"
        "cache.prefix.publish(ROOT, PROMPT, cache.pool.take(4).tolist())\n"
        "print(cache.changes()[0].digests[-1].hex())\n"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    cache = Cache()
    cache.prefix.publish(ROOT, PROMPT, cache.pool.take(4).tolist())
    (stored,) = cache.changes()
    assert isinstance(stored, BlocksStored)
    assert told.stdout == stored.digests[-1].hex() + "\n"


def test_salt_media_block_size_and_all_that_comes_before_change_a_digest() -> None:
    digests = []
    for salt, media, size, prompt in (
        (None, b"", 4, PROMPT),
        ("a", b"", 4, PROMPT),
        ("b", b"", 4, PROMPT),
        ("", b"", 4, PROMPT),
        (None, b"cat", 4, PROMPT),
        (None, b"dog", 4, PROMPT),
        (None, b"", 8, PROMPT),
        (None, b"", 4, PROMPT[:-4] + b"\1\0\0\0"),
        (None, b"", 4, b"\1\0\0\0" + PROMPT[4:]),
    ):
        cache = Cache(block_size=size)
        extras = media_keys([(5, 2, media)], size) if media else {}
        node = cache.prefix.root(salt) + extras.get(0, b"")
        cache.prefix.publish(node, prompt, cache.pool.take(len(prompt) // 4 // size).tolist(), extras)
        changes = cache.changes()
        assert isinstance(changes[-1], BlocksStored)
        digests.append(changes[-1].digests[-1])
    assert len(set(digests)) == len(digests)


def test_salt_and_media_are_told_with_the_block_that_holds_them() -> None:
    cache = Cache()
    extras = media_keys([(5, 2, b"cat")], SIZE)
    cache.prefix.publish(cache.prefix.root("a"), PROMPT[:48], cache.pool.take(3).tolist(), extras)
    told = [extra for change in cache.changes() if isinstance(change, BlocksStored) for extra in change.extras]
    assert told == [("a",), (extras[1],), ()]


def test_what_continues_forgotten_blocks_is_not_told() -> None:
    cache = Cache()
    node = cache.prefix.publish(ROOT, PROMPT[:16], cache.pool.take(1).tolist())
    cache.changes()
    assert cache.blocks.forget() == AllRemoved()
    cache.prefix.publish(node, PROMPT[16:32], cache.pool.take(1).tolist())
    assert cache.changes() == []
