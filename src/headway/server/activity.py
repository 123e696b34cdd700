"""The line of the log that says how busy the server is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from headway.wire.to_client import Snapshot

logger = logging.getLogger(__name__)

PERIOD_S = 10.0  # seconds between two lines


def activity(before: Snapshot, now: Snapshot, seconds: float) -> str | None:
    """What the engine did in the `seconds` between two snapshots, and its load at their end, in one line. None: it had
    nothing to do."""
    prompt_tokens = _since(before.num_prompt_tokens, now.num_prompt_tokens)
    tokens = _since(before.num_generation_tokens, now.num_generation_tokens)
    waiting = now.num_waiting + now.num_preparing  # as in the metrics
    if not (prompt_tokens or tokens or now.num_running or waiting):
        return None
    looked_up = _since(before.num_prefix_query_tokens, now.num_prefix_query_tokens)
    found = _since(before.num_prefix_hit_tokens, now.num_prefix_hit_tokens)
    parts = [
        f"in {prompt_tokens / seconds:,.1f} tokens/s",
        f"out {tokens / seconds:,.1f} tokens/s",
        f"running {now.num_running}",
        f"waiting {waiting}",
        f"KV {now.kv_cache_usage:.1%}",
        f"prefix hits {found / looked_up:.1%}" if looked_up else "prefix hits -",
    ]
    if preempted := _since(before.num_preemptions, now.num_preemptions):
        parts.append(f"preempted {preempted}")
    if now.paused:
        parts.append("paused")
    return ", ".join(parts)


def _since(before: int, now: int) -> int:
    """What was counted; nothing is known of it if one of several engines began anew meanwhile."""
    return max(0, now - before)


class ActivityReport:
    """Writes such a line every `period` seconds, for as long as there is something to say."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        *,
        period: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._period = period
        self._clock = clock
        self._before = snapshot()
        self._since = clock()

    async def watch(self) -> None:
        """Does not return."""
        while True:
            await asyncio.sleep(self._period)
            self.report()

    def report(self) -> None:
        """Say what was done since the last report."""
        now, at = self._snapshot(), self._clock()
        line = activity(self._before, now, at - self._since)
        self._before, self._since = now, at
        if line is not None:
            logger.info("%s", line)
