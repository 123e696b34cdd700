"""The blocks of the KV cache and the number of references to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.kvcache.eviction import EvictionQueue
from headway.kvcache.lazy import lazy_zeros

BlockIds = NDArray[np.int32]
BlockIndex = NDArray[np.intp]  # block ids as an index: numpy takes several times as long with one of int32

PADDING_BLOCK = 0
_SHOWN = 16  # the most blocks of one kind that a report lists; one wrong block rarely comes alone


class PoolCounts(NamedTuple):
    """Blocks by state. The sum is the size of the pool without the padding block."""

    free: int
    evictable: int
    referenced: int


class Problem(NamedTuple):
    """Something wrong with a block, or with the pool as a whole."""

    block: int | None
    text: str


class OwnershipError(AssertionError):
    """A block is lost, or owned twice. The state cannot be trusted any more: the engine must stop."""


def _nothing_cached(blocks: BlockIndex) -> None:
    """What a pool without a prefix cache calls: does nothing."""


def _index(blocks: Sequence[int] | BlockIds | BlockIndex) -> BlockIndex:
    return np.asarray(blocks, dtype=np.intp)


class BlockPool:
    """Hands out blocks and takes them back.

    A block is free (its contents are worthless), evictable (cached, without references) or referenced (a count).

        take      free, else evictable -> referenced      share     evictable or referenced -> referenced
        release   referenced -> free or evictable         keep      marks a referenced block as cached

    Free blocks are handed out first, so that no cached block is lost without need. Then follow evictable blocks, the
    least recently released first. Block 0 is padding: never handed out, never freed.

    tokens: int32 [num_blocks, block_size]; the tokens whose KV a block holds, of blocks that decodes have filled. The
        tokens of other blocks are known to the requests that refer to them.
    pending: int64 [num_blocks]; the step that is to fill a block which the prefix cache shows already, or 0. A pending
        block is referenced and not cached. With its last reference it loses its contents and becomes free. Negative:
        the cache was reset since, and shows the block no more; its owners still rely on that step.
    num_pending: pending blocks that the prefix cache shows.
    on_evict: called with the blocks that lose their cached or pending contents, before they are handed out.
    on_fill: called with the pending blocks that become cached.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.tokens: BlockIds = lazy_zeros((num_blocks, block_size), np.int32)
        self.on_evict: Callable[[BlockIndex], None] = _nothing_cached
        self.on_fill: Callable[[BlockIndex], None] = _nothing_cached
        self.num_references = 0  # sum of all counts, kept as we go; owners compare it with their own sum
        self._references = np.zeros(num_blocks, dtype=np.int32)
        self._cached = np.zeros(num_blocks, dtype=np.bool_)
        self.pending = lazy_zeros((num_blocks,), np.int64)
        self.num_pending = 0
        self._num_unfilled = 0  # pending blocks, shown or not
        self._free = np.arange(num_blocks - 1, 0, -1, dtype=np.intp)  # a stack; low ids are handed out first
        self._num_free = num_blocks - 1
        self._evictable = EvictionQueue(num_blocks)
        self._num_referenced = 0

    @property
    def num_available(self) -> int:
        """Blocks that can be taken now: free and evictable."""
        return self._num_free + len(self._evictable)

    @property
    def counts(self) -> PoolCounts:
        """Blocks by state, O(1)."""
        return PoolCounts(self._num_free, len(self._evictable), self._num_referenced)

    def take(self, count: int) -> BlockIds:
        """Hand out `count` blocks, int32 [count], each with one reference. At least `count` must be available."""
        from_free = min(count, self._num_free)
        self._num_free -= from_free
        blocks = self._free[self._num_free : self._num_free + from_free][::-1]
        if from_free < count:
            evicted = self._evictable.pop(count - from_free)
            self._cached[evicted] = False
            self.on_evict(evicted)
            blocks = np.concatenate((blocks, evicted)) if from_free else evicted
        self._references[blocks] = 1
        self._num_referenced += count
        self.num_references += count
        return blocks.astype(np.int32)

    def num_idle(self, blocks: BlockIds) -> int:
        """How many of these cached blocks have no reference: `share` lowers `num_available` by this number."""
        return len(blocks) - int(np.count_nonzero(self._references[_index(blocks)]))

    def share(self, blocks: BlockIds) -> None:
        """Add one reference to each of these blocks. They are distinct, and evictable or referenced."""
        index = _index(blocks)
        counts = self._references[index]
        idle = index[counts == 0]
        if len(idle):
            self._evictable.remove(idle)
            self._num_referenced += len(idle)
        self._references[index] = counts + 1
        self.num_references += len(index)

    def release(self, blocks: BlockIds) -> None:
        """Remove one reference from each of these distinct blocks, given in the order of their sequence.

        The last blocks of the sequence are evicted first: a prefix is useful without its continuation, but a
        continuation is useless without its prefix.
        """
        index = _index(blocks)
        counts = self._references[index] - 1
        self._references[index] = counts
        self.num_references -= len(index)
        self._retire((index[counts == 0] if np.count_nonzero(counts) else index)[::-1])

    def release_all(self, sequences: Sequence[BlockIds]) -> None:
        """`release` for many sequences at once. A block that is in several of them loses one reference for each."""
        blocks = np.concatenate(sequences, dtype=np.intp)[::-1]
        self.num_references -= len(blocks)
        if not np.count_nonzero(self._references[blocks] != 1):  # so no block is in two sequences
            self._references[blocks] = 0
            self._retire(blocks)
            return
        np.subtract.at(self._references, blocks, 1)
        idle, first = np.unique(blocks[self._references[blocks] == 0], return_index=True)
        self._retire(idle[np.argsort(first)])

    def keep(self, blocks: Sequence[int] | BlockIds | BlockIndex) -> None:
        """Mark referenced blocks as cached: on their last release they become evictable, not free."""
        self._cached[_index(blocks)] = True

    def expect(self, blocks: Sequence[int] | BlockIndex, step_id: int) -> None:
        """Mark referenced blocks as pending: this step will fill them."""
        self.pending[_index(blocks)] = step_id
        self.num_pending += len(blocks)
        self._num_unfilled += len(blocks)

    def pending_of(self, blocks: BlockIds, step_id: int) -> BlockIds:
        """Which of these blocks wait for this step, whether the prefix cache shows them or not."""
        waiting: BlockIds = blocks[np.abs(self.pending[_index(blocks)]) == step_id]
        return waiting

    def num_filled(self, blocks: BlockIds) -> int:
        """How many leading blocks of these are not pending."""
        if not self.num_pending:
            return len(blocks)
        waiting = self.pending[_index(blocks)].nonzero()[0]
        return int(waiting[0]) if len(waiting) else len(blocks)

    def settle(self, blocks: BlockIds) -> None:
        """Pending blocks are filled. From here on those are cached that the prefix cache shows."""
        shown = self._end_wait(_index(blocks))
        self._cached[shown] = True
        self.on_fill(shown)

    def withdraw(self, blocks: BlockIds | BlockIndex) -> None:
        """Pending blocks will not be filled, or not be kept: they lose their contents."""
        self.on_evict(self._end_wait(_index(blocks)))

    def _end_wait(self, blocks: BlockIndex) -> BlockIndex:
        """Pending blocks are pending no more. Returns the blocks among them that the prefix cache shows."""
        shown: BlockIndex = blocks[self.pending[blocks] > 0]
        self.pending[blocks] = 0
        self.num_pending -= len(shown)
        self._num_unfilled -= len(blocks)
        return shown

    def drop_cached(self) -> None:
        """Forget all cached and pending contents, without calling `on_evict`. Evictable blocks become free at once,
        referenced blocks when they are released. Owners of pending blocks still rely on the steps that fill these."""
        dropped = self._evictable.pop(len(self._evictable))
        self._cached[:] = False
        self.pending[self.pending > 0] *= -1
        self.num_pending = 0
        self._push_free(dropped)

    def check(self, references: int) -> None:
        """Check in O(1), after every step, that no block is lost and that the references add up.

        references: the number of references that all owners hold together. Raises OwnershipError.
        """
        accounted = self._num_free + len(self._evictable) + self._num_referenced
        if accounted != self.num_blocks - 1 or self.num_references != references:
            counts = self.counts
            raise OwnershipError(
                f"block ownership is broken: {counts.free} free + {counts.evictable} evictable + {counts.referenced} "
                f"referenced of {self.num_blocks - 1} blocks; {self.num_references} references counted, "
                f"{references} held by their owners"
            )

    def num_exclusive(self, blocks: BlockIds) -> int:
        """How many of these blocks have exactly one reference: `release` raises `num_available` by this number."""
        return int(np.count_nonzero(self._references[_index(blocks)] == 1))

    def num_references_to(self, block: int) -> int:
        """References to one block."""
        return int(self._references[block])

    def problem_of(self, block: int) -> str | None:
        """The problem with one block that shows without asking its owners, or None. O(1)."""
        references, queued = int(self._references[block]), block in self._evictable
        if references < 0:
            return f"block {block} was released {-references} times too often"
        if references and queued:
            return f"block {block} is evictable and has {references} references"
        if queued and not self._cached[block]:
            return f"block {block} is evictable and not cached"
        if self.pending[block] and (self._cached[block] or not references):
            return f"block {block} waits for step {abs(self.pending[block])} and is cached, or has no reference"
        return None

    def problems(self, owned: BlockIds) -> list[Problem]:
        """Check the whole pool, O(blocks). owned: the block of every reference of every owner, with repeats."""
        found = []
        expected = np.bincount(owned, minlength=self.num_blocks)
        for block in np.flatnonzero(expected != self._references)[:_SHOWN].tolist():
            counted = self._references[block]
            found.append(Problem(block, f"block {block} has {counted} references, its owners hold {expected[block]}"))
        states = np.zeros(self.num_blocks, dtype=np.int64)
        np.add.at(states, self._free[: self._num_free], 1)
        np.add.at(states, self._evictable.blocks(), 1)
        states[self._references > 0] += 1
        states[PADDING_BLOCK] = 1 - states[PADDING_BLOCK]
        for block in np.flatnonzero(states != 1)[:_SHOWN].tolist():
            found.append(Problem(block, f"block {block} is in {states[block]} states instead of one"))
        found += [
            Problem(block, f"block {block} is evictable and not cached")
            for block in self._evictable.blocks().tolist()
            if not self._cached[block]
        ]
        pending = np.flatnonzero(self.pending)
        num_shown = int(np.count_nonzero(self.pending > 0))
        if (num_shown, len(pending)) != (self.num_pending, self._num_unfilled):
            counted = f"{self.num_pending} and {self._num_unfilled} were counted"
            found.append(Problem(None, f"{num_shown} blocks are pending and shown, of {len(pending)}; {counted}"))
        for block in pending[self._cached[pending] | (self._references[pending] == 0)][:_SHOWN].tolist():
            found.append(Problem(block, f"block {block} is pending and cached, or pending without a reference"))
        try:
            self.check(len(owned))
        except OwnershipError as error:
            found.append(Problem(None, str(error)))
        return found

    def _retire(self, idle: BlockIndex) -> None:
        """Make distinct blocks without references evictable or free. The first of them is evicted first."""
        if not len(idle):
            return
        if self._num_unfilled and len(lost := idle[self.pending[idle] != 0]):
            self.withdraw(lost)  # at once: the block may have another owner before its step ends
        self._num_referenced -= len(idle)
        cached = self._cached[idle]
        if np.count_nonzero(cached) < len(idle):
            self._push_free(idle[~cached])
            idle = idle[cached]
        if len(idle):
            self._evictable.push(idle)

    def _push_free(self, blocks: BlockIndex) -> None:
        self._free[self._num_free : self._num_free + len(blocks)] = blocks
        self._num_free += len(blocks)
