"""Measures the memory of the scheduler's state, in a separate process, where nothing else is loaded.

    python -m headway_lab.rigs.footprint WHAT COUNT        prints the bytes that became resident, as one number

WHAT: slots     a table of COUNT free slots
      running   COUNT requests that decode, each of PROMPT tokens, and their blocks
      blocks    a pool of COUNT free blocks
      cached    a pool of COUNT full blocks, all in the prefix cache
"""

from __future__ import annotations

import gc
import sys

import numpy as np
import psutil  # type: ignore[import-untyped]

from headway.config import SchedulerConfig
from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler import AddRequest, Scheduler, StepResult

BLOCK_SIZE = 16
PROMPT = 128
LONG_PROMPT = 16_384
MAX_MODEL_LEN = 32_768
VOCAB_SIZE = 32_000
WHATS = ("slots", "running", "blocks", "cached")


def resident_bytes() -> int:
    """The resident memory of this process, in bytes."""
    resident: int = psutil.Process().memory_info().rss
    return resident


def build(what: str, count: int) -> Scheduler:
    """A scheduler with `count` objects of the kind `what`."""
    one_request = MAX_MODEL_LEN // BLOCK_SIZE
    slots, blocks = (count, one_request) if what in ("slots", "running") else (64, count)
    if what == "running":
        blocks = max(blocks, count * (PROMPT // BLOCK_SIZE + 1))
    config = SchedulerConfig(
        max_num_seqs=slots,
        max_num_batched_tokens=max(LONG_PROMPT, slots * PROMPT),  # all of them in one step
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
        num_blocks=blocks + 1,
        reserve="none",
    )
    scheduler = Scheduler(config)
    if what == "running":
        for uid in range(count):
            _add(scheduler, uid, PROMPT, output=MAX_MODEL_LEN - PROMPT)
        _run_step(scheduler)
    elif what == "cached":
        for uid in range(-(-blocks * BLOCK_SIZE // LONG_PROMPT)):  # one after the other, and each of them ends
            _add(scheduler, uid, LONG_PROMPT, output=1)
            while scheduler.snapshot().has_work:
                _run_step(scheduler)
    return scheduler


def _add(scheduler: Scheduler, uid: int, prompt: int, output: int) -> None:
    tokens = np.random.default_rng(uid).integers(0, VOCAB_SIZE, prompt, dtype=np.int32)
    sampling = SamplingParams(max_tokens=None, ignore_eos=True)
    request = Request(uid=uid, request_id=f"{uid}", prompt=tokens, sampling=sampling, max_tokens=output)
    scheduler.apply(AddRequest(request))


def _run_step(scheduler: Scheduler) -> None:
    batch = scheduler.schedule()
    assert batch is not None, "no request can be admitted"
    scheduler.apply(StepResult(batch.step_id, np.ones(np.count_nonzero(batch.samples), dtype=np.int32)))


def main(what: str, count: int) -> None:
    """Print how many bytes become resident when the scheduler is built."""
    build(what, 64 if what in ("slots", "running") else 4_096)  # whatever is loaded and set up by first use
    gc.collect()
    before = resident_bytes()
    scheduler = build(what, count)
    gc.collect()
    print(resident_bytes() - before)
    del scheduler


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
