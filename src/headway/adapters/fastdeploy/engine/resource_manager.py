"""FastDeploy's ResourceManagerV1, as the rest of FastDeploy uses it, on Headway's lock-free manager."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from headway.adapters.fastdeploy.engine import gauges
from headway.adapters.fastdeploy.engine.acknowledgements import Acknowledgements, IdSet
from headway.adapters.fastdeploy.engine.cache_view import CacheView
from headway.adapters.fastdeploy.engine.downloads import Downloads
from headway.adapters.fastdeploy.engine.record import Record
from headway.adapters.fastdeploy.engine.refusals import check_config, not_served, reason_against_request
from headway.adapters.fastdeploy.engine.scheduling import Scheduling
from headway.adapters.fastdeploy.engine.sizes import scheduler_config
from headway.adapters.fastdeploy.engine.slots_view import SlotsView
from headway.errors import EngineDeadError, EnginePausedError, QueryError, QueueFullError, RequestError
from headway.managers import LockFreeManager
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.scheduler import PreprocessDone, Reservation
from headway.token_ids import NUM_INT32, pack

logger = logging.getLogger(__name__)

REFUSALS = (RequestError, QueueFullError, EnginePausedError, EngineDeadError, QueryError)

QUERY_TIMEOUT = 1.0  # seconds; the scheduling thread answers within some milliseconds, unless the engine is paused
ACKNOWLEDGEMENT_TIMEOUT = 10.0  # seconds


class HeadwayResourceManager:
    """In the place of FastDeploy's ResourceManagerV1.

    FastDeploy's scheduling thread calls `schedule`, and owns all state. Its other threads leave messages, or read what
    this thread has published. FastDeploy's token processor appends the tokens of the worker to a request's
    `output_token_ids`; `schedule` takes them from there.

    tasks_list, stop_flags: FastDeploy's Request in each slot, and whether a slot is free. `requests`: by id. The sets:
    ids that wait for something. All of these are for reading; the sets have `discard`.
    """

    def __init__(
        self,
        max_num_seqs: int,
        config: Any,
        tensor_parallel_size: int,
        splitwise_role: str,
        local_data_parallel_id: int = 0,
    ) -> None:
        """As FastDeploy calls it. Raises NotServedError, with all reasons, for a configuration that is not served."""
        check_config(config, os.environ)
        self.config = config
        self.max_num_seqs = max_num_seqs
        self.real_bsz = 0
        self.req_dict: dict[str, int] = {}  # of version 0; always empty
        self.scheduler_unhandled_request_num = 0  # FastDeploy writes these two
        self.scheduler_metrics_logger: Any = None
        self._role = splitwise_role
        self._downloads = Downloads()
        self._refused: deque[tuple[str, str]] = deque()  # other threads append
        self.cache_manager = CacheView(
            config, tensor_parallel_size, splitwise_role, local_data_parallel_id, self._forget_cached
        )
        self._build(is_measured=config.cache_config.num_gpu_blocks_override is not None)

    def _build(self, *, is_measured: bool) -> None:
        """Make the scheduler, for as many blocks as the configuration says now."""
        self._manager = LockFreeManager(scheduler_config(self.config, self.max_num_seqs, self._role, is_measured))
        self._slots = SlotsView(self.max_num_seqs)
        self._acknowledgements = waits = Acknowledgements()
        self._scheduling = Scheduling(
            self._manager,
            self._slots,
            waits,
            self.config.scheduler_config.max_num_batched_tokens,
            self._prepare,
        )
        self.tasks_list, self.stop_flags = self._slots.tasks_list, self._slots.stop_flags
        self.requests = self._scheduling.requests
        self.waiting_abort_req_id_set = IdSet(self._ids_to_abort, self._is_to_abort, self._forget_abort)
        self.to_be_aborted_req_id_set = IdSet(waits.ids, waits.is_aborting, self._forget_abort)
        # FastDeploy's token processor walks through this set, and takes a slot that a message of the worker lacks for a
        # slot given back. But the message may be older than the request in the slot. Only a -9 counts here, and for
        # that FastDeploy asks for one id. So there is nothing to walk through.
        self.to_be_rescheduled_request_id_set = IdSet(list, waits.is_leaving)

    # -- the scheduling thread -----------------------------------------------------------------------------------

    def schedule(self) -> tuple[Any, list[tuple[str, str]]]:
        """FastDeploy's BatchRequest for the worker, and (request id, message) of requests that cannot be served."""
        batch, errors = self._scheduling.turn()
        refused = [self._refused.popleft() for _ in range(len(self._refused))]
        snapshot = self._manager.snapshot()
        if len(batch):
            gauges.publish(snapshot, self.scheduler_unhandled_request_num)
            gauges.log_batch(
                *(self.scheduler_metrics_logger, self._role, batch, snapshot, self.scheduler_unhandled_request_num),
                self._manager.config.block_size,
            )
        return batch, [*refused, *errors]

    def get_real_bsz(self) -> int:
        """The number of slots that the worker has to look at."""
        self.real_bsz = self._slots.num_spanned or self.real_bsz
        return self.real_bsz

    # -- requests ------------------------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Queue a request. A request that cannot be served is answered with an error by the next `schedule`."""
        record = self._enroll(request)
        if record is None:
            return
        try:
            self._manager.add(record.core)
        except REFUSALS as error:
            self._scheduling.strike(record)
            self._refuse(request, str(error))

    def finish_requests(self, request_ids: str | Iterable[str]) -> None:
        """FastDeploy has given the last token of these requests to their clients."""
        ids = _ids(request_ids)
        for request_id in ids:
            self._acknowledgements.answer(request_id)
        self._scheduling.note(self._scheduling.finished, ids)

    finish_requests_async = finish_requests

    def add_abort_req_ids(self, req_ids: str | Iterable[str]) -> None:
        """End these requests. Each is answered to its client when the worker has given its slot back; a waiting request
        gets a slot for that when it is its turn. An id that is not known yet is kept until its request comes."""
        self._scheduling.note(self._scheduling.abort, _ids(req_ids))

    def reschedule_preempt_task(self, request_id: str, process_func: Callable[[Any], None] | None = None) -> None:
        """The worker has given back the slot of a preempted request."""
        if process_func is not None:
            raise not_served("reschedule_preempt_task(process_func=...)", "the scheduling thread owns the request")
        self._scheduling.note(self._scheduling.acknowledged, (request_id,))

    def recycle_abort_task(self, request_id: str) -> None:
        """The worker has given back the slot of an aborted request."""
        self._scheduling.note(self._scheduling.acknowledged, (request_id,))

    def cache_output_tokens(self, request: Any) -> None:
        """Put the full blocks of its output into the prefix cache."""
        self._manager.publish_output(request.request_id)

    def clear_data(self) -> None:
        """End all requests; the worker's tasks are thrown away. FastDeploy then answers requests that have a slot."""
        self._scheduling.note(self._scheduling.cleared, ("",))
        self._manager.clear()  # told from here, so that requests which come later are left alone

    # -- P and D -------------------------------------------------------------------------------------------------

    def apply_async_preprocess(self, request: Any) -> None:
        """Begin to fetch what a request needs. A mixed engine does this by itself."""
        if self._downloads.are_needed(request):
            request.async_process_futures.append(self._downloads.start(request))

    def waiting_async_process(self, request: Any) -> bool | None:
        """Whether a request still waits for what it needs; None: that has failed, and the request says why."""
        if not all(future.done() for future in request.async_process_futures):
            return True
        if request.async_process_futures and request.error_message is not None:
            return None
        request.async_process_futures = []
        return False

    def preallocate_resource_in_p(self, request: Any) -> bool:
        """P: reserve a slot and the blocks of the prompt. False: they are lacking now."""
        return self._reserve(request, partial(self._manager.reserve_prefill, shows_blocks=True))

    def preallocate_resource_in_d(self, request: Any) -> bool:
        """D: reserve a slot and blocks for prompt and first token. False: they are lacking now.

        P writes to the blocks from outside. So this waits until the worker has given up what may still write to them.
        """
        owed = self._acknowledgements.ids()
        if not self._reserve(request, self._manager.reserve_decode):
            return False
        owed += self._acknowledgements.ids()
        until = time.monotonic() + ACKNOWLEDGEMENT_TIMEOUT
        while any(request_id in self._acknowledgements for request_id in owed):
            if time.monotonic() > until:
                self.pre_recycle_resource(request.request_id)
                return False
            time.sleep(0.001)
        request.disaggregate_info["block_tables"] = request.block_tables
        return True

    def has_resource_for_prefilled_req(self, request_id: str) -> bool:
        """Not served."""
        raise not_served("has_resource_for_prefilled_req", "KV is not kept in host memory on its way to D")

    def add_request_in_p(self, requests: Iterable[Any]) -> None:
        """P: D has agreed; compute these reserved prompts."""
        self._manager.start_prefill([request.request_id for request in requests])

    def add_prefilled_request(self, request_output: Any) -> None:
        """D: the KV of a reserved prompt has come, and its first token."""
        record = self._scheduling.by_id.get(request_output.request_id)
        if record is None:
            logger.error("request %s is not known: its first token is dropped", request_output.request_id)
            return
        request, token = record.request, request_output.outputs.token_ids[0]
        request.output_token_ids.append(token)
        request.num_cached_tokens = request_output.num_cached_tokens
        request_output.metrics.decode_recv_req_time = request.metrics.decode_recv_req_time
        request_output.metrics.decode_preallocate_req_time = request.metrics.decode_preallocate_req_time
        request.metrics = copy.deepcopy(request_output.metrics)
        request.metrics.decode_inference_start_time = time.time()
        request.metrics.update_decoder_start_time()
        self._manager.start_decode(request.request_id, token)

    def pre_recycle_resource(self, request_id: str) -> None:
        """P or D: the other side has failed; give up the reservation. FastDeploy answers the client."""
        self._scheduling.note(self._scheduling.drop, (request_id,))

    # -- numbers -------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> range:
        """As long as there are requests that wait, such included as the scheduling thread has not seen yet."""
        now = self._manager.snapshot()
        num_seated = now.num_running + now.num_reserved + now.num_sending + now.num_receiving
        return range(max(0, self._manager.door.num_inside - num_seated))

    def available_batch(self) -> int:
        """Slots that are left when each request inside has one, slots that the worker still has left out."""
        return max(0, self._manager.num_free_slots() - len(self._acknowledgements))

    def total_block_number(self) -> int:
        """Blocks of the pool."""
        return self._manager.snapshot().num_blocks_total

    def available_block_num(self) -> int:
        """Blocks that no request refers to."""
        now = self._manager.snapshot()
        return now.num_blocks_free + now.num_blocks_evictable

    def info(self) -> str:
        """The state in one line."""
        return f"HeadwayResourceManager({self._manager.info()}, owed by the worker: {self._acknowledgements.ids()})"

    def log_status(self) -> None:
        """Log the state."""
        logger.info("%s, requests: %s", self.info(), list(self.requests))

    def check_and_free_block_tables(self) -> None:
        """Nothing to do: blocks come back when their request ends."""

    # -- set-up --------------------------------------------------------------------------------------------------

    def reset_cache_config(self, cfg: Any) -> None:
        """FastDeploy has measured how many blocks there are. Raises NotServedError if there are requests by then, and
        ValueError if the blocks are too few for one request."""
        if self._manager.door.num_inside:
            raise not_served("reset_cache_config with requests inside", "the number of blocks is fixed by then")
        self.config.cache_config = cfg
        self.cache_manager.update_cache_config(cfg)
        self._build(is_measured=True)

    # -- not served ----------------------------------------------------------------------------------------------

    def allocate_resources_for_new_tasks(self, tasks: Any) -> None:
        """Not served."""
        raise not_served("allocate_resources_for_new_tasks", "it belongs to the scheduler of version 0")

    def is_resource_sufficient(self, input_token_num: int) -> bool:
        """Not served."""
        raise not_served("is_resource_sufficient", "it belongs to the scheduler of version 0")

    def _recycle_block_tables(self, task: Any) -> None:
        raise not_served("_recycle_block_tables", "it belongs to the scheduler of version 0")

    def preempted_all(self) -> None:
        """Not served."""
        raise not_served("preempted_all", "FastDeploy's engine pauses by aborts; use its pause")

    def wait_worker_inflight_requests_finish(self, timeout: float = 60) -> None:
        """Not served."""
        raise not_served("wait_worker_inflight_requests_finish", "FastDeploy's engine waits for `requests` to be empty")

    # -- parts of these ------------------------------------------------------------------------------------------

    def _enroll(self, request: Any) -> Record | None:
        """The record of a new request. None: it is refused, and the next `schedule` answers it."""
        try:
            reason = reason_against_request(request)
            if reason is None and request.request_id in self.requests:
                reason = f"request id {request.request_id!r} is in use by an unfinished request"
            if reason is not None:
                self._refuse(request, reason)
                return None
            core = self._manager.door.make_request(self._new_request(request))
        except REFUSALS as error:
            self._refuse(request, str(error))
            return None
        record = Record(request, core)
        self._scheduling.enroll(record)
        return record

    def _new_request(self, request: Any) -> NewRequest:
        prompt = pack(request.prompt_token_ids, NUM_INT32)
        most = self.config.model_config.max_model_len - len(prompt)
        wanted = getattr(request.sampling_params, "max_tokens", None)
        max_tokens = most if wanted is None else min(int(wanted), most)
        return NewRequest(
            request_id=request.request_id,
            prompt=prompt,
            sampling=SamplingParams(max_tokens=max(max_tokens, 0) + 1, ignore_eos=True, temperature=0.0),
            preprocess=b"" if self._role == "mixed" and self._downloads.are_needed(request) else None,
        )

    def _refuse(self, request: Any, why: str) -> None:
        logger.warning("request %s is refused: %s", request.request_id, why)
        self._refused.append((request.request_id, why))

    def _prepare(self, record: Record) -> None:
        """Fetch what a request needs before it is scheduled."""

        def done(_: Any) -> None:
            error = record.request.error_message
            self._manager.post_result(PreprocessDone(record.core.uid, error=error))

        self._downloads.start(record.request).add_done_callback(done)

    def _reserve(self, request: Any, ask: Callable[..., Reservation | None]) -> bool:
        record = self._enroll(request)
        if record is None:
            return False
        record.reserved = True
        try:
            reservation = ask(record.core, timeout=QUERY_TIMEOUT)
        except (*REFUSALS, TimeoutError) as error:
            logger.warning("nothing could be reserved for request %s: %s", request.request_id, error)
            reservation = None
        if reservation is None:
            self._scheduling.strike(record)
            return False
        request.idx = reservation.slot
        request.block_tables = [block - 1 for block in reservation.blocks.tolist()]
        request.need_prefill_tokens = len(record.core.prompt)
        request.num_cached_tokens = request.num_computed_tokens = reservation.num_cached_tokens
        return True

    def _forget_cached(self) -> None:
        # A message, as the scheduling thread sleeps while FastDeploy is paused. By then no request is inside.
        self._manager.clear()

    def _ids_to_abort(self) -> list[str]:
        aborting = [record.request_id for record in list(self._scheduling.by_id.values()) if record.aborting]
        return [*list(self._scheduling.early_aborts), *aborting]

    def _is_to_abort(self, request_id: str) -> bool:
        record = self._scheduling.by_id.get(request_id)
        is_early = request_id in self._scheduling.early_aborts
        return is_early or (
            record is not None and record.aborting and not self._acknowledgements.is_aborting(request_id)
        )

    def _forget_abort(self, request_id: str) -> None:
        self._scheduling.note(self._scheduling.forget_abort, (request_id,))


def _ids(request_ids: str | Iterable[str]) -> tuple[str, ...]:
    return (request_ids,) if isinstance(request_ids, str) else tuple(request_ids)
