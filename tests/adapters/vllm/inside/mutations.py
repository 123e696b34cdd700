"""Ways to break the adapter, each of which the matrix must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from headway.adapters.vllm.decode_rows import DecodeRows
from headway.adapters.vllm.grammars import Grammars
from headway.adapters.vllm.requests import LiveRequest, LiveRequests
from headway.adapters.vllm.results import Results
from headway.adapters.vllm.scheduler import HeadwayScheduler
from headway.adapters.vllm.step_output import StepOutputs


def _after(owner: type, method: str, change: Callable[..., Any]) -> None:
    """Let `change` see what a method returns, and its arguments; it returns what the caller gets."""
    original = getattr(owner, method)

    def changed(self: Any, *arguments: Any, **more: Any) -> Any:
        return change(original(self, *arguments, **more), self, *arguments)

    setattr(owner, method, changed)


def blocks_of_resumed_requests_are_appended() -> None:
    def change(done: None, _outputs: StepOutputs, _live: LiveRequest, _position: int, cached: Any) -> None:
        cached.resumed_req_ids.clear()

    _after(StepOutputs, "_add_cached", change)


def preempted_requests_are_not_told() -> None:
    StepOutputs.preempted = lambda self, live: None  # type: ignore[method-assign]


def tokens_of_requests_that_were_left_out_are_not_told() -> None:
    _after(StepOutputs, "_add_cached", lambda done, _outputs, _live, _position, cached: cached.all_token_ids.clear())


def growth_goes_to_the_next_row() -> None:
    def change(done: None, _outputs: StepOutputs, _batch: Any, _rows: Any, blocks: list[Any]) -> None:
        blocks[:] = blocks[-1:] + blocks[:-1]

    _after(StepOutputs, "_grow", change)


def replaced_blocks_are_not_told() -> None:
    original = StepOutputs._grow

    def changed(self: StepOutputs, *arguments: Any) -> None:
        told = [live for live in self._requests if live.is_told]
        original(self, *arguments)
        for live in told:
            live.is_told = True

    StepOutputs._grow = changed  # type: ignore[method-assign]


def decode_rows_are_kept_when_they_change() -> None:
    kept = DecodeRows.of.__func__  # type: ignore[attr-defined]

    def of(cls: type[DecodeRows], batch: Any, requests: LiveRequests, previous: DecodeRows) -> DecodeRows:
        if batch.num_decodes == len(previous):
            return previous
        rows: DecodeRows = kept(cls, batch, requests, previous)
        return rows

    DecodeRows.of = classmethod(of)  # type: ignore[assignment, method-assign]


def the_order_of_the_result_is_taken_for_the_order_of_the_rows() -> None:
    def change(done: tuple[Any, bool], results: Results, _step: Any, result: Any) -> tuple[Any, bool]:
        tokens = [token for sampled in result.sampled_token_ids for token in sampled]
        return np.array(tokens, dtype=np.int32), done[1]

    _after(Results, "_tokens", change)


def late_tokens_are_answered() -> None:
    def change(done: Any, results: Results, step: Any, result: Any, _effects: Any, _in_order: bool) -> Any:
        for name in step.names:
            if (out := done.of_or_new(name)) and not out.new_token_ids:
                out.new_token_ids = result.sampled_token_ids[result.req_id_to_index[name]]
        return done

    _after(Results, "_outputs", change)


def masks_do_not_wait_for_tokens() -> None:
    def change(done: None, _grammars: Grammars, step: Any, _in_flight: Any) -> None:
        step.output.pending_structured_output_tokens = False

    _after(Grammars, "mark", change)


def a_numpy_number_leaves() -> None:
    def change(outputs: tuple[Any, Any], *_: Any) -> tuple[Any, Any]:
        for out in outputs[0]:
            out.num_nans_in_logits = np.int64(1)
        return outputs

    _after(Results, "take_in", change)


def aborts_do_not_reach_the_core() -> None:
    class Deaf:
        def __init__(self, core: Any) -> None:
            self._core = core

        def __getattr__(self, name: str) -> Any:
            return getattr(self._core, name)

        def apply(self, message: Any, now: float) -> Any:
            from headway.scheduler import AbortRequests

            if isinstance(message, AbortRequests):
                message = AbortRequests(())
            return self._core.apply(message, now)

    original = HeadwayScheduler.finish_requests

    def finish_requests(self: Any, *arguments: Any) -> Any:
        core, self._core = self._core, Deaf(self._core)
        try:
            return original(self, *arguments)
        finally:
            self._core = core

    HeadwayScheduler.finish_requests = finish_requests  # type: ignore[method-assign]


RUNNER_V1_ALONE = {
    "blocks_of_resumed_requests_are_appended",
    "tokens_of_requests_that_were_left_out_are_not_told",
}

MUTATIONS: dict[str, Callable[[], None]] = {
    mutation.__name__: mutation
    for mutation in (
        blocks_of_resumed_requests_are_appended,
        preempted_requests_are_not_told,
        tokens_of_requests_that_were_left_out_are_not_told,
        growth_goes_to_the_next_row,
        replaced_blocks_are_not_told,
        decode_rows_are_kept_when_they_change,
        the_order_of_the_result_is_taken_for_the_order_of_the_rows,
        late_tokens_are_answered,
        masks_do_not_wait_for_tokens,
        a_numpy_number_leaves,
        aborts_do_not_reach_the_core,
    )
}
