"""Counts the parts of a JSON text as it comes, so that too many are refused before objects are made of them."""

from __future__ import annotations

from headway.server.errors import ApiError

MAX_CONTAINERS = 32_768  # lists and objects
MAX_STRINGS = 131_072  # keys included
MAX_KEYS = 65_536
MAX_VALUES = 2**20

_STRUCTURE = b'"[{,:'
_REST = bytes(byte for byte in range(256) if byte not in _STRUCTURE)


class JsonCensus:
    """The number of lists and objects, of strings, of keys and of values in the pieces so far. Strings are not looked
    into."""

    def __init__(self) -> None:
        self.num_containers = 0
        self.num_keys = 0
        self.num_values = 1
        self._num_quotes = 0
        self._escape = b""  # a backslash that ends a piece escapes the first character of the next

    @property
    def num_strings(self) -> int:
        return (self._num_quotes + 1) // 2

    def add(self, piece: bytes) -> None:
        """Raises ApiError as soon as there are too many."""
        piece = self._escape + piece
        self._escape = b"\\" if (len(piece) - len(piece.rstrip(b"\\"))) % 2 else b""
        piece = piece.removesuffix(self._escape)
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.translate(None, _REST).split(b'"')
        outside = b"".join(parts[self._num_quotes % 2 :: 2])
        self._num_quotes += len(parts) - 1
        opened = outside.count(b"[") + outside.count(b"{")
        self.num_containers += opened
        self.num_keys += outside.count(b":")
        self.num_values += opened + outside.count(b",")
        for what, count, most in (
            ("lists and objects", self.num_containers, MAX_CONTAINERS),
            ("strings", self.num_strings, MAX_STRINGS),
            ("keys", self.num_keys, MAX_KEYS),
            ("values", self.num_values, MAX_VALUES),
        ):
            if count > most:
                raise ApiError(
                    413, f"the body has more than {most} {what}, which is the limit: send fewer items in one request"
                )
