"""Who gets a slot, and with which blocks."""

from __future__ import annotations

import numpy as np

from headway.request import RequestStatus
from headway.scheduler.allocation import Allocation
from headway.scheduler.batch import Admission, IntArray
from headway.scheduler.entry import Entry
from headway.scheduler.slots import SlotHandle
from headway.scheduler.state import State

_NO_BLOCKS: IntArray = np.zeros(0, dtype=np.int32)


class Admissions:
    """Lets waiting requests in, and keeps what the next batch must tell the executor of them."""

    def __init__(self, state: State, allocation: Allocation) -> None:
        self._state = state
        self._allocation = allocation
        self._news: list[tuple[SlotHandle, Admission, IntArray]] = []
        self._started: list[tuple[int, int]] = []

    def admit_head(self, num_decoding: int) -> bool:
        """Give slot and blocks to the first in line. False, and nothing is taken, if they are lacking."""
        state = self._state
        entry = state.waiting.head()
        if entry is None or not state.slots.available_batch():
            return False
        available = state.pool.num_available - self._allocation.reserve(num_decoding)
        if entry.blocks_wanted > available:
            return False
        cached = self._match(entry)
        needed = self._allocation.blocks_at_admission(state.config, len(entry.tokens), entry.limit) - len(cached)
        wanted = needed + state.pool.num_idle(cached)
        if wanted > available:
            entry.blocks_wanted = wanted
            return False
        state.waiting.pop()
        state.pool.share(cached)
        self._install(entry, np.append(cached, state.pool.take(needed)), len(cached) * state.config.block_size)
        return True

    def take_news(self) -> list[tuple[SlotHandle, Admission, IntArray]]:
        """(slot, admission, block table) of all who came since the last call and are still there."""
        news, self._news = self._news, []
        return [new for new in news if self._state.table.owns(*new[0])]

    def take_started(self) -> list[tuple[int, int]]:
        """(uid, num_cached_tokens) of all admitted for the first time since the last call who have not ended."""
        started, self._started = self._started, []
        return [one for one in started if one[0] in self._state.entries]

    def _match(self, entry: Entry) -> IntArray:
        """The cached blocks of the known tokens. The last token is always computed anew: its logits are needed."""
        state = self._state
        if not state.config.enable_prefix_caching:
            return _NO_BLOCKS
        max_blocks = (len(entry.tokens) - 1) >> state.block_shift
        root = state.prefix.root(entry.request.cache_salt)
        blocks, entry.node = state.prefix.match(entry.tokens.tobytes(), max_blocks, root)
        return blocks

    def _install(self, entry: Entry, blocks: IntArray, num_cached_tokens: int) -> None:
        request, counters = entry.request, self._state.counters
        if entry.status is RequestStatus.WAITING:
            self._started.append((request.uid, num_cached_tokens))
        handle = self._state.install(entry, blocks, num_cached_tokens)
        entry.blocks_wanted = 0
        self._news.append((handle, Admission(handle.slot, request, entry.tokens, num_cached_tokens), blocks))
        counters.prefix_query_tokens += len(entry.tokens)
        counters.prefix_hit_tokens += num_cached_tokens
