"""PrefixCache under owners who come and go in a small pool: runs are split, shared, and evicted piece by piece."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headway.kvcache import BlockPool, PrefixCache
from tests.examples import examples

SIZE = 4
ROOT = PrefixCache.root(None)
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple)  # a number for each block


def contents(prompt: tuple[int, ...]) -> bytes:
    return np.repeat(np.array(prompt, dtype=np.int32), SIZE).tobytes()


class PrefixMachine(RuleBasedStateMachine):
    """What is found holds what was asked for, and nothing that the index has would continue it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(14, SIZE)
        self.prefix = PrefixCache(self.pool)
        self.held: list[tuple[tuple[int, ...], list[int]]] = []  # prompts and their blocks
        self.holds: dict[int, tuple[int, ...]] = {}  # block -> the prompt up to its end, as last written

    @rule(prompt=PROMPTS, max_blocks=st.integers(0, 6), pieces=st.integers(1, 3))
    def compute(self, prompt: tuple[int, ...], max_blocks: int, pieces: int) -> None:
        found, node = self.prefix.match(contents(prompt), min(max_blocks, len(prompt)), ROOT)
        missing = len(prompt) - len(found)
        idle = self.pool.num_idle(found)
        if missing + idle > self.pool.num_available:
            return
        self.pool.share(found)
        new = self.pool.take(missing).tolist()
        for i, block in enumerate(new, start=len(found) + 1):
            self.holds[block] = prompt[:i]
        step = -(-missing // pieces) or 1
        for first in range(0, missing, step):
            part = prompt[len(found) + first :][:step]
            node = self.prefix.publish(node, contents(part), new[first : first + step])
        self.held.append((prompt, [*found.tolist(), *new]))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        _, blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(np.array(blocks, dtype=np.int32))

    @rule(count=st.integers(1, 13))
    def evict(self, count: int) -> None:
        taken = self.pool.take(min(count, self.pool.num_available))
        for block in taken.tolist():
            self.holds.pop(block, None)
        self.pool.release(taken)

    @rule(prompt=PROMPTS)
    def look(self, prompt: tuple[int, ...]) -> None:
        found, node = self.prefix.match(contents(prompt), len(prompt), ROOT)
        for i, block in enumerate(found.tolist(), start=1):
            assert self.holds[block] == prompt[:i]
        more = contents(prompt[len(found) :])[: SIZE * 4]
        assert not more or node + more not in self.prefix

    @rule()
    def clear(self) -> None:
        assert self.prefix.clear() == self.num_cached_before
        assert len(self.prefix) == 0

    @invariant()
    def the_books_balance(self) -> None:
        self.num_cached_before = len(self.prefix)
        assert self.num_cached_before == np.count_nonzero(self.pool._cached)
        everything = np.array([block for _, blocks in self.held for block in blocks], dtype=np.int32)
        assert self.pool.problems(everything) == []


TestPrefixMachine = PrefixMachine.TestCase
TestPrefixMachine.settings = settings(examples(2), stateful_step_count=40)


def test_a_run_that_two_share_is_found_whole_until_the_first_of_its_blocks_goes() -> None:
    pool = BlockPool(8, SIZE)
    prefix = PrefixCache(pool)
    blocks = pool.take(5)
    prompt = (1, 2, 3, 4, 5)
    prefix.publish(ROOT, contents(prompt), blocks.tolist())
    found, node = prefix.match(contents((1, 2, 3, 9)), 4, ROOT)
    assert found.tolist() == blocks[:3].tolist()
    pool.share(found)
    child = pool.take(1)
    prefix.publish(node, contents((9,)), child.tolist())
    pool.release(blocks)
    pool.take(3)  # a free block, and the end of the run, which is not shared
    assert prefix.match(contents(prompt), 5, ROOT)[0].tolist() == blocks[:3].tolist()
    assert prefix.match(contents((1, 2, 3, 9)), 4, ROOT)[0].tolist() == [*blocks[:3], *child]


def test_one_that_computes_the_last_block_of_a_run_again_continues_the_run() -> None:
    """The last token of a prompt is always computed anew, and its block with it."""
    pool = BlockPool(9, SIZE)
    prefix = PrefixCache(pool)
    blocks = pool.take(3).tolist()
    prefix.publish(ROOT, contents((1, 2, 3)), blocks)
    _, node = prefix.match(contents((1, 2, 3)), 2, ROOT)
    node = prefix.publish(node, contents((3,)), pool.take(1).tolist())
    (output,) = pool.take(1).tolist()
    prefix.publish(node, contents((4,)), [output])
    assert prefix.match(contents((1, 2, 3, 4)), 4, ROOT)[0].tolist() == [*blocks, output]
    assert len(prefix) == 4


def test_blocks_of_a_run_that_go_out_of_order_are_not_found_and_the_rest_still_holds() -> None:
    for gone, found in ((0, 0), (1, 1), (3, 3)):
        pool = BlockPool(7, SIZE)
        prefix = PrefixCache(pool)
        blocks = pool.take(5)
        prefix.publish(ROOT, contents((1, 2, 3, 4, 5)), blocks.tolist())
        pool.release(blocks[gone : gone + 1])
        pool.release(np.delete(blocks, gone))
        pool.take(2)  # one that was free, and that one
        assert prefix.match(contents((1, 2, 3, 4, 5)), 5, ROOT)[0].tolist() == blocks[:found].tolist()
        assert len(prefix) == 4
        pool.take(4)
        assert len(prefix) == 0
