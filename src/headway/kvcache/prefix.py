"""Which block holds the KV of which token sequence: an exact index, not trust in a hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headway.kvcache.media import NO_EXTRAS, Extras
from headway.kvcache.pool import BlockIds, BlockPool

Node = bytes
"""Names a whole sequence of tokens and media, up to the end of one block: where the next block's key begins.

An 8-byte id that is never reused, or a root; followed by the media key of the next block, if it has one.
"""

# Keys of different composition are never equal, because a key can be taken apart in one way only:
#
#     id (8 bytes, not zero)                          | extra (any length) | tokens (4 x block_size bytes)
#     zeros (8) | 0                                   | extra              | tokens
#     zeros (8) | 1 | length of salt (8 bytes) | salt | extra              | tokens
#
# Its first bytes tell where its node ends, its length where its tokens begin, and the extra is what lies between.
_ROOT = bytes(8)  # ids begin at 1


@dataclass(slots=True)
class Run:
    """Blocks of one sequence, one after the other, of which only the first has a key in the index.

    blocks: the remaining blocks; eviction removes them from the end. tokens: int32 bytes of these blocks; may still
    contain those of evicted ones. first_id: the id of the first block's node; the ids of the others follow it.
    """

    blocks: list[int]
    tokens: bytes
    first_id: int

    @property
    def end(self) -> Node:
        """The node at its end."""
        return _node(self.first_id + len(self.blocks) - 1)


class PrefixCache:
    """Finds the cached blocks of a prompt's prefix and publishes new ones.

    A block's key is its parent's node followed by its extra (what the media in it show; most blocks have none) and its
    own tokens (int32, little endian). Equal keys therefore mean equal sequences from the root on: a hit is a proof, and
    no collision can show one tenant another's cache. Nodes are never reused, so the children of an evicted block can no
    longer be reached; they age out.

    Blocks that are published together lie in the index as one run, by the key of the first; the tokens of the others
    are compared. Where a sequence leaves a run, or must not follow it further, the run is split. So every node that was
    ever returned is the end of a run, and the blocks that continue it are found by their key.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._index: dict[bytes, int] = {}
        self._keys: list[bytes] = [b""] * pool.num_blocks  # of blocks in the index; stale for all others
        self._runs: list[Run | None] = [None] * pool.num_blocks  # None: a block by itself, whose node is in `_nodes`
        self._nodes: list[Node] = [b""] * pool.num_blocks
        self._num_cached = 0
        self._next_id = 1
        self._key_bytes = pool.block_size * 4
        pool.on_evict = self._forget

    def __len__(self) -> int:
        """Cached blocks."""
        return self._num_cached

    @staticmethod
    def root(salt: str | None) -> Node:
        """Where the sequences of a salt begin. Different salts share nothing."""
        if salt is None:
            return _ROOT + b"\0"
        name = salt.encode()
        return _ROOT + b"\1" + len(name).to_bytes(8, "little") + name

    def orphan(self) -> Node:
        """A node that nothing leads to: what continues it can be published, but is never found."""
        self._next_id += 1
        return _node(self._next_id - 1)

    def match(self, tokens: bytes, max_blocks: int, root: Node, extras: Extras = NO_EXTRAS) -> tuple[BlockIds, Node]:
        """The longest cached prefix of `tokens` (int32 bytes), at most `max_blocks` blocks.

        extras: of the blocks by column (see `media_keys`).
        Returns its blocks, int32, and the node it ends at (the root, if nothing matches), followed by the extra of the
        block that comes next. Takes no reference.
        """
        found, node = self._follow(root + extras.get(0, b""), tokens, max_blocks, extras)
        return np.array(found, dtype=np.int32), node

    def __contains__(self, key: bytes) -> bool:
        """Whether a block is cached that has this key: a node, followed by the tokens (int32 bytes) after it."""
        return key in self._index

    def publish(
        self, node: Node, tokens: bytes, blocks: Sequence[int], extras: Extras = NO_EXTRAS, first: int = 0
    ) -> Node:
        """Make consecutive full blocks findable: they continue the sequence `node` and hold `tokens` (int32 bytes).

        node: with the extra of `blocks[0]` already behind it, as `match` and `publish` return it.
        extras: of the blocks by column (see `media_keys`). first: the column of `blocks[0]`.
        Their step must have succeeded. Where an equal sequence is cached already, that block is still found,
        and the caller's block remains its own. Returns the node at the end, followed by the extra of the block that
        comes next.
        """
        width = self._key_bytes
        if extras:
            for i, block in enumerate(blocks):
                (node,) = self.publish_each((node,), tokens[i * width : (i + 1) * width], (block,))
                node += extras.get(first + i + 1, b"")
            return node
        found, node = self._follow(node, tokens, len(blocks), NO_EXTRAS)
        rest = list(blocks[len(found) :])
        return self._publish_run(node, tokens[len(found) * width :], rest) if rest else node

    def publish_each(self, nodes: Sequence[Node], tokens: bytes, blocks: Sequence[int]) -> list[Node]:
        """Publish one full block for each of several sequences: block i continues `nodes[i]`.

        tokens: int32 bytes, the contents of all the blocks in order. Returns the node at the end of each; no media come
        after these blocks.
        """
        index, keys, runs, width = self._index, self._keys, self._runs, self._key_bytes
        ends, published = [], []
        start, next_id = 0, self._next_id
        for before, block in zip(nodes, blocks, strict=True):
            key = before + tokens[start : start + width]
            start += width
            found = index.setdefault(key, block)
            if found == block:
                keys[block], runs[block] = key, None
                self._nodes[block] = node = next_id.to_bytes(8, "little")
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
        self._pool.keep(published)
        return ends

    def clear(self) -> int:
        """Forget everything. Referenced blocks stay with their owners. Returns how many blocks were cached."""
        num_cached, self._num_cached = self._num_cached, 0
        self._index.clear()
        self._runs = [None] * len(self._runs)
        self._pool.drop_cached()
        return num_cached

    def _follow(self, node: Node, tokens: bytes, max_blocks: int, extras: Extras) -> tuple[list[int], Node]:
        """The cached blocks that continue `node`, whose extra stands behind it, with these tokens; and where they end.

        extras: by column, counted from `node` on.
        """
        index, runs, width = self._index, self._runs, self._key_bytes
        max_blocks = min(max_blocks, len(tokens) // width)
        found: list[int] = []
        while len(found) < max_blocks:
            start = len(found) * width
            block = index.get(node + tokens[start : start + width])
            if block is None:
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

    def _publish_run(self, node: Node, tokens: bytes, blocks: list[int]) -> Node:
        """Adds blocks whose first block is not in the index. Then none of the others can be: their keys contain the id
        of the new first one."""
        key, first, runs = node + tokens[: self._key_bytes], blocks[0], self._runs
        run = Run(blocks, tokens, self._next_id)
        for block in blocks:
            runs[block] = run
        self._index[key], self._keys[first] = first, key
        self._next_id += len(blocks)
        self._num_cached += len(blocks)
        self._pool.keep(blocks)
        return run.end

    def _split(self, run: Run, count: int) -> None:
        """Leave so many blocks to a run; the others become one of their own."""
        if count >= len(run.blocks):
            return
        rest = Run(run.blocks[count:], run.tokens[count * self._key_bytes :], run.first_id + count)
        del run.blocks[count:]
        run.tokens = run.tokens[: count * self._key_bytes]
        key, first = run.end + rest.tokens[: self._key_bytes], rest.blocks[0]
        self._index[key], self._keys[first] = first, key
        for block in rest.blocks:
            self._runs[block] = rest

    def _forget(self, blocks: BlockIds) -> None:
        going, at = blocks.tolist(), 0
        while at < len(going):
            block = going[at]
            run = self._runs[block]
            if run is not None and len(run.blocks) > 1:
                count = min(len(run.blocks) - 1, len(going) - at)
                if run.blocks[: -count - 1 : -1] == going[at : at + count]:  # its end, the last one first
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
    """Leading pieces of so many bytes that are equal, where `other` is not longer."""
    if one.startswith(other):
        return len(other) // width
    differ = np.frombuffer(one, np.uint8, len(other)) != np.frombuffer(other, np.uint8)
    return int(differ.argmax()) // width
