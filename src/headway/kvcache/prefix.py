"""Which block holds the KV of which token sequence: an exact index, not trust in a hash."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


class PrefixCache:
    """Finds the cached blocks of a prompt's prefix and publishes new ones.

    A block's key is its parent's node followed by its extra (what the media in it show; most blocks have none) and its
    own tokens (int32, little endian). Equal keys therefore mean equal sequences from the root on: a hit is a proof, and
    no collision can show one tenant another's cache. Nodes are never reused, so the children of an evicted block can no
    longer be reached; they age out.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._index: dict[bytes, int] = {}
        self._keys: list[bytes] = [b""] * pool.num_blocks  # of those that are cached; what others had is left there
        self._nodes: list[Node] = [b""] * pool.num_blocks
        self._next_node = 1
        self._key_bytes = pool.block_size * 4
        pool.on_evict = self._forget

    def __len__(self) -> int:
        """Cached blocks."""
        return len(self._index)

    @staticmethod
    def root(salt: str | None) -> Node:
        """Where the sequences of a salt begin. Different salts share nothing."""
        if salt is None:
            return _ROOT + b"\0"
        name = salt.encode()
        return _ROOT + b"\1" + len(name).to_bytes(8, "little") + name

    def orphan(self) -> Node:
        """A node that nothing leads to: what continues it can be published, but is never found."""
        node = self._next_node.to_bytes(8, "little")
        self._next_node += 1
        return node

    def match(self, tokens: bytes, max_blocks: int, root: Node, extras: Extras = NO_EXTRAS) -> tuple[BlockIds, Node]:
        """The longest cached prefix of `tokens` (int32 bytes), at most `max_blocks` blocks.

        extras: of the blocks by column (see `media_keys`).
        Returns its blocks, int32, and the node it ends at (the root, if nothing matches), followed by the extra of the
        block that comes next. Takes no reference.
        """
        width, index, nodes = self._key_bytes, self._index, self._nodes
        found: list[int] = []
        node = root + extras.get(0, b"")
        for start in range(0, max_blocks * width, width):
            block = index.get(node + tokens[start : start + width])
            if block is None:
                break
            found.append(block)
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
        if not extras:
            return self._publish(chain((node,), repeat(None)), tokens, blocks)[-1] if blocks else node
        width = self._key_bytes
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
        num_cached = len(self._index)
        self._pool.drop_cached()
        return num_cached

    def _publish(self, befores: Iterable[Node | None], tokens: bytes, blocks: Sequence[int]) -> list[Node]:
        """Each block continues its own node, or, where that is None, the block before it. Returns the node at the end
        of each. One loop without calls: a prompt has a block for every 16 tokens, and all of them come through here."""
        index, nodes, keys, width = self._index, self._nodes, self._keys, self._key_bytes
        ends, published = [], []
        start, number, node = 0, self._next_node, _ROOT
        for block, before in zip(blocks, befores, strict=False):
            if before is not None:
                node = before
            key = node + tokens[start : start + width]
            start += width
            found = index.setdefault(key, block)
            if found == block:
                keys[block] = key
                nodes[block] = node = number.to_bytes(8, "little")
                number += 1
                published.append(block)
            else:
                node = nodes[found]
            ends.append(node)
        self._next_node = number
        self._pool.keep(published)
        return ends

    def _forget(self, blocks: BlockIds) -> None:
        index = self._index
        for key in map(self._keys.__getitem__, blocks.tolist()):
            del index[key]
