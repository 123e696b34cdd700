"""The far side of requests that pull or lend the KV of their prompt: connectors that are late, slow, or dead.

A connector may write to the blocks of a pull at any time until it says that it has stopped, also long after the request
has ended. A borrower may read at any time, and asks at the end whether its lease was there.
"""

from __future__ import annotations

from dataclasses import replace

from headway.request import Transfer
from headway.simulation.kv_ledger import KVLedger
from headway.simulation.shapes import Shape

OUTCOMES = ("ok, and P's token", "ok", "failed")


class Connector(KVLedger):
    """A pretended far side. One method for each event."""

    # -- events: D -----------------------------------------------------------------------------------------------

    def pull(self, *args: int) -> None:
        """Add a request whose KV comes from P. args: a shape."""
        self._add_moving(Shape(*args), Transfer.PULL)

    def carry(self, uid: int, num_blocks: int) -> None:
        """KV is written to the first blocks of a pull, whatever has become of the request."""
        pull = self.pulls.get(uid)
        if pull is not None:
            size = self._config.block_size
            start = pull.num_cached_tokens // size
            self._device.write(pull.request, pull.blocks, pull.num_cached_tokens, (start + num_blocks) * size)

    def received(self, uid: int, outcome: int) -> None:
        """The connector has stopped. outcome: one of OUTCOMES."""
        pull = self.pulls.get(uid)
        if pull is None or uid in self.quarantined or outcome == 2:
            self._receive_done(uid, None, "P is gone")
            return
        self._device.write(pull.request, pull.blocks, pull.num_cached_tokens, len(pull.request.prompt))
        self._receive_done(uid, self._core.history.live[uid].answer[0] if outcome == 0 else None, None)

    # -- events: P -----------------------------------------------------------------------------------------------

    def lend(self, *args: int) -> None:
        """Add a request whose KV is lent to D. args: a shape."""
        self._add_moving(Shape(*args), Transfer.LEND)

    def consume(self, uid: int, generation: int) -> None:
        """D has read all. generation: how much the one it names differs from the right one."""
        one = self.lent.get(uid)
        self._consume(uid, generation + (one.lending.generation if one is not None else 0))

    def renew(self, *uids: int) -> None:
        """D wants these leases still."""
        self._renew(uids)

    def release(self, *uids: int) -> None:
        """D does not want these leases any more."""
        self._release(uids)

    def _add_moving(self, shape: Shape, transfer: Transfer) -> None:
        history = self._core.history
        if shape.uid not in history.ended and shape.uid not in history.live:
            self._add(shape, replace(shape._replace(prepare=0).request(self._core.now), transfer=transfer))
