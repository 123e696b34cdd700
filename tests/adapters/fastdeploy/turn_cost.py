"""What a call of `schedule` costs in FastDeploy's scheduling thread, with its own manager and with Headway's, in turn.

A program: `python -m tests.adapters.fastdeploy.isolated tests.adapters.fastdeploy.turn_cost` prints CPU microseconds of
the thread per call while N requests decode and each has one new token.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

from fastdeploy.engine.request import RequestStatus
from fastdeploy.engine.sched.resource_manager_v1 import ResourceManagerV1
from headway.adapters.fastdeploy.engine.resource_manager import HeadwayResourceManager
from tests.adapters.fastdeploy.fast_deploy_engine import make_config, make_request

NUM_PROMPT, NUM_OUTPUTS, NUM_ROUNDS = 64, 128, 3
BLOCK_SIZE = 64


@dataclass
class Sizes:
    num_slots: int = 8
    num_blocks: int = 64
    budget: int = 256
    prefix_caching: bool = False


def microseconds_per_call(kind: type, config: Any, num_running: int) -> float:
    """The mean over the calls of one round: most only look, some answer a step of the core."""
    manager = kind(num_running, config, 1, "mixed")
    requests = [make_request(f"req-{i}", [7] * NUM_PROMPT, NUM_OUTPUTS) for i in range(num_running)]
    for request in requests:
        manager.add_request(request)
    for _ in range(300):
        manager.schedule()
        for request in requests:
            if request.idx is not None and not request.output_token_ids:
                request.output_token_ids.append(9)
        time.sleep(0.001)  # FastDeploy's own manager asks threads whether a request is prepared
    assert all(request.idx is not None for request in requests), "all of them run"
    times = []
    for token in range(NUM_OUTPUTS):
        for request in requests:
            request.output_token_ids.append(10 + token)
            request.status = RequestStatus.RUNNING_DECODE  # FastDeploy's own manager forgets that
        start = time.thread_time()
        manager.schedule()
        times.append((time.thread_time() - start) * 1e6)
    return statistics.mean(times)


def main() -> None:
    config = make_config(Sizes())
    config.cache_config.block_size = BLOCK_SIZE
    config.model_config.max_model_len = 256
    config.scheduler_config.max_num_batched_tokens = 8192
    logging.disable(logging.CRITICAL)
    table = {}
    for num_running in (8, 64, 256):
        config.cache_config.total_block_num = 32 * num_running
        rounds: dict[str, list[float]] = {"v1": [], "headway": []}
        for _ in range(NUM_ROUNDS):
            for name, kind in (("v1", ResourceManagerV1), ("headway", HeadwayResourceManager)):
                gc.collect()
                rounds[name].append(microseconds_per_call(kind, config, num_running))
        table[num_running] = {name: round(statistics.median(times)) for name, times in rounds.items()}
    print("RESULT", json.dumps(table), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
