"""What happens to the blocks of the prefix cache, told in the cache's own names: block ids and nodes, never a digest.

Whether a block can be found follows from these records, and its digest too; `headway.engine.findable_blocks` derives
both, away from the core.
"""

from __future__ import annotations

from typing import NamedTuple

from headway.kvcache.node import Node


class Entered(NamedTuple):
    """Consecutive blocks are in the index now.

    node: which sequence they continue. first_id: the id of the first block's own node; the other blocks have the ids
    after it. tokens: int32 bytes of these blocks; the bytes of further blocks may follow. pending: a step in flight
    fills them; `Filled` or `Left` follows.
    """

    node: Node
    first_id: int
    blocks: tuple[int, ...]
    tokens: bytes
    pending: bool


class Filled(NamedTuple):
    """The step that was to fill these pending blocks has succeeded."""

    blocks: tuple[int, ...]


class Left(NamedTuple):
    """These blocks are in the index no more. Blocks that continue their sequences may still be, and are not found."""

    blocks: tuple[int, ...]


class Emptied(NamedTuple):
    """The index is empty."""


KVEvent = Entered | Filled | Left | Emptied
