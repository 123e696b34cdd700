"""The one step of the core that is in flight, over a worker that runs free.

FastDeploy's worker knows no steps: it computes the chunks it is given, samples the first token after the last chunk of
a prompt, and then decodes on its own as long as it has blocks. The core thinks in steps. So one step at a time is in
flight, and its answer is put together from the tokens that have come:

- a chunk that samples waits for its first token. It is the only thing that a step waits for;
- a chunk that does not sample is done when it was sent: the worker takes its tasks in order;
- a decoding request gives as many tokens as have come, from none to `most`. More stay for the next step.

While nothing waits, a step of decodes is answered only when a request has used up half of the places that it was given
ahead. So most calls of FastDeploy's scheduling loop only look.

After a preemption a request may have more tokens than the core knows: the worker ran ahead before it heard of the
preemption. These tokens are known results. The core gets them as the results of its next steps, and the worker gets
them as further chunks: where the core sees a decode, the worker sees a chunk, until it has caught up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from headway.adapters.fastdeploy.engine.record import Record
from headway.scheduler import StepResult


@dataclass(slots=True, eq=False)
class Portion:
    """Known tokens `[start, end)` of a request, which the worker is to compute."""

    record: Record
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the step that samples. slot: where its request was when the step began."""

    record: Record
    slot: int
    decodes: bool

    @property
    def is_void(self) -> bool:
        """Whether the core has, or will have, no use for the row."""
        return self.record.is_void or self.record.slot != self.slot

    @property
    def num_new(self) -> int:
        """Output tokens that have come and that the core does not know."""
        return self.record.num_outputs - self.record.num_told


@dataclass(slots=True, eq=False)
class Flight:
    """A step in flight.

    rows: the rows that sample, in the order of the batch.
    most: the most tokens that a decoding row may give.
    portions: what the worker has not been told yet.
    """

    step_id: int
    most: int
    rows: list[Row] = field(default_factory=list)
    portions: list[Portion] = field(default_factory=list)
    num_chunks: int = 0

    def is_done(self) -> bool:
        """Whether the step can be answered."""
        if self.portions:
            return False
        return all(row.decodes or row.is_void or row.num_new > 0 for row in self.rows)

    def is_due(self, slack: int, *, others_wait: bool) -> bool:
        """Whether it should be answered now. slack: places that a request should have before it. others_wait: whether
        requests wait for this step to end."""
        if self.num_chunks or others_wait:
            return True
        for row in self.rows:
            record = row.record
            if not record.free or record.slot != row.slot or record.muted:  # it catches up, has left or is to leave
                return True
            if record.num_places - record.num_known < slack and row.num_new:
                return True
        return False

    def result(self) -> StepResult:
        """The answer to the step. What it says is counted as told."""
        tokens: list[int] = []
        counts: list[int] = []
        for row in self.rows:
            new = self._tokens(row)
            tokens += new
            counts.append(len(new))
        return StepResult(self.step_id, np.array(tokens, dtype=np.int32), counts=np.array(counts, dtype=np.int32))

    def portions_of(self, record: Record) -> Iterator[Portion]:
        """What the worker has not been told of a request."""
        return (portion for portion in self.portions if portion.record is record)

    def _tokens(self, row: Row) -> list[int]:
        if row.is_void:
            return [] if row.decodes else [0]  # dropped by the core: the request has left, or leaves now
        record = row.record
        most = self.most if row.decodes else 1
        new = [int(token) for token in record.request.output_token_ids[record.num_told : record.num_told + most]]
        record.num_told += len(new)
        return new
