"""Blocks that belong to no request: a reader or a writer outside the device's steps may still touch them."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from headway.scheduler.batch import IntArray


class Holder(StrEnum):
    """Who holds a lease, and what ends it."""

    SENDER = "sender"  # P: it reads the blocks here; ended by it alone
    BORROWER = "borrower"  # P: D reads the blocks; also ended by the clock, as D asks whether its lease was valid
    RECEIVER = "receiver"  # D: a connector may write to the blocks; ended by it alone


# Looked up once: in CPython 3.11 a member of an enum costs half a microsecond, and every snapshot asks for these.
_BORROWER, _RECEIVER = Holder.BORROWER, Holder.RECEIVER


class Lease(NamedTuple):
    """blocks: int32. generation: of a borrower, see `Lending`. claimed: a borrower has asked for more time. began:
    seconds."""

    holder: Holder
    blocks: IntArray
    generation: int = 0
    claimed: bool = False
    began: float = 0.0


class Leases:
    """At most one lease per uid, in the order in which they began.

    num_claimed, num_unclaimed: leases of borrowers.
    """

    def __init__(self) -> None:
        self._by_uid: dict[int, Lease] = {}
        self._counts = dict.fromkeys(Holder, 0)
        self.num_claimed = self.num_unclaimed = 0

    def __len__(self) -> int:
        return len(self._by_uid)

    def __contains__(self, uid: int) -> bool:
        return uid in self._by_uid

    def items(self) -> list[tuple[int, Lease]]:
        """All leases by uid."""
        return list(self._by_uid.items())

    def of(self, uid: int, holder: Holder) -> Lease | None:
        """The lease of this uid, if it has this holder."""
        lease = self._by_uid.get(uid)
        return lease if lease is not None and lease.holder is holder else None

    def begin(self, uid: int, lease: Lease) -> None:
        """The references of its blocks are the lease's from here on."""
        assert uid not in self._by_uid, f"uid {uid} has a lease"
        self._by_uid[uid] = lease
        self._counts[lease.holder] += len(lease.blocks)
        self.num_unclaimed += _is_unclaimed(lease)

    def claim(self, uid: int) -> None:
        """A borrower wants it still."""
        lease = self._by_uid[uid]
        if _is_unclaimed(lease):
            self._by_uid[uid] = lease._replace(claimed=True)
            self.num_unclaimed -= 1
            self.num_claimed += 1

    def end(self, uid: int) -> IntArray:
        """Returns its blocks, int32, whose references are the caller's now."""
        lease = self._by_uid.pop(uid)
        self._counts[lease.holder] -= len(lease.blocks)
        self.num_unclaimed -= _is_unclaimed(lease)
        self.num_claimed -= lease.claimed
        return lease.blocks

    def oldest_unclaimed(self) -> int | None:
        """The uid of the first lease of a borrower that no D has claimed; None if there is none."""
        return next((uid for uid, lease in self._by_uid.items() if _is_unclaimed(lease)), None)

    @property
    def num_blocks(self) -> int:
        """Blocks that all leases hold."""
        return sum(self._counts.values())

    @property
    def num_lent(self) -> int:
        """Blocks that borrowers hold."""
        return self._counts[_BORROWER]

    @property
    def num_quarantined(self) -> int:
        """Blocks of former requests that a connector may still write to."""
        return self._counts[_RECEIVER]


def _is_unclaimed(lease: Lease) -> bool:
    return lease.holder is Holder.BORROWER and not lease.claimed
