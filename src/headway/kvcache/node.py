"""The names of sequences in the prefix cache, and the keys of its blocks.

A key is a node, followed by the extra and the tokens of the next block. Keys of different parts are never equal,
because a key can be parsed in one way only:

    id (8 bytes, not zero)                          | extra (any length) | tokens (4 x block_size bytes)
    zeros (8) | 0                                   | extra              | tokens
    zeros (8) | 1 | length of salt (8 bytes) | salt | extra              | tokens

The first bytes tell where the node ends, the length tells where the tokens begin, and the extra lies between them.
"""

from __future__ import annotations

Node = bytes
"""Names a whole sequence of tokens and media, up to the end of one block: where the next block's key begins.

An 8-byte id that is never reused, or a root; followed by the extra of the next block, if it has one.
"""


def parse_node(node: Node) -> tuple[int, Node, bytes]:
    """The parts of a node: its id (0 for a root), its root (empty for an id), and the extra of the next block."""
    number = int.from_bytes(node[:8], "little")
    if number:
        return number, b"", node[8:]
    end = 9 if node[8] == 0 else 17 + int.from_bytes(node[9:17], "little")
    return 0, node[:end], node[end:]


def salt_of(root: Node) -> str | None:
    """The salt of a root; None if it has none."""
    return None if root[8] == 0 else root[17:].decode()
