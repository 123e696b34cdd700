"""A device that knows the right KV. It computes no model, and notices when a request would read foreign KV.

The "KV" of a position is the digest (see `digests`) of all tokens and images up to that position, shifted by a number
for the weights. A place of the KV cache holds the right value only if the whole prefix is right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.config import SchedulerConfig
from headway.executor.made_up_logprobs import MadeUpLogprobs
from headway.request import Request, Span
from headway.scheduler.batch import Admission, Batch, IntArray, StepResult
from headway.simulation.digests import TERM_OF_TOKEN, VOCAB, Words, digests_of, mix, mix_one, multipliers_for

_RUBBISH = np.uint64(1)
NO_TOKEN = -1  # the token of a row whose step or encoder output is worthless


class DeviceError(AssertionError):
    """A batch breaks the contract, or a request would read foreign KV. rule: the broken rule."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class _Encoded(NamedTuple):
    """The output of an encoder. size: encoder tokens. step_id, weights: the step and the weights that made it."""

    size: int
    step_id: int
    weights: int


class _Row(NamedTuple):
    """A row of a step. reads, writes: places of the cache. tokens: where its tokens are in the result."""

    reads: NDArray[np.intp]
    writes: NDArray[np.intp]
    tokens: slice


class _Unsettled(NamedTuple):
    """A step without a result yet. places: the places that it writes. tokens: the tokens of its result.

    media: (digest of an image, places that the row with this image writes, where the row's tokens are).
    rows: what each row reads and writes.
    """

    places: NDArray[np.intp]
    tokens: IntArray
    media: list[tuple[bytes, NDArray[np.intp], slice]]
    rows: list[_Row]


class OracleDevice:
    """Runs batches like an executor, from batches alone, and checks every place that a step reads.

    A step is computed when it is launched. Its result decides whether the KV that it wrote is valid: `done` or `spoil`.

    KV and encoder outputs of former weights are as foreign as the KV of another tenant.

    With drafts a decode writes to the places of all of them; what is not accepted is rubbish. accepts: how many tokens
    each decode of a batch gives, int32 [num_decodes], 0 to 1 + num_speculative_tokens; as a rule drawn from what the
    row computes. Without end: tokens after a stop token and after the limit come too.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        width = config.blocks_per_request * config.block_size
        self._columns = np.arange(width)
        self._offsets = np.arange(config.block_size)
        self._multipliers = multipliers_for(width)
        self._last_step = 0
        self._weights = 0
        self._kept: dict[int, int] = {}
        self.accepts: Callable[[Batch], IntArray] = self._drawn
        self.lose()

    def lose(self) -> None:
        """Lose all contents of the device."""
        config, width = self._config, len(self._columns)
        self._tables = np.zeros((config.max_num_seqs, config.blocks_per_request), dtype=np.intp)
        self._kv: Words = np.zeros(config.num_blocks * config.block_size, dtype=np.uint64)
        self._writers = np.zeros(len(self._kv), dtype=np.int64)  # the last step that wrote each place
        self._wanted: Words = np.zeros((config.max_num_seqs, width), dtype=np.uint64)  # right KV of the known tokens
        self._shift: Words = np.zeros(config.max_num_seqs, dtype=np.uint64)  # the number that the weights add to it
        self._known = np.zeros(config.max_num_seqs, dtype=np.int64)
        self._limit = np.zeros(config.max_num_seqs, dtype=np.int64)  # total tokens; there are no places beyond
        self._num_cached = np.zeros(config.max_num_seqs, dtype=np.int64)  # cached tokens at admission
        self._spans: list[tuple[Span, ...]] = [()] * config.max_num_seqs
        self._prompt_logprobs = MadeUpLogprobs(config.max_num_seqs, VOCAB)
        self._encoded: dict[bytes, _Encoded] = {}
        self._unsettled: dict[int, _Unsettled] = {}

    def run(self, batch: Batch) -> StepResult:
        """Compute one step. The KV that it writes is visible to later steps. Raises DeviceError."""
        in_order = batch.step_id == self._last_step + 1 or not self._last_step  # a core may be older than its device
        _require(in_order, f"step {batch.step_id} after step {self._last_step}")
        self._last_step = batch.step_id
        self._tables[batch.table_slots, batch.table_columns] = batch.table_blocks
        beginning = set(self._tables[batch.slots[batch.positions == 0], 0].tolist())
        for admission in batch.admissions:
            self._admit(admission, beginning)
            self._prompt_logprobs.admit(admission)
        self._encode(batch)
        slots = batch.slots.astype(np.intp)
        starts, ends = batch.positions, batch.positions + batch.num_new_tokens
        self._check(batch, ends, self._known[slots])
        tokens, counts = self._sample_all(batch, slots, ends)
        right_up_to, ends = ends.copy(), ends.copy()
        if self._config.num_speculative_tokens:
            decodes = slice(batch.num_decodes)
            right_up_to[decodes] = starts[decodes] + counts[decodes]
            last_place = starts[decodes] + self._config.tokens_per_decode
            ends[decodes] = np.minimum(last_place, self._limit[slots[decodes]])
        columns = self._columns[: -(-int(ends.max()) // self._config.block_size) * self._config.block_size]
        blocks = self._tables[slots, : len(columns) // self._config.block_size]
        places = (blocks[:, :, None] * self._config.block_size + self._offsets).reshape(len(slots), -1)
        wanted = self._wanted[slots, : len(columns)]
        reads = columns < starts[:, None]
        writes = (columns < ends[:, None]) & ~reads
        written = places[writes]
        rubbish = _RUBBISH + np.arange(len(slots), dtype=np.uint64)[:, None]
        writing = np.where(columns < right_up_to[:, None], wanted, rubbish)[writes]
        found = self._kv[places]
        if self._config.reads_same_step:  # a row may read what another row of this step writes
            after = self._kv.copy()
            after[written] = writing
            found = after[places]
        wrong = reads & (found != wanted)
        if wrong.any():
            row, position = (int(i) for i in np.argwhere(wrong)[0])
            raise DeviceError("foreign KV", self._complaint(batch, row, position, int(places[row, position])))
        _require(int(written.min()) >= self._config.block_size, "a row writes to the padding block")
        self._kv[written] = writing
        _require(bool((self._kv[written] == writing).all()), "two rows of a step write to one place")
        self._writers[written] = batch.step_id
        after_row = np.cumsum(counts).tolist()
        of_row = [slice(after - count, after) for after, count in zip(after_row, counts.tolist(), strict=True)]
        rows = [_Row(places[row, reads[row]], places[row, writes[row]], of_row[row]) for row in range(len(batch))]
        self._unsettled[batch.step_id] = _Unsettled(written, tokens, self._media(batch, places, of_row), rows)
        told = counts[batch.samples]
        return StepResult(
            batch.step_id,
            tokens,
            counts=None if (told == 1).all() else told,
            prompt_logprobs=self._prompt_logprobs.judge(batch),
        )

    def done(self, step_id: int) -> None:
        """The step has succeeded."""
        self._unsettled.pop(step_id, None)

    def spoil(self, step_id: int) -> None:
        """The step has failed. The places that it wrote last are worthless.

        Rows of later steps in flight that use an image of the failed step, or read what it wrote, are worthless too:
        they give NO_TOKEN, and what they wrote is worthless.
        """
        failed = self._unsettled.pop(step_id, None)
        if failed is None:
            return
        self._spoil_places(failed.places, step_id)
        lost = {digest for digest, encoded in self._encoded.items() if encoded.step_id == step_id}
        for digest in lost:
            del self._encoded[digest]
        for later_id, later in self._unsettled.items():
            for digest, places, of_row in later.media:
                if digest in lost:
                    self._spoil_places(places, later_id)
                    later.tokens[of_row] = NO_TOKEN
        for later_id, later in self._unsettled.items():
            for row in later.rows:
                if not self._kv[row.reads].all():  # no digest is 0, a spoiled place is
                    self._spoil_places(row.writes, later_id)
                    later.tokens[row.tokens] = NO_TOKEN

    def change_weights(self, holders: Iterable[int] = ()) -> None:
        """Use new weights from now on. holders: uids that hold blocks now, and may go on with them."""
        for uid in holders:
            self._kept.setdefault(uid, self._weights)
        self._weights += 1

    def keep_only(self, holders: Collection[int]) -> None:
        """Requests other than `holders` have released the blocks that they held at a change of weights."""
        self._kept = {uid: weights for uid, weights in self._kept.items() if uid in holders}

    def receive(self, request: Request, blocks: IntArray, num_cached_tokens: int) -> None:
        """The KV of a prompt arrives in its reserved blocks, outside the stream of steps.

        The KV of the first `num_cached_tokens` is there already.
        """
        self.write(request, blocks, num_cached_tokens, len(request.prompt))

    def write(self, request: Request, blocks: IntArray, start: int, end: int) -> None:
        """The KV of the tokens of a prompt from `start` up to `end` is written to its blocks, outside the stream of
        steps."""
        end = min(end, len(request.prompt))
        if end <= start:
            return
        places = self._places_of(blocks, end)
        arriving = places[start:]
        for step_id, step in self._unsettled.items():
            if np.isin(arriving, step.places).any():
                raise DeviceError(
                    "two writers", f"KV of request {request.uid} arrives where step {step_id} still writes"
                )
        self._kv[arriving] = self._kv_of(request, request.prompt, self._weights_of(request, places))[start:end]
        self._writers[arriving] = 0

    def scribble(self, blocks: IntArray, start: int) -> None:
        """Rubbish is written to the places of these blocks from `start` on, outside the stream of steps."""
        places = self._places_of(blocks, len(blocks) * self._config.block_size)[start:]
        self._kv[places] = _RUBBISH
        self._writers[places] = 0

    def prompt_at(self, request: Request, blocks: IntArray, num_tokens: int) -> Words:
        """The contents of these blocks, uint64 [num_tokens], which must be the KV of the first tokens of the prompt,
        of steps that have succeeded. Raises DeviceError."""
        places = self._places_of(blocks, num_tokens)
        for step_id, step in self._unsettled.items():
            if np.isin(places, step.places).any():
                raise DeviceError("read too early", f"KV of request {request.uid} that step {step_id} writes")
        held = self._kv[places]
        right = self._kv_of(request, request.prompt, self._weights_of(request, places))[:num_tokens]
        if (held != right).any():
            where = f"position {np.flatnonzero(held != right)[0]} of {num_tokens}"
            raise DeviceError("foreign KV", f"the blocks of request {request.uid} do not hold its KV at {where}")
        return held

    def send(self, request: Request, blocks: IntArray, num_tokens: int) -> Words:
        """The contents of these blocks, uint64 [num_tokens], which must be the KV of the prompt. Raises DeviceError."""
        _require(num_tokens == len(request.prompt), f"{num_tokens} tokens to send, of {len(request.prompt)}")
        return self.prompt_at(request, blocks, num_tokens)

    def read(self, blocks: IntArray, num_tokens: int) -> Words:
        """The contents of these blocks now, uint64 [num_tokens]."""
        return self._kv[self._places_of(blocks, num_tokens)]

    def places_in(self, blocks: IntArray) -> NDArray[np.intp]:
        """All places of these blocks, in order."""
        return self._places_of(blocks, len(blocks) * self._config.block_size)

    def load(self, places: NDArray[np.intp]) -> Words:
        """The contents of these places now, whatever they are."""
        return self._kv[places]

    def store(self, places: NDArray[np.intp], words: Words) -> None:
        """A connector writes to these places, outside the stream of steps."""
        for step_id, step in self._unsettled.items():
            if np.isin(places, step.places).any():
                raise DeviceError("two writers", f"KV arrives where step {step_id} still writes")
        self._kv[places] = words
        self._writers[places] = 0

    def _admit(self, admission: Admission, beginning: set[int]) -> None:
        """beginning: first blocks of prompts that rows of this step begin with, which hold a former owner's KV yet."""
        slot, request, tokens = admission.slot, admission.request, admission.tokens
        num_cached, prompt = admission.num_cached_tokens, request.prompt
        _require(0 <= num_cached < len(tokens), f"{num_cached} of {len(tokens)} known tokens are cached")
        _require(
            bool((tokens[: len(prompt)] == prompt).all()), f"request {request.uid} is admitted with foreign tokens"
        )
        weights = self._weights
        if num_cached and int(self._tables[slot, 0]) not in beginning:
            weights = self._weights_of(request, self._tables[slot, :1] * self._config.block_size)
        self._wanted[slot, : len(tokens)] = self._kv_of(request, tokens, weights)
        self._shift[slot] = mix_one(weights)
        self._known[slot] = len(tokens)
        self._limit[slot] = len(prompt) + request.max_tokens
        self._num_cached[slot] = num_cached
        self._spans[slot] = request.spans

    def _encode(self, batch: Batch) -> None:
        for digest in batch.encoder_evicted:
            self._encoded.pop(digest, None)
        for _, span in batch.encode:
            _require(span.digest not in self._encoded, "an image is encoded whose encoder output is kept")
            self._encoded[span.digest] = _Encoded(span.num_encoder_tokens, batch.step_id, self._weights)
        size, budget = sum(encoded.size for encoded in self._encoded.values()), self._config.encoder_budget
        _require(size <= budget, f"{size} encoder tokens kept, of {budget}")

    def _media(
        self, batch: Batch, places: NDArray[np.intp], of_row: list[slice]
    ) -> list[tuple[bytes, NDArray[np.intp], slice]]:
        """The encoder outputs that the rows of a batch use, all of which must be there. of_row: where their tokens
        are."""
        used: list[tuple[bytes, NDArray[np.intp], slice]] = []
        for row in range(batch.num_decodes, len(batch)):
            if not (spans := self._spans[batch.slots[row]]):
                continue
            start, end = int(batch.positions[row]), int(batch.positions[row] + batch.num_new_tokens[row])
            for span in spans:
                if span.num_encoder_tokens and span.start < end and span.end > start:
                    encoded = self._encoded.get(span.digest)
                    _require(encoded is not None, f"chunk [{start}, {end}) needs an image that is not encoded")
                    fresh = encoded is not None and encoded.weights == self._weights
                    _require(fresh, f"chunk [{start}, {end}) needs an image that former weights encoded")
                    used.append((span.digest, places[row, start:end], of_row[row]))
        return used

    def _check(self, batch: Batch, ends: IntArray, known: NDArray[np.int64]) -> None:
        """Check the shape of a batch against the contract of `Batch` and the configuration."""
        config, num_decodes, counts = self._config, batch.num_decodes, batch.num_new_tokens
        budget = config.max_num_batched_tokens - num_decodes * config.num_speculative_tokens
        if batch.num_tokens > budget:
            raise DeviceError("wrong batch", f"{batch.num_tokens} tokens in a step that may take {budget}")
        _require(batch.num_tokens == int(counts.sum()), "tokens are miscounted")
        _require(len(set(batch.slots.tolist())) == len(batch), "a slot has two rows")
        _require(int(counts.min()) >= 1, "a row computes nothing")
        _require(not num_decodes or int(counts[:num_decodes].max()) == 1, "a decode of more than one token")
        _require(bool((ends <= known).all()), "asked to compute tokens that are not known")
        _require(bool(((ends == known) == batch.samples).all()), "a row samples exactly if it completes what is known")
        _require(bool(batch.samples[:num_decodes].all()), "a decode that does not sample")
        num_partial, most = len(batch) - int(np.count_nonzero(batch.samples)), config.max_num_partial_prefills
        _require(not most or num_partial <= most, "more prompts are part-way computed than may be")
        for row in range(num_decodes, len(batch)):
            start, end, slot = int(batch.positions[row]), int(ends[row]), int(batch.slots[row])
            spans, cached = self._spans[slot], int(self._num_cached[slot])
            if config.deterministic and end % config.deterministic_chunk_size and end != known[row]:
                at_span = any(end in (span.start, span.end) for span in spans)  # allowed where no multiple is in reach
                _require(at_span, f"a chunk ends at {end} of {known[row]} in deterministic mode")
            for span in spans:
                # The cached tokens may end within a span. Then the rest of the span follows in one piece.
                cut = span.start < end < span.end or (span.start < start < span.end and start != cached)
                _require(not cut, f"chunk [{start}, {end}) cuts the span [{span.start}, {span.end})")

    def _sample_all(self, batch: Batch, slots: NDArray[np.intp], ends: IntArray) -> tuple[IntArray, IntArray]:
        """The tokens of a step in row order, int32, and how many each of its rows gives, int32 [N]."""
        counts = batch.samples.astype(np.int32)
        if not self._config.num_speculative_tokens:
            return self._sample(slots[batch.samples], ends[batch.samples]), counts
        decodes, width = slice(batch.num_decodes), self._wanted.shape[1]
        counts[decodes] = np.minimum(self.accepts(batch), width + 1 - ends[decodes])
        tokens = np.zeros((len(slots), self._config.tokens_per_decode), dtype=np.int32)
        nth = np.arange(tokens.shape[1])
        for n in nth.tolist():
            gives = (counts > n).nonzero()[0]
            tokens[gives, n] = self._sample(slots[gives], ends[gives] + np.int32(n))
        return tokens[nth < counts[:, None]], counts

    def _drawn(self, batch: Batch) -> IntArray:
        """Any number of tokens for each decode; at times one each, as without drafts."""
        if batch.step_id % 5 == 0:
            return batch.num_new_tokens[: batch.num_decodes]
        slots, positions = batch.slots[: batch.num_decodes], batch.positions[: batch.num_decodes]
        drawn = mix(self._wanted[slots, positions] + np.uint64(batch.step_id))
        return (drawn % np.uint64(1 + self._config.tokens_per_decode)).astype(np.int32)

    def _sample(self, slots: NDArray[np.intp], ends: IntArray) -> IntArray:
        """The token after position ends - 1 of each slot. Each slot knows one token more afterwards."""
        shift = self._shift[slots]
        digests = self._wanted[slots, ends - 1] - shift
        tokens = (mix(digests) % np.uint64(VOCAB)).astype(np.int32)
        follows = ends < self._wanted.shape[1]  # at max_model_len no further step follows
        slots, ends = slots[follows], ends[follows]
        terms = TERM_OF_TOKEN[tokens[follows]] * self._multipliers[ends]
        self._wanted[slots, ends] = digests[follows] + terms + shift[follows]
        self._known[slots] = ends + 1
        return tokens

    def _spoil_places(self, places: NDArray[np.intp], step_id: int) -> None:
        self._kv[places[self._writers[places] == step_id]] = 0

    def _places_of(self, blocks: IntArray, num_tokens: int) -> NDArray[np.intp]:
        size = self._config.block_size
        _require(len(blocks) * size >= num_tokens, f"{len(blocks)} blocks for {num_tokens} tokens")
        _require(int(blocks.min()) > 0, "the padding block is among the blocks of a request")
        return (blocks.astype(np.intp)[:, None] * size + self._offsets).reshape(-1)[:num_tokens]

    def _kv_of(self, request: Request, tokens: IntArray, weights: int) -> Words:
        return digests_of(request, tokens) + np.uint64(mix_one(weights))

    def _weights_of(self, request: Request, places: NDArray[np.intp]) -> int:
        """The weights of the KV at the first place of a request: present, or former if it has kept its blocks."""
        for weights in range(self._kept.get(request.uid, self._weights), self._weights):
            if self._kv_of(request, request.prompt[:1], weights)[0] == self._kv[places[0]]:
                return weights
        return self._weights

    def _complaint(self, batch: Batch, row: int, position: int, place: int) -> str:
        slot, start = int(batch.slots[row]), int(batch.positions[row])
        return (
            f"step {batch.step_id}: slot {slot}, which computes from position {start}, would read foreign or missing "
            f"KV at position {position} (block {place // self._config.block_size}, last written by step "
            f"{self._writers[place]})"
        )


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise DeviceError("wrong batch", complaint)
