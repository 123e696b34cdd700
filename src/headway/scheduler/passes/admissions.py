"""Which waiting requests get a slot, and with which blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.request import RequestStatus
from headway.scheduler.batch import Admission, IntArray
from headway.scheduler.effects import Pull
from headway.scheduler.passes.chunk_plan import ChunkPlan
from headway.scheduler.passes.headroom import Headroom
from headway.scheduler.passes.sharing import Sharing
from headway.scheduler.policies.policies import Policies
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.slot_pool import SlotHandle
from headway.scheduler.state.state import State

_WAITING = RequestStatus.WAITING  # looked up once: that costs half a microsecond in CPython 3.11
_NO_BLOCKS: IntArray = np.zeros(0, dtype=np.int32)
_NO_ROWS: NDArray[np.intp] = np.zeros(0, dtype=np.intp)


class BlockDemand(NamedTuple):
    """The blocks of a request's admission: cached ones, int32, and how many more to take."""

    cached: IntArray
    num_new: int


class Newcomer(NamedTuple):
    """What the executor must be told of a request that starts. blocks: its block table, int32."""

    handle: SlotHandle
    admission: Admission
    blocks: IntArray


class Admissions:
    """Admits waiting requests, and keeps what the next batch must tell the executor of them."""

    def __init__(self, state: State, moves: Moves, policies: Policies, sharing: Sharing) -> None:
        self._state = state
        self._moves = moves
        self._sharing = sharing
        self._policies = policies
        self._told: list[tuple[SlotHandle, Admission]] = []
        self._started: list[tuple[int, int]] = []
        self._pulls: list[tuple[int, Entry]] = []  # with the last step that may write to their blocks

    def admit(self, plan: ChunkPlan, decoding: NDArray[np.intp]) -> None:
        """Admit waiting requests, in order, as far as slots, blocks and the step's budget allow.

        A request that lacks blocks is passed by others, at most `max_bypass` times; then no request passes it. A long
        prompt is passed while too many long ones are under way. decoding: slots for which blocks are held in reserve.
        """
        headroom = self.headroom(decoding)
        while self._admit_some(plan, headroom):
            pass

    def admit_all(self) -> None:
        """Admit on a prefill engine. Its pass allocates nothing, so no step's budget limits an admission."""
        headroom = self.headroom(_NO_ROWS)
        while self._admit_some(None, headroom):
            pass

    def _admit_some(self, plan: ChunkPlan | None, headroom: Headroom) -> bool:
        """Go once along the head of the queue. True if a request was admitted and others may follow."""
        state, passed, num_admitted, pulls_wait = self._state, [], 0, False
        window = state.waiting.window() if state.slots.num_free_slots() else []
        if not window or headroom.shuts_out(window, state.pool.num_available):
            return False
        for entry in window:
            if not state.slots.num_free_slots() or (plan is not None and plan.budget <= 0):
                return False
            if (entry.pulls and pulls_wait) or not self._may_begin(entry, plan):
                pulls_wait |= entry.pulls  # no pull passes another: the larger one would wait for ever
                continue
            demand = self._demand(entry, headroom)
            if demand is None:
                if entry.num_bypassed >= state.config.max_bypass:
                    return False
                passed.append(entry)
                continue
            if plan is not None and not entry.pulls and self._sharing.waits(entry):
                continue
            self._grant(entry, demand, plan)
            num_admitted += 1
            for other in passed:
                other.num_bypassed += 1
            if passed and any(other.num_bypassed >= state.config.max_bypass for other in passed):
                return False
        return num_admitted > 0

    def reserve(self, entry: Entry, num_tokens: int, decoding: NDArray[np.intp], until: float) -> IntArray | None:
        """Slot and blocks for `num_tokens` tokens of a new request. Returns the block table, int32; None, and nothing
        is taken, if slot or blocks are lacking. until: seconds, the deadline to start it."""
        if not self._state.slots.num_free_slots():
            return None
        demand = self._demand_met(entry, num_tokens, self.headroom(decoding), newest=0)
        if demand is None:
            return None
        blocks, num_cached_tokens = self._take(entry, demand)
        self._moves.reserve(entry, blocks, num_cached_tokens, until)
        return blocks

    def start(self, entry: Entry, num_cached_tokens: int) -> None:
        """A reserved request starts after so many tokens: the next batch tells the executor."""
        self._moves.start(entry)
        self._tell_executor(entry, num_cached_tokens)

    def note_start(self, entry: Entry, num_cached_tokens: int) -> None:
        """A request starts for the first time. To be reported with the next result."""
        self._state.counters.start(entry.request, num_cached_tokens)
        self._started.append((entry.uid, num_cached_tokens))

    def can_begin(self, entry: Entry, plan: ChunkPlan) -> bool:
        """Whether a first chunk fits into the step. Cached tokens make a long prompt shorter; they are looked up only
        where that matters."""
        known, size = len(entry.tokens), self._state.config.block_size
        if plan.has_room_for(0, known):
            return True
        if not self._sharing.may_match_more(entry) and not plan.has_room_for(entry.num_matched * size, known):
            return False
        return plan.has_room_for(len(self._match(entry, self._sharing.newest)) * size, known)

    def demand_of(self, entry: Entry, num_tokens: int, newest: int = 0) -> BlockDemand:
        """The blocks for `num_tokens` tokens of a request, available or not. newest: the last step whose pending blocks
        are shared."""
        config, cached = self._state.config, self._match(entry, newest)
        limit = num_tokens if self._state.only_prefills else entry.limit  # P computes no output
        needed = self._policies.allocation.blocks_at_admission(config, num_tokens, limit)
        return BlockDemand(cached, needed - len(cached))

    def headroom(self, decoding: NDArray[np.intp]) -> Headroom:
        """What must be left for the requests in these slots, as things stand."""
        return Headroom(self._state, self._policies.reserve, decoding)

    def blocks_wanted(self, demand: BlockDemand) -> int:
        """Blocks that must be available: the new blocks, and the cached blocks to share that no request refers to."""
        return demand.num_new + (self._state.pool.num_idle(demand.cached) if len(demand.cached) else 0)

    def take_pulls(self, oldest_in_flight: int) -> list[Pull]:
        """The pulls that may begin now: all steps that may write to their blocks have been answered for."""
        waiting, self._pulls = self._pulls, []
        pulls: list[Pull] = []
        for after_step, entry in waiting:
            if entry.handle is None or entry.status is not RequestStatus.RECEIVING:
                continue  # it has ended, or does not wait for its KV any more
            if after_step >= oldest_in_flight:
                self._pulls.append((after_step, entry))
                continue
            entry.filled_from_outside = True
            table, num_blocks = self._state.table, self._state.config.blocks_for(len(entry.request.prompt))
            blocks = table.blocks_of(entry.slot)[:num_blocks].copy()
            pulls.append(Pull(entry.request, blocks, int(table.num_computed[entry.slot])))
        return pulls

    def take_newcomers(self) -> list[Newcomer]:
        """Requests that started since the last call and still have their slot."""
        told, self._told = self._told, []
        table = self._state.table
        return [
            Newcomer(handle, admission, table.blocks_of(handle.slot).copy())
            for handle, admission in told
            if table.owns(*handle)
        ]

    def take_started(self) -> list[tuple[int, int]]:
        """(uid, num_cached_tokens) of the requests that started for the first time since the last call and have not
        ended."""
        started, self._started = self._started, []
        return [start for start in started if start[0] in self._state.entries]

    def _may_begin(self, entry: Entry, plan: ChunkPlan | None) -> bool:
        """Whether a request may be admitted now, as far as slots and blocks are not concerned."""
        if entry.pulls and self._has_nothing_to_pull(entry):
            entry.pulls = False
        if entry.pulls:
            return not self._receives_enough(entry)
        return plan is None or self.can_begin(entry, plan)

    def _demand(self, entry: Entry, headroom: Headroom) -> BlockDemand | None:
        """The blocks for the known tokens of a request; None if they are lacking. A request that pulls shares published
        blocks alone, and gets a place for its first token: its KV does not come within a step."""
        if entry.pulls:
            return self._demand_met(entry, len(entry.tokens) + 1, headroom, newest=0)
        return self._demand_met(entry, len(entry.tokens), headroom, self._sharing.newest)

    def _grant(self, entry: Entry, demand: BlockDemand, plan: ChunkPlan | None) -> None:
        """Admit a request; its first chunk, if there is a plan."""
        blocks, num_cached_tokens = self._take(entry, demand)
        if entry.status is _WAITING:
            self.note_start(entry, num_cached_tokens)
        elif entry.num_preemptions:
            self._state.counters.resume(entry.request, len(entry.tokens), num_cached_tokens)
        if entry.pulls:
            until = self._state.now + self._state.config.receive_timeout
            self._moves.pull(entry, blocks, num_cached_tokens, until)
            self._pulls.append((self._state.last_step, entry))
            return
        self._moves.admit(entry, blocks, num_cached_tokens)
        self._tell_executor(entry, num_cached_tokens)
        if plan is not None:
            count = plan.offer(entry.request, entry.slot, num_cached_tokens, len(entry.tokens))
            if count:
                self._sharing.announce(entry, num_cached_tokens + count)

    def _has_nothing_to_pull(self, entry: Entry) -> bool:
        """Whether the cache has every block of a prompt but the one of its last token, which is computed anyway."""
        num_blocks = (len(entry.tokens) - 1) >> self._state.block_shift
        if num_blocks and self._sharing.may_match_more(entry):
            self._match(entry, newest=0)
        return entry.num_matched >= num_blocks or not num_blocks

    def _demand_met(self, entry: Entry, num_tokens: int, headroom: Headroom, newest: int) -> BlockDemand | None:
        """The blocks for `num_tokens` tokens of a request; None if they are lacking."""
        spare = self._state.pool.num_available - headroom.left_by(entry)
        if spare < 1:  # each request wants one at least, as the last token is always computed anew
            return None
        if entry.blocks_wanted > spare and not self._sharing.may_match_more(entry):
            return None
        demand = self.demand_of(entry, num_tokens, newest)
        wanted = self.blocks_wanted(demand)
        if wanted > spare:
            entry.blocks_wanted = wanted
            return None
        return demand

    def _match(self, entry: Entry, newest: int) -> IntArray:
        """The blocks of the known tokens that are cached, or pending for steps up to `newest`; none for a request that
        does not read the cache. The last token is always computed anew: its logits are needed."""
        state = self._state
        if not state.config.enable_prefix_caching:
            entry.num_matched = 0
            return _NO_BLOCKS
        max_blocks = (len(entry.tokens) - 1) >> state.block_shift if entry.request.reads_prefix_cache else 0
        root = state.prefix.root(entry.request.cache_salt)
        blocks, entry.node = state.prefix.match(entry.tokens.tobytes(), max_blocks, root, entry.media_keys, newest)
        entry.num_matched, entry.next_key = len(blocks), None
        return blocks

    def _take(self, entry: Entry, demand: BlockDemand) -> tuple[IntArray, int]:
        """Take the blocks of a demand that is met. Returns the block table, int32, and the number of cached tokens."""
        state = self._state
        if len(demand.cached):  # before more is taken: it could be evicted for that
            state.pool.share(demand.cached)
            blocks = np.append(demand.cached, state.pool.take(demand.num_new))
        else:
            blocks = state.pool.take(demand.num_new)
        num_cached_tokens = len(demand.cached) * state.config.block_size
        entry.blocks_wanted = entry.num_bypassed = 0
        return blocks, num_cached_tokens

    def _receives_enough(self, entry: Entry) -> bool:
        """Whether KV is on the way to so many blocks that this request must wait."""
        state, most = self._state, self._state.config.max_receiving_blocks
        if most is None:
            return False
        receiving = (state.table.status == int(RequestStatus.RECEIVING)).nonzero()[0]
        num_blocks = int(state.table.num_blocks[receiving].sum()) + state.leases.num_quarantined
        return num_blocks > 0 and num_blocks + state.config.blocks_for(len(entry.tokens)) > most

    def _tell_executor(self, entry: Entry, num_cached_tokens: int) -> None:
        assert entry.handle is not None
        admission = Admission(entry.slot, entry.request, entry.tokens, num_cached_tokens, entry.prompt_logprobs_from)
        self._told.append((entry.handle, admission))
