"""How much an engine has to do, from the numbers that it says."""

from __future__ import annotations

from headway.engine_choice import Load
from headway.scheduler.snapshot import Snapshot

TYPICAL_PROMPT = 256  # tokens that a waiting prompt counts as, before the engine has computed any


def load_of(snapshot: Snapshot) -> Load:
    """The load of an engine, as far as its numbers show it: prompts that wait count as the mean of what the engine has
    computed for a prompt."""
    waiting = snapshot.num_waiting + snapshot.num_preparing
    num_computed = snapshot.num_requests_added - waiting
    mean = snapshot.num_prefill_tokens / num_computed if num_computed > 0 else TYPICAL_PROMPT
    return Load(round(waiting * mean), snapshot.kv_cache_usage, snapshot.num_running)
