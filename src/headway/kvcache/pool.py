"""The blocks of the KV cache and how many references each has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.kvcache.eviction import EvictionQueue
from headway.kvcache.lazy import lazy_zeros

BlockIds = NDArray[np.int32]

PADDING_BLOCK = 0
_SHOWN = 16  # blocks of a kind that a report lists; once one is wrong, many are


class PoolCounts(NamedTuple):
    """Blocks by state; they add up to the pool without its padding block."""

    free: int
    evictable: int
    referenced: int


class Problem(NamedTuple):
    """Something wrong with a block, or with the pool as a whole."""

    block: int | None
    text: str


class OwnershipError(AssertionError):
    """A block is lost, or owned twice. The state cannot be trusted any more: the engine must stop."""


def _nothing_cached(blocks: BlockIds) -> None:
    """Default eviction hook of a pool without a prefix cache."""


class BlockPool:
    """Hands out blocks and takes them back.

    A block is free (its contents are worthless), evictable (cached, without a reference) or referenced (a count).

        take      free, else evictable -> referenced      share     evictable or referenced -> referenced
        release   referenced -> free or evictable         keep      marks a referenced block as cached

    Free blocks go first, so that nothing cached is lost without need; then evictable blocks, least recently released
    first. Block 0 is padding: never handed out, never freed.

    tokens: int32 [num_blocks, block_size]; the tokens whose KV a block holds, once it is full and its steps have
        succeeded.
    on_evict: called with the blocks that lose their cached contents, before they are handed out.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.tokens: BlockIds = lazy_zeros((num_blocks, block_size), np.int32)
        self.on_evict: Callable[[BlockIds], None] = _nothing_cached
        self.num_references = 0  # sum of all counts, kept as we go; owners compare it with their own sum
        self._references = np.zeros(num_blocks, dtype=np.int32)
        self._cached = np.zeros(num_blocks, dtype=np.bool_)
        self._free = np.arange(num_blocks - 1, 0, -1, dtype=np.int32)  # a stack; low ids are handed out first
        self._num_free = num_blocks - 1
        self._evictable = EvictionQueue(num_blocks)
        self._num_referenced = 0

    @property
    def num_available(self) -> int:
        """Blocks that can be taken now: the free and the evictable ones."""
        return self._num_free + len(self._evictable)

    @property
    def counts(self) -> PoolCounts:
        """Blocks by state, O(1)."""
        return PoolCounts(self._num_free, len(self._evictable), self._num_referenced)

    def take(self, count: int) -> BlockIds:
        """`count` blocks, int32 [count], each with one reference; there must be so many available."""
        assert count <= self.num_available, f"{count} blocks asked of {self.num_available}"
        from_free = min(count, self._num_free)
        self._num_free -= from_free
        blocks = self._free[self._num_free : self._num_free + from_free][::-1].copy()
        if from_free < count:
            evicted = self._evictable.pop(count - from_free)
            self._cached[evicted] = False
            self.on_evict(evicted)
            blocks = np.concatenate((blocks, evicted)) if from_free else evicted
        self._references[blocks] = 1
        self._num_referenced += count
        self.num_references += count
        return blocks

    def num_idle(self, blocks: BlockIds) -> int:
        """How many of these cached blocks have no reference: sharing them makes so many fewer available."""
        return len(blocks) - int(np.count_nonzero(self._references[blocks]))

    def share(self, blocks: BlockIds) -> None:
        """One more reference to each of these blocks, which are distinct and evictable or referenced."""
        idle = blocks[self._references[blocks] == 0]
        if len(idle):
            self._evictable.remove(idle)
            self._num_referenced += len(idle)
        self._references[blocks] += 1
        self.num_references += len(blocks)

    def release(self, blocks: BlockIds) -> None:
        """One reference less to each of these distinct blocks, given in the order of the sequence they hold.

        The last ones age first: a prefix is of use without its continuation, a continuation never without its prefix.
        """
        counts = self._references[blocks] - 1
        self._references[blocks] = counts
        self.num_references -= len(blocks)
        self._retire((blocks[counts == 0] if np.count_nonzero(counts) else blocks)[::-1])

    def release_all(self, sequences: Sequence[BlockIds]) -> None:
        """One reference less for each time that a block is in one of these; as `release`, but for many at once, among
        which blocks may be shared."""
        blocks = np.concatenate(sequences)[::-1]
        self.num_references -= len(blocks)
        if not np.count_nonzero(self._references[blocks] != 1):  # hence none of them is there twice
            self._references[blocks] = 0
            self._retire(blocks)
            return
        np.subtract.at(self._references, blocks, 1)
        idle, first = np.unique(blocks[self._references[blocks] == 0], return_index=True)
        self._retire(idle[np.argsort(first)])

    def keep(self, blocks: Sequence[int]) -> None:
        """Mark referenced blocks as cached: once released they become evictable, not free."""
        self._cached[blocks] = True

    def drop_cached(self) -> None:
        """Forget all cached contents, without `on_evict`: evictable blocks become free, referenced ones will when
        released."""
        dropped = self._evictable.pop(len(self._evictable))
        self._cached[:] = False
        self._push_free(dropped)

    def check(self, references: int) -> None:
        """O(1) conservation check, for after every step.

        references: how many references the owners say they hold together. Raises OwnershipError.
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
        """How many of these referenced blocks have no other reference: releasing them makes so many more available."""
        return int(np.count_nonzero(self._references[blocks] == 1))

    def num_references_to(self, block: int) -> int:
        """References to one block."""
        return int(self._references[block])

    def problem_of(self, block: int) -> str | None:
        """What is wrong with one block as far as it can be seen without its owners, O(1)."""
        references, queued = int(self._references[block]), block in self._evictable
        if references < 0:
            return f"block {block} was released {-references} times too often"
        if references and queued:
            return f"block {block} is evictable and has {references} references"
        if queued and not self._cached[block]:
            return f"block {block} is evictable and not cached"
        return None

    def problems(self, owned: BlockIds) -> list[Problem]:
        """Full check, O(blocks). owned: every reference of every owner, repeats included."""
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
        try:
            self.check(len(owned))
        except OwnershipError as error:
            found.append(Problem(None, str(error)))
        return found

    def _retire(self, idle: BlockIds) -> None:
        """These distinct blocks have no reference any more; the first of them age first."""
        if not len(idle):
            return
        self._num_referenced -= len(idle)
        cached = self._cached[idle]
        if np.count_nonzero(cached) < len(idle):
            self._push_free(idle[~cached])
            idle = idle[cached]
        if len(idle):
            self._evictable.push(idle)

    def _push_free(self, blocks: BlockIds) -> None:
        self._free[self._num_free : self._num_free + len(blocks)] = blocks
        self._num_free += len(blocks)
