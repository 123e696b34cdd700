"""A bound on the bytes of all bodies that are in memory at the same time."""

from __future__ import annotations

from headway.server.errors import RETRY_AFTER_S, ApiError

SMALL = 65_536  # bytes of a body
MAX_SMALL = 128 * 2**20  # bytes of all bodies that are no longer than SMALL
MAX_LARGE = 256 * 2**20  # bytes of all longer ones


class BodyBudget:
    """Bodies up to SMALL have a bound of their own, so that large bodies shut no small body out."""

    def __init__(self, max_small: int = MAX_SMALL, max_large: int = MAX_LARGE) -> None:
        self._most = (max_small, max_large)
        self._held = [0, 0]

    @property
    def held(self) -> int:
        """The bytes of all bodies."""
        return sum(self._held)

    def resize(self, before: int, after: int) -> None:
        """A body of `before` bytes has `after` bytes from now on; 0: there is no body. Raises ApiError if it grows
        beyond the bound; then it stays as it was."""
        held, kind = self._held.copy(), after > SMALL
        held[before > SMALL] -= before
        held[kind] += after
        if after > before and held[kind] > self._most[kind]:
            raise ApiError(
                503,
                f"the bodies of all requests that are being read have more than {self._most[kind]} bytes together, "
                "which is the limit: try again later, or send shorter bodies",
                code="too_many_body_bytes",
                retry_after=RETRY_AFTER_S,
            )
        self._held = held
