"""The part of a block's key that tells which images and videos its tokens show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Extras = Mapping[int, bytes]
"""Column of a block in its request's block table -> bytes that its key holds besides its tokens."""

NO_EXTRAS: Extras = {}


def media_keys(spans: Iterable[tuple[int, int, bytes]], block_size: int) -> dict[int, bytes]:
    """The extras of a prompt with these spans: (start, length, digest) each, in order.

    Only the block in which a span starts holds the digest and the length of the span. The following blocks of the span
    need neither: their keys begin with their parent's node, which names the whole sequence before them, media included.
    """
    keys: dict[int, bytes] = {}
    for start, length, digest in spans:
        column, offset = divmod(start, block_size)
        # Numbers of fixed width, and the digest's length before the digest: an extra can be parsed in one way only,
        # for any number of spans and any digests.
        frame = b"".join(number.to_bytes(8, "little") for number in (offset, length, len(digest))) + digest
        keys[column] = keys.get(column, b"") + frame
    return keys
