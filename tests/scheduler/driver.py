"""Drives a core and an oracle device together, as a loop would, and keeps the history of every request."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from headway.config import Role, SchedulerConfig
from headway.request import Request, SamplingParams
from headway.scheduler import (
    AbortRequests,
    AddRequest,
    Allocation,
    Batch,
    DeviceLost,
    Effects,
    FinishRequests,
    RequestEnd,
    Scheduler,
    StepResult,
)
from tests.oracle_device import OracleDevice, answer_of, prompt_of


@dataclass
class History:
    """What a request's caller saw."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    cached: int | None = None
    end: RequestEnd | None = None


class Driver:
    """depth: steps in flight before the first of them must answer."""

    def __init__(self, config: SchedulerConfig, allocation: Allocation | None = None, depth: int = 1) -> None:
        self.config = config
        self.core = Scheduler(config, allocation)
        self.device = OracleDevice(config)
        self.depth = depth
        self.in_flight: deque[StepResult] = deque()
        self.histories: dict[int, History] = {}
        self.batches: list[Batch] = []

    def add(self, prompt: Sequence[int], max_tokens: int = 8, **options: object) -> Request:
        """Hand in a request. options: of SamplingParams, or priority, cache_salt, stop_token_ids of the request."""
        uid = len(self.histories) + 1
        own = {key: options.pop(key) for key in ("priority", "cache_salt", "stop_token_ids") if key in options}
        sampling = SamplingParams(max_tokens=max_tokens, **options)  # type: ignore[arg-type]
        request = Request(
            uid=uid, request_id=f"r{uid}", prompt=prompt_of(prompt), sampling=sampling, max_tokens=max_tokens, **own
        )  # type: ignore[arg-type]
        self.histories[uid] = History(request)
        self.note(self.core.apply(AddRequest(request)))
        return request

    def abort(self, *uids: int) -> Effects:
        return self.note(self.core.apply(AbortRequests(uids)))

    def finish(self, *uids: int) -> Effects:
        return self.note(self.core.apply(FinishRequests(uids)))

    def lose_device(self) -> Effects:
        self.in_flight.clear()
        self.device = OracleDevice(self.config)
        return self.note(self.core.apply(DeviceLost("the device is gone")))

    def launch(self) -> Batch | None:
        """Schedule one step and let the device compute it; its result is not applied yet."""
        prefill_only = self.config.role is Role.PREFILL
        batch, errors = self.core.prefill_schedule() if prefill_only else self.core.schedule()
        self.note(Effects(ended=errors))
        if batch is not None:
            self.batches.append(batch)
            self.in_flight.append(self.device.run(batch))
        return batch

    def answer(self, error: str | None = None) -> Effects:
        """Apply the oldest result that is out, or a failure in its place."""
        result = self.in_flight.popleft()
        if error is not None:
            result = StepResult(result.step_id, np.zeros(0, dtype=np.int32), error=error)
        return self.note(self.core.apply(result))

    def step(self) -> Batch | None:
        """Launch while there is room, then apply one result."""
        batch = None
        while len(self.in_flight) < self.depth and (launched := self.launch()) is not None:
            batch = launched
        if self.in_flight:
            self.answer()
        return batch

    def run(self, max_steps: int = 2000) -> None:
        """Go on until everything has ended."""
        for _ in range(max_steps):
            if self.step() is None and not self.in_flight and not self.core.snapshot().has_work:
                return
        raise AssertionError(f"not finished after {max_steps} steps: {self.core.snapshot()}")

    def note(self, effects: Effects) -> Effects:
        for uid, cached in effects.started:
            assert self.histories[uid].cached is None, "started twice"
            assert self.histories[uid].end is None, "started after the end"
            self.histories[uid].cached = cached
        for outputs in effects.tokens:
            for uid, token in zip(outputs.uids.tolist(), outputs.tokens.tolist(), strict=True):
                assert self.histories[uid].end is None, "a token after the end"
                self.histories[uid].tokens.append(token)
        for end in effects.ended:
            assert self.histories[end.uid].end is None, "ended twice"
            self.histories[end.uid].end = end
        self.core.audit()
        return effects

    def assert_answered(self, *requests: Request) -> None:
        """These requests (all, if none is named) got the very answer they would have got alone."""
        for request in requests or [history.request for history in self.histories.values()]:
            history = self.histories[request.uid]
            tokens, reason = answer_of(request)
            assert history.tokens == tokens
            assert history.end is not None and history.end.reason is reason

    def assert_empty(self) -> None:
        """Nothing is held any more."""
        snapshot = self.core.snapshot()
        assert (snapshot.num_running, snapshot.num_waiting, snapshot.num_in_flight) == (0, 0, 0)
        assert snapshot.num_blocks_free + snapshot.num_blocks_evictable == snapshot.num_blocks_total
        assert snapshot.num_requests_added == snapshot.num_requests_ended == len(self.histories)
        self.core.audit()


def config(**changes: object) -> SchedulerConfig:
    """A small scheduler."""
    options: dict[str, object] = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "max_model_len": 32,
        "block_size": 4,
        "num_blocks": 40,
    }
    return SchedulerConfig(**{**options, **changes})  # type: ignore[arg-type]
