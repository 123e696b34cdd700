"""Which block holds the KV of which token sequence: an exact index, not trust in a hash."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np

from headway.kvcache.media import NO_EXTRAS, Extras
from headway.kvcache.pool import BlockIds, BlockPool

Node = bytes
"""Names a whole sequence of tokens and media, up to the end of one block: where the next block's key begins.

Eight bytes, never used twice, or a root; and after either the next block's extra, where it has one.
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
    """Blocks of one sequence, published together, that nobody has asked for yet: only the first of them is indexed.

    blocks: those that are left; it loses them from its end. tokens: the contents of all of them, int32 bytes.
    first_id: the id of the first one's node; those of the others follow it.
    """

    blocks: list[int]
    tokens: bytes
    first_id: int


class PrefixCache:
    """Finds the cached blocks of a prompt's prefix and publishes new ones.

    A block's key is its parent's node followed by its extra (what the media in it show; most blocks have none) and its
    own tokens (int32, little endian). Equal keys therefore mean equal sequences from the root on: a hit is a proof, and
    no collision can show one tenant another's cache. Nodes are never reused, so the children of an evicted block can no
    longer be reached; they age out.

    Most prompts are never asked for again. So the blocks of one are indexed as a run, by its first block alone; the
    others get their keys when somebody finds that one and may go on. Until then nobody can have a reference to them but
    who published them, and they are evicted from the end on.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._index: dict[bytes, int] = {}
        self._keys: list[bytes] = [b""] * pool.num_blocks  # of those that are cached; what others had is left there
        self._nodes: list[Node] = [b""] * pool.num_blocks
        self._runs: list[Run | None] = [None] * pool.num_blocks  # of those without a key, and of the first of these
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
        return (self._next_id - 1).to_bytes(8, "little")

    def match(self, tokens: bytes, max_blocks: int, root: Node, extras: Extras = NO_EXTRAS) -> tuple[BlockIds, Node]:
        """The longest cached prefix of `tokens` (int32 bytes), at most `max_blocks` blocks.

        extras: of the blocks by column (see `media_keys`).
        Returns its blocks, int32, and the node it ends at (the root, if nothing matches), followed by the extra of the
        block that comes next. Takes no reference.
        """
        width, index, nodes, runs = self._key_bytes, self._index, self._nodes, self._runs
        found: list[int] = []
        node = root + extras.get(0, b"")
        for start in range(0, max_blocks * width, width):
            block = index.get(node + tokens[start : start + width])
            if block is None:
                break
            found.append(block)
            if (run := runs[block]) is not None:
                self._index_all(run)
            node = nodes[block]
            if extras:
                node += extras.get(len(found), b"")
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
        Their step must have succeeded. Where an equal sequence is cached already, that block stays the one that is
        found and the caller's remains its own. Returns the node at the end, followed by the extra of the block that
        comes next.
        """
        width = self._key_bytes
        if not extras and len(blocks) > 1:
            key = node + tokens[:width]
            if key not in self._index:
                return self._publish_run(key, tokens, blocks)
            return self._publish(chain((node,), repeat(None)), tokens, blocks)[-1]
        for i, block in enumerate(blocks):
            (node,) = self._publish((node,), tokens[i * width : (i + 1) * width], (block,))
            node += extras.get(first + i + 1, b"")
        return node

    def publish_each(self, nodes: Sequence[Node], tokens: bytes, blocks: Sequence[int]) -> list[Node]:
        """Publish one full block for each of several sequences: block i continues `nodes[i]`.

        tokens: int32 bytes, the contents of all the blocks in order. Returns the node at the end of each; no media come
        after these blocks.
        """
        return self._publish(nodes, tokens, blocks)

    def clear(self) -> int:
        """Forget everything. Referenced blocks stay with their owners. Returns how many blocks were cached."""
        num_cached, self._num_cached = self._num_cached, 0
        self._index.clear()
        self._runs = [None] * len(self._runs)
        self._pool.drop_cached()
        return num_cached

    def _publish_run(self, key: bytes, tokens: bytes, blocks: Sequence[int]) -> Node:
        """Blocks whose first one, of this key, is new; so are the others then, as what they continue is. Returns the
        node at their end."""
        first, runs = blocks[0], self._runs
        run = Run(list(blocks), tokens, self._next_id)
        for block in blocks:
            runs[block] = run
        self._index[key], self._keys[first] = first, key
        self._nodes[first] = run.first_id.to_bytes(8, "little")
        self._next_id += len(blocks)
        self._num_cached += len(blocks)
        self._pool.keep(blocks)
        return (self._next_id - 1).to_bytes(8, "little")

    def _index_all(self, run: Run) -> None:
        """Somebody has found the first block: the others of the run can be found too from here on."""
        index, nodes, keys, runs, width = self._index, self._nodes, self._keys, self._runs, self._key_bytes
        node = nodes[run.blocks[0]]
        for i, block in enumerate(run.blocks):
            runs[block] = None
            if i:
                keys[block] = key = node + run.tokens[i * width : (i + 1) * width]
                nodes[block] = node = (run.first_id + i).to_bytes(8, "little")
                index[key] = block

    def _publish(self, befores: Iterable[Node | None], tokens: bytes, blocks: Sequence[int]) -> list[Node]:
        """Each block continues its own node, or, where that is None, the block before it. Returns the node at the end
        of each. One loop without calls: in every step one in `block_size` of those that decode comes through here."""
        index, nodes, keys, runs, width = self._index, self._nodes, self._keys, self._runs, self._key_bytes
        ends, published = [], []
        start, number, node = 0, self._next_id, _ROOT
        for block, before in zip(blocks, befores, strict=False):
            if before is not None:
                node = before
            key = node + tokens[start : start + width]
            start += width
            found = index.setdefault(key, block)
            if found == block:
                keys[block], runs[block] = key, None
                nodes[block] = node = number.to_bytes(8, "little")
                number += 1
                published.append(block)
            else:
                if (run := runs[found]) is not None:
                    self._index_all(run)
                node = nodes[found]
            ends.append(node)
        self._next_id = number
        self._num_cached += len(published)
        self._pool.keep(published)
        return ends

    def _forget(self, blocks: BlockIds) -> None:
        going, at = blocks.tolist(), 0
        while at < len(going):
            run = self._runs[going[at]]
            if run is not None:
                count = min(len(run.blocks) - 1, len(going) - at)  # of those without a key
                if count and run.blocks[: -count - 1 : -1] == going[at : at + count]:  # its end, the last one first
                    del run.blocks[-count:]
                    at += count
                    continue
                self._index_all(run)
            del self._index[self._keys[going[at]]]
            at += 1
        self._num_cached -= len(going)
