"""How a step's token budget is shared among prefills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from headway.config import SchedulerConfig
from headway.request import Request, Span
from headway.scheduler.state.encoder_cache import EncoderCache


def end_of_chunk(spans: Sequence[Span], start: int, end: int, limit: int, grain: int) -> int:
    """Where a chunk from `start` of at most `limit` tokens ends; `start` if there is no chunk.

    end: where the known tokens end. grain: in deterministic mode chunks end at its multiples, else it is 1.

    At the end of the known tokens if that is in reach; else at the last multiple of `grain` that cuts no span; and if
    no such multiple is in reach, at the last boundary of a span. The last is what keeps requests from waiting for
    ever: a limit of max(grain, longest span) always gets somewhere. Either a multiple is in reach, or a span starts
    before it does; and if that span starts right here, its end is in reach.
    """
    reach = start + limit
    if reach >= end:
        return end
    place = reach - reach % grain
    if not spans:
        return max(start, place)
    for span in reversed(spans):
        if span.start < place < span.end:
            place = span.start - span.start % grain
    if place > start:
        return place
    boundaries = (edge for span in reversed(spans) for edge in (span.end, span.start))
    return next((edge for edge in boundaries if start < edge <= reach), start)


def spans_near(spans: Sequence[Span], start: int, reach: int) -> Sequence[Span]:
    """The spans that matter for a chunk from `start` up to `reach` at most. A video may have hundreds of spans."""
    low, high = 0, len(spans)
    while low < high:  # the first that ends after `start`
        middle = (low + high) // 2
        if spans[middle].end > start:
            high = middle
        else:
            low = middle + 1
    while high < len(spans) and spans[high].start <= reach:
        high += 1
    return spans[low:high]


class _Extent(NamedTuple):
    """How far a chunk goes. end: the position after it. media: the spans in it that need encoder output. lacks_room:
    the encoder cache is why it does not go on."""

    end: int
    media: list[Span]
    lacks_room: bool


_NO_MEDIA: list[Span] = []


class _Capped(NamedTuple):
    """A long prompt with a chunk, as it was offered. spans: that its chunk may reach."""

    request: Request
    key: int
    start: int
    end: int
    spans: Sequence[Span]


class ChunkPlan:
    """The prefill chunks of one step; made anew for each pass.

    Requests are offered in the order in which they are to be served. A prompt with more than
    `config.long_prefill_tokens` tokens left is long: it gets no more than that, until `top_up` gives it the tokens that
    the others did not use. The cap always allows at least the shortest legal chunk. So the first request offered gets a
    chunk, if there are `config.smallest_chunk_budget` tokens. Exception: it waits for encoder space; then no later
    request may take encoder space.

    budget: tokens that are left.
    counts: key -> tokens of its chunk, in the order of offering; no zeros.
    """

    __slots__ = (
        "_capped",
        "_encoder",
        "_encoder_closed",
        "_grain",
        "_long_tokens",
        "_max_long",
        "_max_partial",
        "_num_long",
        "_num_partial",
        "budget",
        "counts",
    )

    def __init__(self, config: SchedulerConfig, encoder: EncoderCache, budget: int) -> None:
        self.budget = budget
        self.counts: dict[int, int] = {}
        self._encoder = encoder
        self._encoder_closed = False  # a request waits for space there
        self._grain = config.deterministic_chunk_size if config.deterministic else 1
        self._long_tokens = config.long_prefill_tokens
        self._max_partial = config.max_num_partial_prefills
        self._max_long = config.max_long_partial_prefills
        self._num_partial = 0  # chunks that do not complete the known tokens
        self._num_long = 0  # of these, the chunks of long prompts
        self._capped: list[_Capped] = []

    def offer(self, request: Request, key: int, start: int, end: int) -> int:
        """Tokens that a request's chunk gets for now; 0: none in this step. Ask once for each request.

        key: names the request in `counts`. start: its next token to compute. end: its number of known tokens.
        """
        assert key not in self.counts and start < end
        spans = spans_near(request.spans, start, start + self.budget)
        is_long = self._is_long(start, end)
        chunk = self._chunk(spans, start, end, self._limit(spans, start, is_long))
        if chunk.end == start:
            self._encoder_closed |= chunk.lacks_room
            return 0
        if chunk.end < end:
            if not self._may_be_partial(is_long):
                return 0
            self._num_partial += 1
            self._num_long += is_long
        self._take(request, key, start, chunk)
        if is_long and chunk.end < end:
            self._capped.append(_Capped(request, key, start, end, spans))
        return chunk.end - start

    def has_room_for(self, start: int, end: int) -> bool:
        """Whether `offer` would give a newcomer a chunk now, as far as tokens decide it: media are left out.

        A newcomer whose media must wait does so in its slot, where its turn comes before that of later ones.
        """
        is_long = self._is_long(start, end)
        if not is_long and end - start <= self.budget:
            return True
        reached = end_of_chunk((), start, end, self._limit((), start, is_long), self._grain)
        return reached == end or (reached > start and self._may_be_partial(is_long))

    def top_up(self, is_announced: Callable[[int], bool]) -> list[int]:
        """Give what is left to long prompts that were capped, in order. To be called when all have been offered.

        is_announced: whether another chunk of the step computes what follows the chunk with this key. Returns the keys
        of the chunks that are longer now.
        """
        longer = []
        for request, key, start, end, spans in self._capped:
            if not self.budget:
                break
            if is_announced(key):
                continue
            given = self.counts[key]
            chunk = self._chunk(spans, start, end, given + self.budget)
            self._take(request, key, start, chunk)  # never less than before: all that it needed is held
            longer.append(key)
            if chunk.end == end:
                self._num_partial -= 1
                self._num_long -= 1
        return longer

    def _is_long(self, start: int, end: int) -> bool:
        return 0 < self._long_tokens < end - start

    def _limit(self, spans: Sequence[Span], start: int, is_long: bool) -> int:
        """Tokens that a chunk may have before `top_up`."""
        if not is_long:
            return self.budget
        here = next((span.end - start for span in spans if span.start <= start < span.end), 0)
        return min(self.budget, max(self._long_tokens, self._grain, here))

    def _may_be_partial(self, is_long: bool) -> bool:
        if self._max_partial and self._num_partial >= self._max_partial:
            return False
        return not is_long or self._num_long < self._max_long

    def _chunk(self, spans: Sequence[Span], start: int, end: int, limit: int) -> _Extent:
        """The chunk of at most `limit` tokens, ending before the first span for which the encoder has no room."""
        chunk_end = end_of_chunk(spans, start, end, limit, self._grain)
        if not spans:
            return _Extent(chunk_end, _NO_MEDIA, False)
        media = [s for s in spans if s.num_encoder_tokens and s.start < chunk_end]
        num_fitting = self._encoder.count_fitting(media, 0 if self._encoder_closed else self._encoder.room)
        if num_fitting == len(media):
            return _Extent(chunk_end, media, False)
        chunk_end = end_of_chunk(spans, start, end, media[num_fitting].start - start, self._grain)
        return _Extent(chunk_end, [s for s in media if s.start < chunk_end], True)

    def _take(self, request: Request, key: int, start: int, chunk: _Extent) -> None:
        for span in chunk.media:
            granted = self._encoder.need(request.uid, span)
            assert granted, f"the encoder cache has no room for a span of request {request.request_id!r} after all"
        self.budget -= chunk.end - start - self.counts.get(key, 0)
        self.counts[key] = chunk.end - start
