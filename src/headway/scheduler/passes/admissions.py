"""Who gets a slot, and with which blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.config import Role
from headway.request import RequestStatus
from headway.scheduler.batch import Admission, IntArray
from headway.scheduler.passes.chunk_plan import ChunkPlan
from headway.scheduler.policies.policies import Policies
from headway.scheduler.policies.reserve import Reserve
from headway.scheduler.policies.victims import displaceable
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.slot_pool import SlotHandle
from headway.scheduler.state.state import State

_WAITING = RequestStatus.WAITING  # looked up once; see `slots`
_NO_BLOCKS: IntArray = np.zeros(0, dtype=np.int32)
_NO_ROWS: NDArray[np.intp] = np.zeros(0, dtype=np.intp)


class Room(NamedTuple):
    """Blocks that a request could have: cached ones, int32, and how many more to take."""

    cached: IntArray
    num_new: int


class News(NamedTuple):
    """What the executor must be told of a newcomer. blocks: its block table, int32."""

    handle: SlotHandle
    admission: Admission
    blocks: IntArray


class Kept:
    """Blocks that a newcomer must leave for those that decode; good for one pass.

    decoding: slots of those, intp.
    """

    def __init__(self, state: State, reserve: Reserve, decoding: NDArray[np.intp]) -> None:
        self._table = state.table
        self._reserve = reserve
        self._decoding = decoding
        self._for_all: int | None = None
        self._lowest: int | None = None  # priority of those that run, where they may be displaced at all
        if state.config.enable_priority_preemption and state.priorities:
            self._lowest = max(state.priorities)

    def from_(self, entry: Entry) -> int:
        """How many this one must leave. For those that it may displace none are kept: they make way if blocks are
        short."""
        if not len(self._decoding):
            return 0
        if self._may_displace(entry):
            stay = ~displaceable(self._table, self._decoding, entry)
            return self._reserve.blocks(self._table, self._decoding[stay])
        if self._for_all is None:
            self._for_all = self._reserve.blocks(self._table, self._decoding)
        return self._for_all

    def shuts_out(self, entries: Sequence[Entry], num_available: int) -> bool:
        """Whether that leaves nothing for any of these, of so many blocks; a look at one of them tells mostly."""
        return self.from_(entries[0]) >= num_available and not any(map(self._may_displace, entries))

    def _may_displace(self, entry: Entry) -> bool:
        return self._lowest is not None and self._lowest > entry.request.priority


class Admissions:
    """Lets waiting requests in, and keeps what the next batch must tell the executor of them."""

    def __init__(self, state: State, policies: Policies) -> None:
        self._state = state
        self._policies = policies
        self._news: list[News] = []
        self._started: list[tuple[int, int]] = []

    def admit(self, plan: ChunkPlan, decoding: NDArray[np.intp]) -> None:
        """Let in, in order, whom slots, blocks and the step's budget allow.

        One that lacks blocks is passed by others, but no more than `max_bypass` times: then nobody passes it. One that
        is long is passed while too many long ones are under way. decoding: slots for which blocks are held in reserve.
        """
        kept = self.kept(decoding)
        while self._admit_some(plan, kept):
            pass

    def admit_all(self) -> None:
        """The same on a prefill instance, whose pass allocates nothing: it is not asked what fits into a step."""
        kept = self.kept(_NO_ROWS)
        while self._admit_some(None, kept):
            pass

    def _admit_some(self, plan: ChunkPlan | None, kept: Kept) -> bool:
        """Go once along the head of the queue. True if somebody was let in and others may follow."""
        state, passed, num_let_in = self._state, [], 0
        window = state.waiting.window() if state.slots.num_free_slots() else []
        if not window or kept.shuts_out(window, state.pool.num_available):
            return False
        for entry in window:
            if not state.slots.num_free_slots() or (plan is not None and plan.budget <= 0):
                return False
            if plan is not None and not self.can_begin(entry, plan):
                continue
            room = self._room(entry, len(entry.tokens), kept)
            if room is None:
                if entry.num_bypassed >= state.config.max_bypass:
                    return False
                passed.append(entry)
                continue
            self._let_in(entry, room)
            num_let_in += 1
            if plan is not None:
                start = len(room.cached) * state.config.block_size
                plan.offer(entry.request, entry.slot, start, len(entry.tokens))
            for other in passed:
                other.num_bypassed += 1
            if any(other.num_bypassed >= state.config.max_bypass for other in passed):
                return False
        return num_let_in > 0

    def reserve(self, entry: Entry, num_tokens: int, decoding: NDArray[np.intp]) -> IntArray | None:
        """Slot and blocks for so many tokens of a request that is not queued. None, and nothing is taken, if they are
        lacking. Returns the block table, int32."""
        if not self._state.slots.num_free_slots():
            return None
        room = self._room(entry, num_tokens, self.kept(decoding))
        return None if room is None else self._seat(entry, room)

    def announce(self, entry: Entry, num_cached_tokens: int) -> None:
        """A seated request starts: the next batch tells the executor."""
        assert entry.handle is not None
        blocks = self._state.table.blocks_of(entry.slot).copy()
        admission = Admission(entry.slot, entry.request, entry.tokens, num_cached_tokens)
        self._news.append(News(entry.handle, admission, blocks))
        self._state.start(entry)

    def note_start(self, uid: int, num_cached_tokens: int) -> None:
        """To be reported with the next result."""
        self._started.append((uid, num_cached_tokens))

    def can_begin(self, entry: Entry, plan: ChunkPlan) -> bool:
        """Whether a first chunk fits into the step. What is cached of a long prompt makes it shorter; that is looked up
        only where it matters."""
        known, size = len(entry.tokens), self._state.config.block_size
        if plan.has_room_for(0, known):
            return True
        if not self._goes_on(entry) and not plan.has_room_for(entry.num_matched * size, known):
            return False
        return plan.has_room_for(len(self._match(entry)) * size, known)

    def room_for(self, entry: Entry, num_tokens: int) -> Room:
        """The blocks that so many tokens of a request take, whether they are there or not."""
        config, cached = self._state.config, self._match(entry)
        limit = num_tokens if config.role is Role.PREFILL else entry.limit  # P computes no output
        needed = self._policies.allocation.blocks_at_admission(config, num_tokens, limit)
        return Room(cached, needed - len(cached))

    def kept(self, decoding: NDArray[np.intp]) -> Kept:
        """What must be left for these, as things stand."""
        return Kept(self._state, self._policies.reserve, decoding)

    def wanted(self, room: Room) -> int:
        """Blocks that must be available for that: those to take, and the cached ones that nobody uses."""
        return room.num_new + (self._state.pool.num_idle(room.cached) if len(room.cached) else 0)

    def take_news(self) -> list[News]:
        """Of all who came since the last call and are still there."""
        news, self._news = self._news, []
        return [new for new in news if self._state.table.owns(*new.handle)]

    def take_started(self) -> list[tuple[int, int]]:
        """(uid, num_cached_tokens) of all admitted for the first time since the last call who have not ended."""
        started, self._started = self._started, []
        return [one for one in started if one[0] in self._state.entries]

    def _room(self, entry: Entry, num_tokens: int, kept: Kept) -> Room | None:
        """Where a request could have its blocks; None if they are lacking."""
        spare = self._state.pool.num_available - kept.from_(entry)
        if spare < 1:  # everybody wants one at least, as the last token is always computed anew
            return None
        if entry.blocks_wanted > spare and not self._goes_on(entry):
            return None
        room = self.room_for(entry, num_tokens)
        wanted = self.wanted(room)
        if wanted > spare:
            entry.blocks_wanted = wanted
            return None
        return room

    def _match(self, entry: Entry) -> IntArray:
        """The cached blocks of the known tokens. The last token is always computed anew: its logits are needed."""
        state = self._state
        if not state.config.enable_prefix_caching:
            entry.num_matched = 0
            return _NO_BLOCKS
        max_blocks = (len(entry.tokens) - 1) >> state.block_shift
        root = state.prefix.root(entry.request.cache_salt)
        blocks, entry.node = state.prefix.match(entry.tokens.tobytes(), max_blocks, root, entry.media_keys)
        entry.num_matched, entry.sought = len(blocks), None
        return blocks

    def _goes_on(self, entry: Entry) -> bool:
        """Whether the cache may have more of a request than at the last look: others have computed it meanwhile."""
        if entry.num_matched < 0:
            return True
        if entry.sought is None:
            size = self._state.config.block_size
            start = entry.num_matched * size
            more = start + size < len(entry.tokens)
            entry.sought = entry.node + entry.tokens[start : start + size].tobytes() if more else b""
        return entry.sought in self._state.prefix

    def _seat(self, entry: Entry, room: Room) -> IntArray:
        state = self._state
        if len(room.cached):  # before more is taken: it could be evicted for that
            state.pool.share(room.cached)
            blocks = np.append(room.cached, state.pool.take(room.num_new))
        else:
            blocks = state.pool.take(room.num_new)
        num_cached_tokens = len(room.cached) * state.config.block_size
        state.seat(entry, blocks, num_cached_tokens)
        entry.blocks_wanted = entry.num_bypassed = 0
        state.counters.prefix_query_tokens += len(entry.tokens)
        state.counters.prefix_hit_tokens += num_cached_tokens
        return blocks

    def _let_in(self, entry: Entry, room: Room) -> None:
        num_cached_tokens = len(room.cached) * self._state.config.block_size
        if entry.status is _WAITING:
            self.note_start(entry.uid, num_cached_tokens)
        self._state.waiting.take(entry)
        self._seat(entry, room)
        self.announce(entry, num_cached_tokens)
