"""The tasks that FastDeploy's worker is sent, in one BatchRequest."""

from __future__ import annotations

import copy
from typing import Any

from fastdeploy.engine.request import BatchRequest, RequestType
from fastdeploy.engine.sched.resource_manager_v1 import ScheduledAbortTask, ScheduledDecodeTask, ScheduledPreemptTask

from headway.adapters.fastdeploy.engine.flight import Portion
from headway.adapters.fastdeploy.engine.record import Record


class Tasks:
    """The tasks of one turn. The worker takes all of them before it computes: slots that are given up come first, as
    their blocks may be in the tables of the others."""

    def __init__(self) -> None:
        self._stops: list[Any] = []
        self._tables: list[Any] = []
        self._chunks: list[Any] = []

    def preempt(self, slot: int, request_id: str) -> None:
        """Give up a slot; the request is computed again later."""
        self._stops.append(ScheduledPreemptTask(idx=slot, request_id=request_id))

    def abort(self, slot: int, request_id: str) -> None:
        """Give up a slot; the request is over."""
        self._stops.append(ScheduledAbortTask(idx=slot, request_id=request_id))

    def table(self, record: Record) -> None:
        """A request that decodes has more blocks."""
        table = list(record.table)
        record.request.block_tables = table
        self._tables.append(ScheduledDecodeTask(idx=record.slot, request_id=record.request_id, block_tables=table))

    def chunk(self, portion: Portion) -> None:
        """Compute known tokens of a request.

        The worker samples after the last known token. A request that is to end must not sample: it is sent as if one
        more token were known.
        """
        record, request = portion.record, portion.record.request
        request.prefill_start_index, request.prefill_end_index = portion.start, portion.end
        request.num_computed_tokens = portion.end
        request.task_type = RequestType.PREFILL
        request.block_tables = list(record.table)
        if record.muted:
            request = copy.copy(request)
            request.output_token_ids = [*request.output_token_ids, 0]
        self._chunks.append(request)

    def batch(self) -> BatchRequest:
        """All of them, for the worker's queue."""
        batch = BatchRequest()
        for task in (*self._stops, *self._tables, *self._chunks):
            batch.add_request(task)
        return batch
