"""The digests of blocks: the names under which different processes mean the same part of a prompt."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Digest = bytes
"""32 bytes that name a sequence of whole blocks: its tokens, its media, its salt and the block size. Engines that never
met give equal sequences equal digests; no one can find another sequence for a digest."""

DIGEST_SIZE = 32
_PERSON = b"headway.kv.1"  # a change of what is digested changes this


def beginning(block_size: int, root: bytes) -> Digest:
    """What the first block of a sequence continues. root: see `PrefixCache.root`."""
    return continued(b"", block_size.to_bytes(8, "little") + root)


def continued(before: Digest, contents: bytes) -> Digest:
    """The digest of a block behind another. contents: the extra of its key, and its tokens as int32 bytes."""
    return hashlib.blake2b(before + contents, digest_size=DIGEST_SIZE, person=_PERSON).digest()


def of_prompt(token_ids: NDArray[np.int32], block_size: int, root: bytes) -> list[Digest]:
    """Of each leading part of whole blocks of a prompt without media. token_ids: int32 [num_tokens]."""
    data = np.ascontiguousarray(token_ids, np.int32).tobytes()
    width = 4 * block_size
    digest = beginning(block_size, root)
    digests = []
    for end in range(width, len(data) + 1, width):
        digest = continued(digest, data[end - width : end])
        digests.append(digest)
    return digests
