"""What a block's key must say of the images and videos whose tokens it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Extras = Mapping[int, bytes]
"""Column of a block in its request's table -> bytes that its key holds besides its tokens."""

NO_EXTRAS: Extras = {}


def media_keys(spans: Iterable[tuple[int, int, bytes]], block_size: int) -> dict[int, bytes]:
    """The extras of a prompt with these spans: (start, length, digest) each, in order.

    Only the block in which a span starts says what it shows and how far it goes. The blocks that a span runs on into
    need not: their keys begin with their parent's node, and that names the sequence up to there, media and all.
    """
    keys: dict[int, bytes] = {}
    for start, length, digest in spans:
        column, offset = divmod(start, block_size)
        # Numbers of fixed width, and the digest's length before the digest: read from its first byte, an extra can be
        # taken apart in one way only, however many spans it speaks of and whatever their digests are.
        frame = b"".join(number.to_bytes(8, "little") for number in (offset, length, len(digest))) + digest
        keys[column] = keys.get(column, b"") + frame
    return keys
