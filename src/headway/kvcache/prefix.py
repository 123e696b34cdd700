"""The prefix cache: an exact index from token sequences to the blocks that hold their KV. It trusts no hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headway.kvcache.events import Emptied, Entered, Filled, KVEvent, Left
from headway.kvcache.media import NO_EXTRAS, Extras
from headway.kvcache.node import Node
from headway.kvcache.pool import BlockIds, BlockIndex, BlockPool

_ROOT = bytes(8)  # ids begin at 1
_UNSALTED: Node = _ROOT + b"\0"
_NO_BLOCKS: BlockIds = np.zeros(0, dtype=np.int32)
_ANY_STEP = 2**62


@dataclass(slots=True)
class Run:
    """Consecutive blocks of one sequence. Only the first block has a key in the index.

    blocks: the remaining blocks; eviction removes them from the end. tokens: int32 bytes of these blocks; the bytes of
    evicted blocks may still follow. first_id: the id of the first block's node; the other blocks have the ids after it.
    """

    blocks: list[int]
    tokens: bytes
    first_id: int

    @property
    def end(self) -> Node:
        """The node at the end of the run."""
        return _node(self.first_id + len(self.blocks) - 1)


class PrefixCache:
    """Finds the cached blocks of a prompt's prefix and publishes new ones.

    A block's key is its parent's node, followed by its extra (which media it shows; most blocks have none) and its own
    tokens (int32, little endian). Equal keys therefore mean equal sequences from the root on. A hit is a proof, and no
    collision can show one tenant the cache of another. Nodes are never reused: the children of an evicted block can no
    longer be found, and age out.

    Blocks that are published together form one run. The index holds the key of the first block; the tokens of the other
    blocks are compared. A run is split where a lookup or a publication leaves it. So every node that was ever returned
    is the end of a run, and the block after it is found by its key.

    keeps_events: whether `take_events` tells what has happened to the index. It must be asked from time to time then.
    """

    def __init__(self, pool: BlockPool, keeps_events: bool = False) -> None:
        self._pool = pool
        self._index: dict[bytes, int] = {}
        self._keys: list[bytes] = [b""] * pool.num_blocks  # of each block in the index; of other blocks, an old one
        self._runs: list[Run | None] = [None] * pool.num_blocks  # None: a single block, whose node is in `_nodes`
        self._nodes: list[Node] = [b""] * pool.num_blocks
        self._num_cached = 0
        self._next_id = 1
        self._key_bytes = pool.block_size * 4
        pool.on_evict = self._forget
        self._events: list[KVEvent] | None = None
        if keeps_events:
            self._events = []
            pool.on_fill = self._note_filled

    def __len__(self) -> int:
        """Cached blocks, without pending ones."""
        return self._num_cached - self._pool.num_pending

    @staticmethod
    def root(salt: str | None) -> Node:
        """The node at which all sequences of a salt begin. Different salts share nothing."""
        if salt is None:
            return _UNSALTED
        name = salt.encode()
        return _ROOT + b"\1" + len(name).to_bytes(8, "little") + name

    def orphan(self) -> Node:
        """A node that no lookup reaches: blocks that continue it can be published, but are never found."""
        self._next_id += 1
        return _node(self._next_id - 1)

    def match(
        self, tokens: bytes, max_blocks: int, root: Node, extras: Extras = NO_EXTRAS, newest: int = 0
    ) -> tuple[BlockIds, Node]:
        """The longest cached prefix of `tokens` (int32 bytes), at most `max_blocks` blocks.

        extras: of the blocks by column (see `media_keys`). newest: the last step whose pending blocks are taken too.
        Returns the blocks, int32, and the node at the end (the root, if nothing matches), followed by the extra of the
        next block. Adds no reference.
        """
        found, node = self._follow(root + extras.get(0, b""), tokens, max_blocks, extras, newest)
        return np.array(found, dtype=np.int32) if found else _NO_BLOCKS, node

    def __contains__(self, key: bytes) -> bool:
        """Whether a block with this key is cached or pending: a node, and the next block's tokens (int32 bytes)."""
        return key in self._index

    def publish(
        self,
        node: Node,
        tokens: bytes,
        blocks: Sequence[int] | BlockIds,
        extras: Extras = NO_EXTRAS,
        first: int = 0,
        step_id: int = 0,
    ) -> Node:
        """Add consecutive full blocks to the index. They continue the sequence `node` and hold `tokens` (int32 bytes).

        node: followed by the extra of `blocks[0]`, as `match` and `publish` return it.
        extras: of the blocks by column (see `media_keys`). first: the column of `blocks[0]`.
        step_id: the step in flight that fills the blocks, which are pending until then; 0: they are filled.
        If an equal block is in the index already, lookups go on finding that block, and the caller's block stays out.
        Returns the node at the end, followed by the extra of the next block.
        """
        width = self._key_bytes
        if extras:
            for i, block in enumerate(map(int, blocks)):
                (node,) = self.publish_each((node,), tokens[i * width : (i + 1) * width], (block,), step_id)
                node += extras.get(first + i + 1, b"")
            return node
        found, node = self._follow(node, tokens, len(blocks), NO_EXTRAS, _ANY_STEP)
        if len(found) == len(blocks):
            return node
        rest = np.asarray(blocks[len(found) :], dtype=np.intp)
        return self._publish_run(node, tokens[len(found) * width :], rest, step_id)

    def publish_each(self, nodes: Sequence[Node], tokens: bytes, blocks: Sequence[int], step_id: int = 0) -> list[Node]:
        """Publish one full block for each of several sequences: block i continues `nodes[i]`.

        tokens: int32 bytes of all the blocks in order. step_id: see `publish`. No media may follow these blocks.
        Returns the node at the end of each sequence.
        """
        index, keys, runs, width, events = self._index, self._keys, self._runs, self._key_bytes, self._events
        ends, published = [], []
        start, next_id = 0, self._next_id
        for before, block in zip(nodes, blocks, strict=True):
            key = before + tokens[start : start + width]
            start += width
            found = index.setdefault(key, block)
            if found == block:
                keys[block], runs[block] = key, None
                self._nodes[block] = node = next_id.to_bytes(8, "little")
                if events is not None:
                    events.append(Entered(before, next_id, (block,), key[-width:], step_id > 0))
                next_id += 1
                published.append(block)
            elif (run := runs[found]) is not None:
                self._split(run, 1)
                node = run.end
            else:
                node = self._nodes[found]
            ends.append(node)
        self._next_id = next_id
        self._num_cached += len(published)
        self._keep(published, step_id)
        return ends

    def clear(self) -> int:
        """Empty the index. Referenced blocks stay with their owners. Returns the number of blocks that were cached."""
        num_cached, self._num_cached = len(self), 0
        self._index.clear()
        self._runs = [None] * len(self._runs)
        self._pool.drop_cached()
        if self._events is not None:
            self._events.append(Emptied())
        return num_cached

    def take_events(self) -> list[KVEvent]:
        """What has happened to the index since the last call, in order."""
        if not self._events:
            return []
        events, self._events = self._events, []
        return events

    def _note_filled(self, blocks: BlockIndex) -> None:
        if self._events is not None and len(blocks):
            self._events.append(Filled(tuple(blocks.tolist())))

    def _keep(self, blocks: Sequence[int] | BlockIndex, step_id: int) -> None:
        if step_id:
            self._pool.expect(blocks, step_id)
        else:
            self._pool.keep(blocks)

    def _follow(
        self, node: Node, tokens: bytes, max_blocks: int, extras: Extras, newest: int
    ) -> tuple[list[int], Node]:
        """The blocks after `node` that hold these tokens, and the node at their end. Cached ones, and pending ones of
        steps up to `newest`. All blocks of a run are pending for the same step, or none is.

        node: followed by the extra of the next block. extras: by column, counted from `node` on.
        """
        index, runs, width = self._index, self._runs, self._key_bytes
        max_blocks = min(max_blocks, len(tokens) // width)
        found: list[int] = []
        while len(found) < max_blocks:
            start = len(found) * width
            block = index.get(node + tokens[start : start + width])
            if block is None or (self._pool.num_pending and self._pool.pending[block] > newest):
                break
            run = runs[block]
            if run is None:
                found.append(block)
                node = self._nodes[block]
            else:
                last = min((column for column in extras if column > len(found)), default=max_blocks)
                most = min(len(run.blocks), last - len(found), max_blocks - len(found))
                self._split(run, _num_equal(run.tokens, tokens[start : start + most * width], width))
                found += run.blocks
                node = run.end
            if extras:
                node += extras.get(len(found), b"")
        return found, node

    def _publish_run(self, node: Node, tokens: bytes, index: BlockIndex, step_id: int) -> Node:
        """Add blocks as one run. The first is not in the index; then the others cannot be in it either, as their keys
        contain the id of a block before them."""
        blocks, runs = index.tolist(), self._runs
        key, first = node + tokens[: self._key_bytes], blocks[0]
        run = Run(blocks, tokens, self._next_id)
        for block in blocks:
            runs[block] = run
        self._index[key], self._keys[first] = first, key
        if self._events is not None:
            self._events.append(Entered(node, self._next_id, tuple(blocks), tokens, step_id > 0))
        self._next_id += len(blocks)
        self._num_cached += len(blocks)
        self._keep(index, step_id)
        return run.end

    def _split(self, run: Run, count: int) -> None:
        """Cut a run after `count` blocks. The blocks behind the cut become a run of their own."""
        if count >= len(run.blocks):
            return
        rest = Run(run.blocks[count:], run.tokens[count * self._key_bytes :], run.first_id + count)
        del run.blocks[count:]
        run.tokens = run.tokens[: count * self._key_bytes]
        key, first = run.end + rest.tokens[: self._key_bytes], rest.blocks[0]
        self._index[key], self._keys[first] = first, key
        for block in rest.blocks:
            self._runs[block] = rest

    def _forget(self, blocks: BlockIndex) -> None:
        going, at = blocks.tolist(), 0
        if self._events is not None and going:
            self._events.append(Left(tuple(going)))
        while at < len(going):
            block = going[at]
            run = self._runs[block]
            if run is not None and len(run.blocks) > 1:
                count = min(len(run.blocks) - 1, len(going) - at)
                if run.blocks[: -count - 1 : -1] == going[at : at + count]:  # the end of the run, last block first
                    del run.blocks[-count:]
                    at += count
                    continue
                place = run.blocks.index(block)
                if place:
                    self._split(run, place)
                    run = self._runs[block]
                    assert run is not None
                self._split(run, 1)
            del self._index[self._keys[block]]
            at += 1
        self._num_cached -= len(going)


def _node(number: int) -> Node:
    return number.to_bytes(8, "little")


def _num_equal(one: bytes, other: bytes, width: int) -> int:
    """The number of equal leading pieces of `width` bytes. `other` is not longer than `one`."""
    if one.startswith(other):
        return len(other) // width
    differ = np.frombuffer(one, np.uint8, len(other)) != np.frombuffer(other, np.uint8)
    return int(differ.argmax()) // width
