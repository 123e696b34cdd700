"""Which blocks of a prefix cache can be found, by digest: what the core tells in its own names, told to others.

The core hands out names and tokens, and computes no digest. This follows it, on whatever thread has time for that. It
needs no more of an engine than `Effects.kv_events`, so that a guest in another engine can use it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from headway.block_digests import Digest, beginning, continued
from headway.kvcache.events import Emptied, Entered, Filled, KVEvent
from headway.kvcache.node import parse_node, salt_of


class BlocksStored(NamedTuple):
    """Consecutive blocks can be found from now on.

    parent: digest of the block before them; None at the beginning of a sequence. tokens: int32 bytes of all of them.
    extras: for each block, what its digest holds besides parent and tokens: the salt (str) of a sequence's first block,
    the key (bytes) of the media that begin in it. Most blocks have none.
    """

    digests: tuple[Digest, ...]
    parent: Digest | None
    tokens: bytes
    extras: tuple[tuple[str | bytes, ...], ...]


class BlocksRemoved(NamedTuple):
    """These blocks cannot be found any more."""

    digests: tuple[Digest, ...]


class AllRemoved(NamedTuple):
    """No block can be found any more."""


Change = BlocksStored | BlocksRemoved | AllRemoved


@dataclass(slots=True, eq=False)
class _Block:
    """A block in the index whose sequence is known from its beginning. tokens: int32 bytes, until they are told."""

    number: int
    node_id: int
    digest: Digest
    parent: _Block | None
    tokens: bytes
    extras: tuple[str | bytes, ...]
    filled: bool = False
    told: bool = False
    children: dict[int, _Block] = field(default_factory=dict)  # by node id

    @property
    def can_be_found(self) -> bool:
        return self.filled and (self.parent is None or self.parent.told)


class FindableBlocks:
    """Follows a prefix cache. A block can be found once it is filled and the block before it can be found.

    With a block go all that continue it: the cache looks them up under a name that is never used again. Their own way
    out of the index comes later and tells nothing new.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._width = 4 * block_size
        self._blocks: dict[int, _Block] = {}  # by block id
        self._nodes: dict[int, _Block] = {}  # by node id

    def __len__(self) -> int:
        """Blocks that are followed, found or not."""
        return len(self._blocks)

    def found(self) -> list[Digest]:
        """The digests of all blocks that can be found."""
        return [block.digest for block in self._blocks.values() if block.told]

    def apply(self, events: Iterable[KVEvent]) -> list[Change]:
        """What these events change, in order."""
        changes: list[Change] = []
        for event in events:
            if isinstance(event, Entered):
                self._enter(event, changes)
            elif isinstance(event, Filled):
                self._fill([block for i in event.blocks if (block := self._blocks.get(i)) is not None], changes)
            elif isinstance(event, Emptied):
                changes.append(self.forget())
            else:
                self._leave(event.blocks, changes)
        return changes

    def forget(self) -> AllRemoved:
        """Follow nothing any more. What continues forgotten blocks is not told."""
        self._blocks.clear()
        self._nodes.clear()
        return AllRemoved()

    def _enter(self, event: Entered, changes: list[Change]) -> None:
        node_id, root, extra = parse_node(event.node)
        parent = self._nodes.get(node_id)
        if parent is None and not root:
            return  # it continues a block that has left: no lookup comes here
        extras: tuple[str | bytes, ...] = (extra,) if extra else ()
        if root and (salt := salt_of(root)) is not None:
            extras = (salt, *extras)
        before = beginning(self._block_size, root) if parent is None else parent.digest
        entered = []
        for i, number in enumerate(event.blocks):
            tokens = event.tokens[i * self._width : (i + 1) * self._width]
            before = continued(before, extra + tokens)
            block = _Block(number, event.first_id + i, before, parent, tokens, extras)
            if parent is not None:
                parent.children[block.node_id] = block
            self._blocks[number] = self._nodes[block.node_id] = parent = block
            entered.append(block)
            extra, extras = b"", ()
        if not event.pending:
            self._fill(entered, changes)

    def _fill(self, blocks: list[_Block], changes: list[Change]) -> None:
        """Blocks are filled; tell of all that can be found by this."""
        for block in blocks:
            block.filled = True
        found: list[_Block] = []
        open_ = blocks[::-1]
        while open_:
            block = open_.pop()
            if not block.told and block.can_be_found:
                block.told = True
                found.append(block)
                open_ += block.children.values()
        start = 0
        for end in range(1, len(found) + 1):
            if end == len(found) or found[end].parent is not found[end - 1]:
                changes.append(_stored(found[start:end]))
                start = end

    def _leave(self, numbers: Iterable[int], changes: list[Change]) -> None:
        gone: list[Digest] = []
        for number in numbers:
            block = self._blocks.get(number)
            if block is None:
                continue
            if block.parent is not None:
                del block.parent.children[block.node_id]
            open_ = [block]
            while open_:
                block = open_.pop()
                open_ += block.children.values()
                del self._blocks[block.number], self._nodes[block.node_id]
                if block.told:
                    gone.append(block.digest)
        if gone:
            changes.append(BlocksRemoved(tuple(gone)))


def _stored(blocks: list[_Block]) -> BlocksStored:
    parent = blocks[0].parent
    tokens = b"".join(block.tokens for block in blocks)
    for block in blocks:
        block.tokens = b""
    return BlocksStored(
        tuple(block.digest for block in blocks),
        None if parent is None else parent.digest,
        tokens,
        tuple(block.extras for block in blocks),
    )
