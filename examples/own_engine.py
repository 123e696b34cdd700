"""Drive Headway's scheduler from a loop of your own. The core needs numpy and nothing else: no torch, no threads.

    python examples/own_engine.py

Replace `device` by the code that computes a step: it gets slots, positions, token counts and changes of the block
tables as arrays, and returns one token for every row that samples.
"""

import numpy as np

from headway.config import SchedulerConfig
from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler import AddRequest, Batch, Scheduler, StepResult

CONFIG = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=256, block_size=16, num_blocks=64)
tables = np.zeros((CONFIG.max_num_seqs, CONFIG.blocks_per_request), dtype=np.int32)  # the device's own copy


def device(batch: Batch) -> StepResult:
    """A fake device: counts upwards from the position of each row."""
    tables[batch.table_slots, batch.table_columns] = batch.table_blocks
    ends = batch.positions + batch.num_new_tokens
    return StepResult(batch.step_id, ends[batch.samples].astype(np.int32))


def main() -> dict[str, list[int]]:
    scheduler = Scheduler(CONFIG)
    answers: dict[int, list[int]] = {}
    finished: dict[str, list[int]] = {}
    for uid in range(20):
        prompt = np.arange(10 + 7 * uid, dtype=np.int32)  # every prompt begins like the one before: a shared prefix
        request = Request(
            uid=uid, request_id=f"request-{uid}", prompt=prompt, sampling=SamplingParams(), max_tokens=12
        )  # fmt: skip
        answers[uid] = []
        scheduler.apply(AddRequest(request))

    while scheduler.snapshot().has_work:
        batch = scheduler.schedule()
        assert batch is not None
        effects = scheduler.apply(device(batch))
        for outputs in effects.tokens:
            for uid, token in zip(outputs.uids.tolist(), outputs.tokens.tolist(), strict=True):
                answers[uid].append(token)
        for end in effects.ended:
            finished[end.request_id] = answers.pop(end.uid)
            print(f"step {batch.step_id:3}  {end.request_id:10} {end.reason}: {len(finished[end.request_id])} tokens")
    snapshot = scheduler.snapshot()
    print(f"{snapshot.num_prefix_hit_tokens} of {snapshot.num_prefix_query_tokens} prompt tokens came from the cache")
    return finished


if __name__ == "__main__":
    main()
