"""A step's result: from vLLM's `ModelRunnerOutput` to the core's `StepResult`, and what follows for the front ends."""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from vllm.v1.core.sched.utils import check_sequence_repetition
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.request import RequestStatus

from headway.adapters.vllm.grammars import Grammars
from headway.adapters.vllm.log import logger_of
from headway.adapters.vllm.requests import LiveRequest, LiveRequests
from headway.adapters.vllm.step_output import LaunchedStep
from headway.request import FinishReason
from headway.scheduler import AbortRequests, Effects, RequestEnd, Scheduler, StepResult

if TYPE_CHECKING:
    from vllm.v1.outputs import ModelRunnerOutput

logger = logger_of(__name__)

_STATUS = {
    FinishReason.STOP: RequestStatus.FINISHED_STOPPED,
    FinishReason.LENGTH: RequestStatus.FINISHED_LENGTH_CAPPED,
    FinishReason.ABORT: RequestStatus.FINISHED_ABORTED,
    FinishReason.ERROR: RequestStatus.FINISHED_ERROR,
}
_NO_TOKENS: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
_NO_UIDS: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


class Outputs:
    """The outputs of one step. place: where in `all` the output of a request is."""

    __slots__ = ("all", "place")

    def __init__(self, outputs: list[EngineCoreOutput], place: dict[str, int]) -> None:
        self.all = outputs
        self.place = place

    def of(self, name: str) -> EngineCoreOutput | None:
        i = self.place.get(name)
        return None if i is None else self.all[i]

    def of_or_new(self, name: str) -> EngineCoreOutput:
        """The output of a request; one without tokens, if it has none yet."""
        out = self.of(name)
        if out is None:
            self.place = self.place | {name: len(self.all)}  # a copy: it may belong to the result
            out = EngineCoreOutput(name, [])
            self.all.append(out)
        return out


class Results:
    """Takes the results of steps in, in the order of the steps."""

    def __init__(self, core: Scheduler, requests: LiveRequests, grammars: Grammars, *, returns_masks: bool) -> None:
        self._core = core
        self._requests = requests
        self._grammars = grammars
        self._returns_masks = returns_masks
        self._order_of: tuple[list[str], list[str]] = ([], [])  # names of a step, ids of its result
        self._order: NDArray[np.intp] | None = None

    def take_in(
        self, step: LaunchedStep, result: ModelRunnerOutput
    ) -> tuple[list[EngineCoreOutput], list[LiveRequest]]:
        """Apply a result. Returns the outputs of the step, and the requests that have ended, whose status says how."""
        if not step.names:  # an empty step, or chunks alone of which none is the last
            if step.step_id:
                self._core.apply(StepResult(step.step_id, _NO_TOKENS), time.monotonic())
            return [], []
        tokens, is_in_order = self._tokens(step, result)
        effects = self._core.apply(StepResult(step.step_id, tokens), time.monotonic())
        outputs = self._outputs(step, result, effects, is_in_order)
        ends = {end.uid: end for end in effects.ended}
        if step.firsts or step.decodes.specials or result.num_nans_in_logits:
            self._complete(step, result, outputs, ends)
        return outputs.all, [self._end(end, outputs) for end in ends.values()]

    def _tokens(self, step: LaunchedStep, result: ModelRunnerOutput) -> tuple[NDArray[np.int32], bool]:
        """The sampled tokens in the order of the core's rows, int32. Also whether every row of the result has one, so
        that its order can be kept."""
        names, sampled = step.names, result.sampled_token_ids
        if step.firsts or len(result.req_ids) != len(names):
            if result.req_ids == names:
                return np.fromiter(chain.from_iterable(sampled), dtype=np.int32, count=len(names)), True
            index = result.req_id_to_index
            return np.array([sampled[index[name]][0] for name in names], dtype=np.int32), False
        tokens = np.fromiter(chain.from_iterable(sampled), dtype=np.int32, count=len(names))
        known_names, known_ids = self._order_of
        if known_names is not names or known_ids != result.req_ids:
            index = result.req_id_to_index
            order = [index[name] for name in names]
            self._order = None if order == list(range(len(order))) else np.array(order, dtype=np.intp)
            self._order_of = (names, list(result.req_ids))
        return (tokens if self._order is None else tokens[self._order]), True

    def _outputs(self, step: LaunchedStep, result: ModelRunnerOutput, effects: Effects, is_in_order: bool) -> Outputs:
        """An output for each token that counts. The tokens of requests that have ended or were preempted since the
        launch do not."""
        sampled, index = result.sampled_token_ids, result.req_id_to_index
        kept = effects.tokens[0].uids if effects.tokens else _NO_UIDS
        if len(kept) == len(step.names):
            if is_in_order:
                return Outputs(list(map(EngineCoreOutput, result.req_ids, sampled)), index)
            names = step.names
        else:
            names = [live.name for live in self._requests.numbered_all(kept.tolist())]
        outputs = [EngineCoreOutput(name, sampled[index[name]]) for name in names]
        return Outputs(outputs, dict(zip(names, range(len(names)), strict=True)))

    def _complete(
        self, step: LaunchedStep, result: ModelRunnerOutput, outputs: Outputs, ends: dict[int, RequestEnd]
    ) -> None:
        """Add to the outputs what they carry besides tokens. May find further ends."""
        for live in step.firsts:
            out = outputs.of(live.name)
            if out is not None:
                self._add_prefill(live, out, result)
        for live in chain(step.firsts, step.decodes.specials):
            out = outputs.of(live.name)
            if out is None or self._requests.named(live.name) is not live:
                continue
            if live.is_special or self._returns_masks:
                self._add_specials(live, out, result)
            if live.is_watched:
                self._watch(live, out, ends)
        for name, count in (result.num_nans_in_logits or {}).items():
            out = outputs.of(name)
            if out is not None:
                out.num_nans_in_logits = int(count)

    def _add_prefill(self, live: LiveRequest, out: EngineCoreOutput, result: ModelRunnerOutput) -> None:
        """What is told with the first token after an admission: all events happen before, and all full blocks of the
        prompt are in the prefix cache."""
        out.events = live.request.take_events()
        out.new_prompt_logprobs_tensors = result.prompt_logprobs_dict.get(live.name)
        out.prompt_token_id_logprobs = result.prompt_token_id_logprobs_dict.get(live.name)
        stats = live.request.take_prefill_stats()
        if stats is None:
            return
        config, num_prompt = self._core.config, live.request.num_prompt_tokens
        stats.finalize(num_prompt - num_prompt % config.block_size if config.enable_prefix_caching else 0)
        out.prefill_stats = stats

    def _add_specials(self, live: LiveRequest, out: EngineCoreOutput, result: ModelRunnerOutput) -> None:
        i = result.req_id_to_index[live.name]
        if result.logprobs and live.request.sampling_params.num_logprobs is not None:
            out.new_logprobs = result.logprobs.slice_request(i, 1)
        if self._returns_masks and result.sampling_masks is not None:
            out.new_sampling_mask = result.sampling_masks.slice_request(i, 1)
        out.trace_headers = live.request.trace_headers

    def _watch(self, live: LiveRequest, out: EngineCoreOutput, ends: dict[int, RequestEnd]) -> None:
        """Look for an end that the core does not see: see `LiveRequest.is_watched`."""
        request, tokens, end = live.request, out.new_token_ids, ends.get(live.uid)
        request.append_output_token_ids(tokens)
        if not self._grammars.accepts(live, tokens):
            logger.error("the grammar of request %s does not allow tokens %s; the request ends", live.name, tokens)
            request.status = RequestStatus.FINISHED_ERROR
        elif tokens[-1] in live.many_stops:
            request.status = RequestStatus.FINISHED_STOPPED
            self._note_stop_token(live, tokens[-1])
        elif end is None and self._repeats(live):
            request.status, request.stop_reason = RequestStatus.FINISHED_REPETITION, "repetition_detected"
        else:
            return
        if end is None:
            end = self._core.apply(AbortRequests((live.uid,)), time.monotonic()).ended[0]
            ends[live.uid] = end

    @staticmethod
    def _repeats(live: LiveRequest) -> bool:
        request, sampling = live.request, live.request.sampling_params
        if sampling.repetition_detection is None or request.num_output_tokens < sampling.min_tokens:
            return False
        return bool(check_sequence_repetition(request.output_token_ids, sampling.repetition_detection))

    @staticmethod
    def _note_stop_token(live: LiveRequest, token: int) -> None:
        if token != live.request.sampling_params.eos_token_id:
            live.request.stop_reason = token

    def _end(self, end: RequestEnd, outputs: Outputs) -> LiveRequest:
        live = self._requests.numbered(end.uid)
        assert live is not None
        request = live.request
        if not request.is_finished():
            request.status = _STATUS[end.reason]
            if end.error is not None:
                logger.error("request %s ends with an error: %s", live.name, end.error)
            if end.stop_token is not None:
                self._note_stop_token(live, end.stop_token)
        out = outputs.of_or_new(live.name)
        out.finish_reason, out.stop_reason = request.get_finished_reason(), request.stop_reason
        return live
