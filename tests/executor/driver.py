"""The smallest engine that can drive an executor: it makes batches, and keeps no rule of the scheduler but these.

Rows are decodes first, then chunks; a request gets scattered blocks as it grows; at most one step is in flight.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from headway.executor.base import Executor
from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler.batch import Admission, Batch, Logprobs, StepResult

GREEDY = SamplingParams(temperature=0, max_tokens=1000)


@dataclass
class Sequence_:
    """A request on its way: all its tokens, how many have their KV, its blocks and its slot."""

    request: Request
    slot: int
    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    admitted: bool = False
    logprobs: list[tuple[float, int, list[int], list[float]]] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]


class Driver:
    """Owns slots and blocks of one started executor. seed: the order in which blocks are handed out."""

    def __init__(self, executor: Executor, num_blocks: int, block_size: int = 16, seed: int = 0) -> None:
        self.executor = executor
        self.block_size = block_size
        self.free_blocks = random.Random(seed).sample(range(1, num_blocks), num_blocks - 1)
        self.results: SimpleQueue[StepResult] = SimpleQueue()
        self.step_id = 0
        self.next_uid = 1
        executor.start(self.results.put)

    def sequence(self, slot: int, prompt: Sequence[int], sampling: SamplingParams = GREEDY, **fields) -> Sequence_:
        """A request that takes `slot` in the first step it is part of."""
        request = Request(
            uid=fields.pop("uid", self.next_uid),
            request_id=str(self.next_uid),
            prompt=np.array(prompt, np.int32),
            sampling=sampling,
            max_tokens=1000,
            **fields,
        )
        self.next_uid += 1
        return Sequence_(request, slot, list(prompt))

    def preempt(self, sequence: Sequence_, slot: int) -> None:
        """Take everything computed away; it starts again in another slot."""
        self.release(sequence)
        sequence.slot, sequence.computed, sequence.admitted = slot, 0, False

    def release(self, sequence: Sequence_) -> None:
        self.free_blocks[:0] = sequence.blocks
        sequence.blocks = []

    def launch(self, work: Sequence[tuple[Sequence_, int]]) -> list[Sequence_]:
        """Launch one step in which each sequence computes so many tokens; returns those that sample."""
        work = sorted(work, key=lambda item: not self._is_decode(item[0]))
        admissions, changes = [], []
        for sequence, count in work:
            assert len(sequence.blocks) * self.block_size >= sequence.computed, "its blocks were released"
            if not sequence.admitted:
                sequence.admitted = True
                known = np.array(sequence.tokens, np.int32)
                admissions.append(Admission(sequence.slot, sequence.request, known, sequence.computed))
                changes += [(sequence.slot, column, block) for column, block in enumerate(sequence.blocks)]
            while len(sequence.blocks) * self.block_size < sequence.computed + count:
                sequence.blocks.append(self.free_blocks.pop())
                changes.append((sequence.slot, len(sequence.blocks) - 1, sequence.blocks[-1]))
        self.step_id += 1
        table = np.array(changes, np.int32).reshape(-1, 3)
        samples = [s.computed + count == len(s.tokens) for s, count in work]
        self.executor.launch(
            Batch(
                step_id=self.step_id,
                num_decodes=sum(self._is_decode(s) for s, _ in work),
                num_tokens=sum(count for _, count in work),
                slots=np.array([s.slot for s, _ in work], np.int32),
                positions=np.array([s.computed for s, _ in work], np.int32),
                num_new_tokens=np.array([count for _, count in work], np.int32),
                samples=np.array(samples),
                table_slots=table[:, 0],
                table_columns=table[:, 1],
                table_blocks=table[:, 2],
                admissions=tuple(admissions),
            )
        )
        for sequence, count in work:
            sequence.computed += count
        return [s for (s, _), sampled in zip(work, samples, strict=True) if sampled]

    def step(self, work: Sequence[tuple[Sequence_, int]]) -> StepResult:
        """Launch one step, wait for it, and append the tokens it sampled."""
        sampling = self.launch(work)
        result = self.results.get(timeout=60)
        assert result.step_id == self.step_id
        if result.error is None:
            assert len(result.tokens) == len(sampling)
            for sequence, token in zip(sampling, result.tokens.tolist(), strict=True):
                sequence.tokens.append(token)
            if result.logprobs is not None:
                _note(result.logprobs, sampling)
        return result

    def run(
        self,
        sequences: Sequence[Sequence_],
        num_output: int,
        budget: int = 2048,
        max_running: int = 8,
        release: bool = True,
    ) -> None:
        """Serve until each sequence has `num_output` tokens: decodes first, then chunks of what the budget leaves.
        release: free the blocks of those that are done, which cannot go on then."""
        waiting = list(sequences)
        running: list[Sequence_] = []
        while waiting or running:
            while waiting and len(running) < max_running:
                running.append(waiting.pop(0))
            work, left = [], budget
            for sequence in sorted(running, key=lambda s: not self._is_decode(s)):
                count = min(left, len(sequence.tokens) - sequence.computed)
                if count:
                    work.append((sequence, count))
                    left -= count
            result = self.step(work)
            assert result.error is None, result.error
            for sequence in [s for s in running if len(s.output) == num_output]:
                running.remove(sequence)
                if release:
                    self.release(sequence)

    @staticmethod
    def _is_decode(sequence: Sequence_) -> bool:
        """The only unknown is the KV of the last sampled token, which this slot sampled."""
        return sequence.admitted and 0 < sequence.computed == len(sequence.tokens) - 1 and bool(sequence.output)


def _note(logprobs: Logprobs, sampling: list[Sequence_]) -> None:
    for index, row in enumerate(logprobs.rows):
        sampling[row].logprobs.append(
            (
                float(logprobs.sampled[index]),
                int(logprobs.ranks[index]),
                logprobs.top_ids[index].tolist(),
                logprobs.top[index].tolist(),
            )
        )
