"""Jobs for an engine with a model, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.config import EngineConfig
from headway.engine.engine import Engine
from headway.request import FinishReason
from headway.sampling import SamplingParams
from headway.scheduler import Effects
from tests.engine.running import Recorder, eventually
from tests.executor.conftest import NUM_OUTPUT
from tests.managers.driving import assert_nothing_held, new_request

GREEDY = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True)
BLOCK_SIZE = 8
ABORT_AFTER = 5  # tokens


@dataclass(frozen=True)
class Job:
    """A request. aborted: its caller goes away when it has seen ABORT_AFTER tokens."""

    prompt: list[int]
    sampling: SamplingParams = GREEDY
    aborted: bool = False


@dataclass
class Served(Recorder):
    """What became of the jobs, in their order. most_in_flight: steps on the device at once, as far as was seen."""

    engine: Engine | None = None
    uids: dict[int, Job] = field(default_factory=dict)
    logprobs: dict[int, list[tuple[int, float, list[int]]]] = field(default_factory=dict)
    most_in_flight: int = 0
    preemptions: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def take(self, effects: Effects) -> None:
        super().take(effects)
        assert self.engine is not None
        self.most_in_flight = max(self.most_in_flight, self.engine.manager.snapshot().num_in_flight)
        for outputs in effects.tokens:
            self._abort([uid for uid in outputs.uids.tolist() if len(self.tokens[uid]) == ABORT_AFTER])
            found = outputs.logprobs
            for i, row in enumerate(() if found is None else found.rows.tolist()):
                ranked = int(found.ranks[i]), float(found.sampled[i]), found.top_ids[i].tolist()
                self.logprobs.setdefault(int(outputs.uids[row]), []).append(ranked)

    def _abort(self, uids: Sequence[int]) -> None:
        assert self.engine is not None
        self.engine.manager.abort([uid for uid in uids if self.uids[uid].aborted])

    @property
    def answers(self) -> list[list[int]]:
        return [self.tokens.get(uid, []) for uid in self.uids]

    @property
    def why(self) -> list[FinishReason]:
        return self.reasons(self.uids)


def serve(jobs: Sequence[Job], *, fits: int, max_model_len: int, **settings: Any) -> Served:
    """Let an engine answer, with room for `fits` of the longest requests. settings: of `EngineConfig`."""
    config = EngineConfig(
        device="cpu",
        max_model_len=max_model_len,
        block_size=BLOCK_SIZE,
        num_blocks=1 + fits * max_model_len // BLOCK_SIZE,
        reserve="none",
        **settings,
    )
    served = Served()
    engine = served.engine = Engine.from_config(config, served.take)
    for uid, job in enumerate(jobs, start=1):
        served.uids[uid] = job
        engine.add(new_request(f"r{uid}", job.prompt, job.sampling, uid=uid))
    engine.start()
    try:
        served.wait_for(served.uids)
        assert eventually(lambda: not engine.manager.snapshot().has_work)
        served.preemptions = engine.manager.snapshot().num_preemptions
    finally:
        engine.shutdown()
    assert engine.failure() is None
    assert_nothing_held(engine.manager)
    return served
