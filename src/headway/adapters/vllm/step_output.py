"""A step's work order: from the core's `Batch` to vLLM's `SchedulerOutput`, for its model runners V1 and V2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

from headway.adapters.vllm.decode_rows import DecodeRows
from headway.adapters.vllm.requests import LiveRequest, LiveRequests
from headway.scheduler import Batch, Scheduler


@dataclass(slots=True, eq=False)
class LaunchedStep:
    """A step that the worker has, or an empty one.

    step_id: the core's; 0: an empty step, of which the core knows nothing.
    names: the requests that a token is sampled for, in the order of the core's rows.
    decodes: its decode rows. firsts: the requests whose chunk is the last one, which get a token too.
    grammar_names: of `names`, the requests with a grammar.
    """

    output: SchedulerOutput
    decodes: DecodeRows
    step_id: int = 0
    names: list[str] = field(default_factory=list)
    firsts: list[LiveRequest] = field(default_factory=list)
    grammar_names: list[str] = field(default_factory=list)


class StepOutputs:
    """Makes work orders.

    Runner V1 keeps a request that is preempted. When the request comes back it is a cached request, with all tokens,
    and blocks that replace its former ones. Runner V2 is told which requests were preempted, and forgets them; when
    they come back they are new.

    The core may replace blocks of a request that prefills by equal blocks that another request has computed. No runner
    has a word for that: it is told that the request was preempted and has come back.
    """

    def __init__(self, core: Scheduler, requests: LiveRequests, *, for_runner_v2: bool) -> None:
        self._core = core
        self._requests = requests
        self._for_v2 = for_runner_v2
        self._rows = DecodeRows.none(requests)
        self._last_counts: dict[str, int] = {}  # of the step before
        self._last_rows = self._rows
        self._finished: set[str] = set()
        self._preempted: set[str] = set()

    @property
    def has_finished(self) -> bool:
        """Whether the worker is to be told of a request that has ended."""
        return bool(self._finished)

    def finished(self, name: str) -> None:
        """A request has ended: the next work order says so."""
        self._finished.add(name)

    def preempted(self, live: LiveRequest) -> None:
        """A request has given up its slot: runner V2 has no more of them than there are slots, and must hear of it."""
        if self._for_v2 and live.is_with_worker:
            self._preempted.add(live.name)
            live.is_with_worker = False

    def empty(self) -> LaunchedStep:
        """A step that computes nothing, and tells what has changed."""
        output = SchedulerOutput.make_empty()
        self._take_changes(output)
        self._last_counts, self._last_rows = {}, DecodeRows.none(self._requests)
        return LaunchedStep(output, self._last_rows)

    def make(self, batch: Batch) -> LaunchedStep:
        """The work order of a batch, whose admissions are seated."""
        rows = self._rows = DecodeRows.of(batch, self._requests, self._rows)
        num_decodes = len(rows)
        positions = batch.positions[:num_decodes]
        cached = CachedRequestData(
            req_ids=rows.names.copy(),
            resumed_req_ids=set(),
            new_token_ids=[],
            all_token_ids={},
            new_block_ids=[None] * num_decodes,
            num_computed_tokens=positions.tolist(),
            num_output_tokens=(positions + rows.one_minus_prompt).tolist(),
        )
        counts = rows.ones.copy()
        if not self._for_v2 and rows is not self._last_rows:
            self._tell_tokens_of_unscheduled(rows, cached.all_token_ids)
        if len(batch.table_slots):
            self._grow(batch, rows, cached.new_block_ids)
        step = LaunchedStep(
            SchedulerOutput(
                scheduled_new_reqs=[],
                scheduled_cached_reqs=cached,
                num_scheduled_tokens=counts,
                total_num_scheduled_tokens=batch.num_tokens,
                scheduled_spec_decode_tokens={},
                scheduled_encoder_inputs={},
                finished_req_ids=set(),
                free_encoder_mm_hashes=[],
            ),
            rows,
            batch.step_id,
            rows.names,
            grammar_names=rows.grammar_names,
        )
        if len(batch) > num_decodes:
            self._add_chunks(batch, step)
        self._take_changes(step.output)
        self._last_counts, self._last_rows = counts, rows
        return step

    def _take_changes(self, output: SchedulerOutput) -> None:
        output.finished_req_ids, self._finished = self._finished, set()
        output.preempted_req_ids, self._preempted = self._preempted, set()

    def _tell_tokens_of_unscheduled(self, rows: DecodeRows, all_tokens: dict[str, list[int]]) -> None:
        """Runner V1 drops from its batch what a step leaves out, and needs its tokens when it comes again."""
        for name in rows.ones.keys() - self._last_counts.keys():
            live = self._requests.named(name)
            assert live is not None
            known = self._core.known_tokens(live.uid)
            assert known is not None
            all_tokens[name] = known.tolist()

    def _grow(self, batch: Batch, rows: DecodeRows, new_blocks: list[Any]) -> None:
        """Take the changes of block tables: one new block for some decode rows, and tables of requests that prefill."""
        slots, columns, blocks = batch.table_slots, batch.table_columns, batch.table_blocks.tolist()
        if len(batch) == len(rows):
            for i, block in zip(rows.slots.searchsorted(slots).tolist(), blocks, strict=True):
                new_blocks[i] = ([block],)
            return
        # Runs of consecutive columns of one slot: one each for a decode row, and a whole table for a newcomer.
        goes_on = (slots[1:] == slots[:-1]) & (columns[1:] == columns[:-1] + 1)
        begins = np.append(0, (~goes_on).nonzero()[0] + 1)
        firsts, ends = slots[begins], [*begins[1:].tolist(), len(blocks)]
        where = rows.slots.searchsorted(firsts).tolist()
        for i, slot, column, begin, end in zip(
            where, firsts.tolist(), columns[begins].tolist(), begins.tolist(), ends, strict=True
        ):
            live = self._requests.by_slot[slot]
            assert live is not None
            if not live.prefills:
                new_blocks[i] = (blocks[begin:end],)
                continue
            live.is_told = False
            live.table[column : column + end - begin] = blocks[begin:end]

    def _add_chunks(self, batch: Batch, step: LaunchedStep) -> None:
        num_decodes = len(step.decodes)
        output, cached = step.output, step.output.scheduled_cached_reqs
        for slot, position, count, samples in zip(
            batch.slots[num_decodes:].tolist(),
            batch.positions[num_decodes:].tolist(),
            batch.num_new_tokens[num_decodes:].tolist(),
            batch.samples[num_decodes:].tolist(),
            strict=True,
        ):
            live = self._requests.by_slot[slot]
            assert live is not None
            output.num_scheduled_tokens[live.name] = count
            if live.is_told or (live.is_with_worker and not self._for_v2):
                self._add_cached(live, position, cached)
            else:
                if live.is_with_worker:  # its table has changed: see the class
                    self._preempted.add(live.name)
                output.scheduled_new_reqs.append(self._new(live, position))
            live.is_told = live.is_with_worker = True
            if samples:
                step.firsts.append(live)
                live.forget_prefill()
        if step.firsts:
            step.names = step.names + [live.name for live in step.firsts]
            step.grammar_names = step.grammar_names + [live.name for live in step.firsts if live.uses_grammar]

    def _add_cached(self, live: LiveRequest, position: int, cached: CachedRequestData) -> None:
        cached.req_ids.append(live.name)
        cached.num_computed_tokens.append(position)
        cached.num_output_tokens.append(live.num_known - live.request.num_prompt_tokens)
        cached.new_block_ids.append(None if live.is_told else (live.table.copy(),))
        if not live.is_told:
            cached.resumed_req_ids.add(live.name)
        if not self._for_v2 and (not live.is_told or live.name not in self._last_counts):
            cached.all_token_ids[live.name] = live.tokens.tolist()

    def _new(self, live: LiveRequest, position: int) -> NewRequestData:
        request = live.request
        is_first = live.num_known == request.num_prompt_tokens
        known = request.prompt_token_ids if is_first else live.tokens.tolist()
        return NewRequestData(  # by place: CPython takes twice as long with as many keywords
            live.name,
            request.prompt_token_ids,
            request.mm_features,
            request.sampling_params,
            None,  # pooling_params
            (live.table.copy(),),
            position,
            None,  # lora_request
            prefill_token_ids=known if self._for_v2 else None,
        )
