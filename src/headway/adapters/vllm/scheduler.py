"""vLLM's scheduler interface over Headway's core."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.v1.core.sched.interface import PauseState, SchedulerInterface
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

from headway.adapters.vllm import versions
from headway.adapters.vllm.core_config import core_config
from headway.adapters.vllm.grammars import Grammars
from headway.adapters.vllm.kv_events import KVEvents, keeps_kv_events
from headway.adapters.vllm.log import logger_of
from headway.adapters.vllm.refusals import refuse_unless_served, why_not_served
from headway.adapters.vllm.requests import LiveRequest, LiveRequests, core_request
from headway.adapters.vllm.results import Results
from headway.adapters.vllm.stats import Stats
from headway.adapters.vllm.step_output import LaunchedStep, StepOutputs
from headway.scheduler import (
    AbortRequests,
    AddRequest,
    Batch,
    HoldAdmissions,
    LiftHold,
    PreemptAll,
    PreprocessDone,
    ResetPrefixCache,
    Scheduler,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.config.kv_events import KVEventsConfig
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager

logger = logger_of(__name__)

# Looked up once: in CPython 3.11 a member of an enum costs half a microsecond, and every request asks for these.
_QUEUED, _SCHEDULED = EngineCoreEventType.QUEUED, EngineCoreEventType.SCHEDULED
_RUNNING, _PAUSED_ALL = RequestStatus.RUNNING, PauseState.PAUSED_ALL


class HeadwayScheduler(SchedulerInterface):
    """Headway's core as the scheduler of a vLLM engine; for synchronous and asynchronous scheduling.

    Raises ValueError, naming everything that is not served, when the engine starts.
    """

    connector = None  # the engine reads both, though they are not in the interface
    ec_connector = None

    def __init__(
        self,
        vllm_config: VllmConfig,
        kv_cache_config: KVCacheConfig,
        structured_output_manager: StructuredOutputManager,
        block_size: int,
        hash_block_size: int | None = None,
        mm_registry: Any = MULTIMODAL_REGISTRY,
        include_finished_set: bool = False,
        log_stats: bool = False,
    ) -> None:
        refuse_unless_served(vllm_config, kv_cache_config, block_size)
        versions.warn_if_untested()
        config = core_config(vllm_config, block_size, keeps_kv_events=keeps_kv_events(vllm_config))
        self._core = core = Scheduler(config)
        self._log_stats = log_stats
        self._has_priorities = config.enable_priority_preemption
        self._requests = requests = LiveRequests(config.max_num_seqs)
        self._outputs = StepOutputs(core, requests, for_runner_v2=vllm_config.use_v2_model_runner)
        self._grammars = Grammars(structured_output_manager, requests)
        returns_masks = vllm_config.model_config.return_sampling_mask
        self._results = Results(core, requests, self._grammars, returns_masks=returns_masks)
        self._stats = Stats(core, vllm_config)
        self._kv_events = KVEvents(core, vllm_config)
        self._in_flight: deque[LaunchedStep] = deque()
        self._rejected: list[tuple[Request, str]] = []
        self._finished_by_client: defaultdict[int, set[str]] | None = defaultdict(set) if include_finished_set else None
        self._pause_state = PauseState.UNPAUSED
        # Read by the engine after this: without it no request's blocks are hashed, which the core does not need.
        vllm_config.cache_config.enable_prefix_caching = False
        logger.info(
            "Headway schedules: %d slots, %d blocks of %d tokens, prefix caching %s. Block hashes are not computed.",
            config.max_num_seqs,
            config.num_blocks - 1,
            block_size,
            "on" if config.enable_prefix_caching else "off",
        )

    # -- steps ---------------------------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        now = time.monotonic()
        if self._grammars.num_waiting:
            self._take_grammars(now)
        batch = None if self._pause_state is _PAUSED_ALL else self._core.schedule()
        preempted = batch.preempted if batch is not None else self._core.take_preempted()
        if preempted:
            self._note_preemptions(preempted, now)
        if batch is None:
            step = self._outputs.empty()
        else:
            if batch.admissions:
                self._note_admissions(batch, now)
            step = self._outputs.make(batch)
            self._grammars.mark(step, self._in_flight)
        self._in_flight.append(step)
        return step.output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        step = self._in_flight.popleft()
        assert step.output is scheduler_output, "results must come in the order of the steps"
        outputs, ended = self._results.take_in(step, model_runner_output)
        by_client = self._by_client(step, outputs)
        for live in ended:
            self._forget(live)
        for request, why in self._rejected:
            by_client.setdefault(request.client_index, []).append(_error_output(request, why))
        self._rejected.clear()
        self._kv_events.publish()
        result = {client: EngineCoreOutputs(outputs=outputs) for client, outputs in by_client.items() if outputs}
        if self._finished_by_client:
            for client, names in self._finished_by_client.items():
                result.setdefault(client, EngineCoreOutputs()).finished_requests = names
            self._finished_by_client.clear()
        if self._log_stats:  # for one of the front ends
            client = next(iter(result), 0)
            stats = self._stats.of_step(scheduler_output, model_runner_output)
            result.setdefault(client, EngineCoreOutputs()).scheduler_stats = stats
        return result

    def _by_client(self, step: LaunchedStep, outputs: list[EngineCoreOutput]) -> dict[int, list[EngineCoreOutput]]:
        clients = self._requests.clients
        if len(clients) == 1:
            return dict.fromkeys(clients, outputs)
        client_of = step.decodes.clients
        if step.firsts:
            client_of = client_of | {live.name: live.client for live in step.firsts}
        by_client: dict[int, list[EngineCoreOutput]] = {}
        for output in outputs:
            by_client.setdefault(client_of[output.request_id], []).append(output)
        return by_client

    def _note_preemptions(self, uids: Iterable[int], now: float) -> None:
        for live in self._requests.numbered_all(uids):
            self._requests.unseat(live)
            self._outputs.preempted(live)
            live.request.status = RequestStatus.PREEMPTED
            live.request.num_preemptions += 1
            self._note_event(live, EngineCoreEventType.PREEMPTED, now)

    def _note_admissions(self, batch: Batch, now: float) -> None:
        for admission in batch.admissions:
            live = self._requests.numbered(admission.request.uid)
            assert live is not None
            self._requests.seat(live, admission.slot)
            live.tokens, live.num_known = admission.tokens, len(admission.tokens)
            request = live.request
            if request.num_preemptions == 0 and request.prefill_stats is not None:
                request.prefill_stats.set(request.num_prompt_tokens, admission.num_cached_tokens, 0)
            request.status = _RUNNING
            self._note_event(live, _SCHEDULED, now)

    def _note_event(self, live: LiveRequest, kind: EngineCoreEventType, now: float) -> None:
        if self._log_stats:
            live.request.record_event(kind, now)

    # -- requests ------------------------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Queue a request. If it cannot be served it ends with an error: an exception here would end the engine."""
        if self._log_stats:
            request.record_event(_QUEUED)
        why = why_not_served(request, self._core.config.max_model_len)
        if why is None and request.request_id in self._requests:
            why = f"a request with the id {request.request_id!r} has not ended"
        if why is not None:
            self._reject(request, why)
            return
        max_model_len = self._core.config.max_model_len
        try:
            live = LiveRequest(request, self._requests.take_uid())
            core = core_request(live, max_model_len=max_model_len, has_priorities=self._has_priorities)
            ended = self._core.apply(AddRequest(core), time.monotonic()).ended
        except Exception as error:  # whatever is wrong with this request, the engine has others
            logger.exception("request %s cannot be taken", request.request_id)
            self._reject(request, str(error))
            return
        if ended:
            self._reject(request, str(ended[0].error))
            return
        self._requests.add(live)
        if live.waits_for_grammar:
            self._grammars.wait(live)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        if request_ids is None:
            lives = list(self._requests)
        else:
            names = (request_ids,) if isinstance(request_ids, str) else dict.fromkeys(request_ids)
            lives = [live for name in names if (live := self._requests.named(name)) is not None]
        if lives:
            self._core.apply(AbortRequests(tuple(live.uid for live in lives)), time.monotonic())
        for live in lives:
            live.request.status = finished_status
            self._forget(live)
        return [live.request for live in lives]

    def has_request(self, request_id: str) -> bool:
        return request_id in self._requests

    def _forget(self, live: LiveRequest) -> None:
        """A request has ended."""
        self._requests.remove(live)
        self._grammars.ended(live)
        self._outputs.finished(live.name)
        self._tell_finished(live.request)

    def _reject(self, request: Request, why: str) -> None:
        logger.error("request %s is refused: %s", request.request_id, why)
        request.status = RequestStatus.FINISHED_ERROR
        self._rejected.append((request, why))
        self._tell_finished(request)

    def _tell_finished(self, request: Request) -> None:
        if self._finished_by_client is not None:
            self._finished_by_client[request.client_index].add(request.request_id)

    # -- structured output ---------------------------------------------------------------------------------------

    def get_grammar_bitmask(self, scheduler_output: SchedulerOutput) -> GrammarOutput | None:
        if not scheduler_output.has_structured_output_requests:
            return None
        step = next(step for step in reversed(self._in_flight) if step.output is scheduler_output)
        return self._grammars.masks(step)

    def _take_grammars(self, now: float) -> None:
        for live, error in self._grammars.take_compiled():
            if error is None:
                live.request.status = RequestStatus.WAITING
                self._core.apply(PreprocessDone(live.uid), now)
            else:
                self._core.apply(AbortRequests((live.uid,)), now)
                self._requests.remove(live)
                self._reject(live.request, f"Invalid structured outputs: {error}")

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        raise NotImplementedError("speculative decoding is refused when the engine starts")

    def update_draft_token_ids_in_output(
        self, draft_token_ids: DraftTokenIds, scheduler_output: SchedulerOutput
    ) -> None:
        raise NotImplementedError("speculative decoding is refused when the engine starts")

    # -- control -------------------------------------------------------------------------------------------------

    @property
    def pause_state(self) -> PauseState:
        return self._pause_state

    def set_pause_state(self, pause_state: PauseState) -> None:
        logger.info("pause state: %s", pause_state.name)
        self._pause_state = pause_state
        self._core.apply(HoldAdmissions() if pause_state is PauseState.PAUSED_NEW else LiftHold(), time.monotonic())

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget what is cached. Requests that run go on, and what they have computed is found by no other request; or
        they are preempted, and computed anew. True: it never fails, also not while requests run."""
        now = time.monotonic()
        if reset_running_requests:
            self._core.apply(PreemptAll(), now)
            self._note_preemptions(self._core.take_preempted(), now)
        self._core.ask(ResetPrefixCache(0), now)
        self._stats.cache_was_reset()
        return True

    def reset_encoder_cache(self) -> None:
        """There is none: multimodal models are refused."""

    def shutdown(self) -> None:
        self._kv_events.shutdown()

    # -- reads ---------------------------------------------------------------------------------------------------

    def get_num_unfinished_requests(self) -> int:
        if self._pause_state is _PAUSED_ALL:
            return 0
        if self._pause_state is PauseState.PAUSED_NEW:
            return self._core.snapshot().num_running
        return len(self._requests)

    def has_finished_requests(self) -> bool:
        """Whether a step is needed to tell of requests that have ended or were refused."""
        return self._outputs.has_finished or bool(self._rejected)

    def get_request_counts(self) -> tuple[int, int]:
        snapshot = self._core.snapshot()
        return snapshot.num_running, snapshot.num_waiting + snapshot.num_preparing

    def get_kv_cache_usage(self) -> float:
        return self._core.snapshot().kv_cache_usage

    def make_stats(self) -> SchedulerStats | None:
        return self._stats.report() if self._log_stats else None

    def get_kv_event_publisher_config(self) -> KVEventsConfig | None:
        return self._kv_events.publisher_config


def _error_output(request: Request, why: str) -> EngineCoreOutput:
    return EngineCoreOutput(
        request.request_id,
        [],
        finish_reason=FinishReason.ERROR,
        events=request.take_events(),
        trace_headers=request.trace_headers,
        **versions.error_field(why),
    )
