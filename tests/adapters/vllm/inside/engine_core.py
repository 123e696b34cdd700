"""The loop of vLLM's engine core around a scheduler and an imitated worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from engines import BLOCK_SIZE, Shape
from imitated_worker import ImitatedWorker
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT
from vllm.v1.request import Request, RequestStatus
from vllm.v1.serial_utils import MsgpackEncoder

MAX_STEPS = 20_000  # without an end nothing progresses


@dataclass
class Answer:
    """What a front end heard of a request."""

    tokens: list[int] = field(default_factory=list)
    reason: str | None = None
    stop_reason: Any = None
    client: int = -1
    logprobs: list[int] = field(default_factory=list)  # the token ids that they are for
    prompt_logprobs: list[int] | None = None
    events: list[str] = field(default_factory=list)
    prefill: Any = None
    error: Any = None


class EngineCore:
    """Steps as `EngineCore.step` or `step_with_batch_queue` do. on_answer: called with the name of each request that an
    output was for."""

    def __init__(self, scheduler: Any, shape: Shape, seed: int = 0) -> None:
        self.scheduler = scheduler
        self.worker = ImitatedWorker(
            runner=shape.runner,
            asynchronous=shape.asynchronous,
            block_size=BLOCK_SIZE,
            max_num_seqs=shape.max_num_seqs,
            seed=seed,
        )
        self.answers: dict[str, Answer] = {}
        self.on_answer: Callable[[str], None] = lambda _name: None
        self.num_steps = 0
        self.num_preemptions = 0
        self.num_hits = 0
        self.num_queried = 0
        self._asynchronous = shape.asynchronous
        self._queue: deque[tuple[Any, Any]] = deque()
        self._encoder = MsgpackEncoder()
        self._to_abort: list[str] = []

    @property
    def is_busy(self) -> bool:
        return self.scheduler.has_requests() or bool(self._queue)

    def add(self, request: Request) -> None:
        self.answers[request.request_id] = Answer()
        self.scheduler.add_request(request)

    def abort(self, names: Iterable[str], *, within_step: bool = False) -> None:
        """within_step: when the result of the next step is there, before the scheduler hears of it."""
        if within_step:
            self._to_abort += names
            return
        for request in self.scheduler.finish_requests(list(names), RequestStatus.FINISHED_ABORTED):
            self.answers[request.request_id].reason = "abort"

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.is_busy:
            self.step()

    def step(self) -> None:
        self.num_steps += 1
        assert self.num_steps < MAX_STEPS, "no progress"
        if self._asynchronous:
            self._step_with_queue()
        elif self.scheduler.has_requests():
            order = self.scheduler.schedule()
            forward = self.worker.execute(order)
            masks = self.scheduler.get_grammar_bitmask(order)
            self._take(order, self._result(order, forward, masks))

    def _step_with_queue(self) -> None:
        deferred = None
        if self.scheduler.has_requests():
            order = self.scheduler.schedule()
            forward = self.worker.execute(order)
            computes = order.total_num_scheduled_tokens > 0
            if computes and order.pending_structured_output_tokens:
                deferred = order, forward
            else:
                masks = self.scheduler.get_grammar_bitmask(order) if computes else None
                self._queue.appendleft((order, self._result(order, forward, masks)))
                if len(self._queue) < 2 and (computes or self.scheduler.has_requests()):
                    return
        elif not self._queue:
            return
        self._take(*self._queue.pop())
        if deferred is not None:
            order, forward = deferred
            self._queue.appendleft((order, self._result(order, forward, self.scheduler.get_grammar_bitmask(order))))

    def _result(self, order: Any, forward: Any, masks: Any) -> Any:
        if not order.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        return self.worker.sample(forward, masks)

    def _take(self, order: Any, result: Any) -> None:
        if self._to_abort:
            names, self._to_abort = self._to_abort, []
            self.abort(names)
        heard = []
        for client, outputs in self.scheduler.update_from_output(order, result).items():
            self._encoder.encode(outputs)
            for output in outputs.outputs:
                self._hear(client, output)
                heard.append(output.request_id)
            if outputs.scheduler_stats is not None:
                prefix = outputs.scheduler_stats.prefix_cache_stats
                self.num_hits += prefix.hits + prefix.preempted_hits
                self.num_queried += prefix.queries + prefix.preempted_queries
        for name in heard:
            self.on_answer(name)

    def _hear(self, client: int, output: EngineCoreOutput) -> None:
        answer = self.answers[output.request_id]
        assert answer.reason is None, f"{output.request_id}: an output after its end"
        assert answer.client in (-1, client), f"{output.request_id}: outputs for two front ends"
        answer.client = client
        answer.tokens += output.new_token_ids
        for event in output.events or ():
            answer.events.append(event.type.name)
            self.num_preemptions += event.type.name == "PREEMPTED"
        if output.new_logprobs is not None:
            answer.logprobs += output.new_logprobs.logprob_token_ids[:, 0].tolist()
        if output.new_prompt_logprobs_tensors is not None:
            answer.prompt_logprobs = output.new_prompt_logprobs_tensors.logprob_token_ids[:, 0].tolist()
        if output.prefill_stats is not None:
            assert answer.prefill is None, f"{output.request_id}: its prefill is reported twice"
            answer.prefill = output.prefill_stats
        answer.error = getattr(output, "error", None)
        if output.finish_reason is not None:
            answer.reason, answer.stop_reason = str(output.finish_reason), output.stop_reason
