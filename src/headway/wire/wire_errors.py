"""Messages that cannot be taken: what is wrong with one, and how many there were."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class WireError(ValueError):
    """These bytes are no message that this side of the wire can take; the text says why, in one line."""


class WireErrors:
    """Counts the messages that one side of the wire has dropped. Only one thread notes them.

    The first is logged, then each time that their number has doubled: a flood of them fills no log.

    side: which side dropped them, "engine" or "client"; the label of the metric.
    """

    def __init__(self, side: str) -> None:
        self.side = side
        self.count = 0

    def note(self, error: WireError) -> None:
        """One more message was dropped, because of `error`."""
        self.count += 1
        if self.count & (self.count - 1) == 0:
            logger.warning("a message to the %s was dropped, %d so far: %s", self.side, self.count, str(error)[:200])
