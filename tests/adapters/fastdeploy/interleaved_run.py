"""Random interleavings, without threads: FastDeploy's token processor, the worker and the scheduling thread take turns.

A program: `python -m tests.adapters.fastdeploy.interleaved_run FIRST_SEED COUNT` prints the seeds that fail. Each seed
has its own sizes, requests, aborts and order of turns. A message between two parties may lie for long.
To be run by `isolated` alone.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import sys
import time
import traceback
from collections import deque
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np

from fastdeploy.engine.request import Request
from fastdeploy.output.stream_transfer_data import DecoderState, StreamTransferData
from headway.adapters.fastdeploy.engine.resource_manager import HeadwayResourceManager
from headway.adapters.fastdeploy.engine.sizes import scheduler_config
from tests.adapters.fastdeploy.fast_deploy_engine import make_engine, make_request
from tests.adapters.fastdeploy.free_worker import FreeWorker, answer

MAX_TURNS = 40_000


@dataclass
class Sizes:
    num_slots: int = 8
    num_blocks: int = 64
    budget: int = 256
    prefix_caching: bool = False


class World:
    """One seed."""

    def __init__(self, engine: Any, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        config = engine.cfg
        self.num_slots, self.num_blocks = rng.randint(1, 6), rng.randint(18, 40)
        config.cache_config.enable_prefix_caching = rng.random() < 0.6
        config.cache_config.enable_output_caching = rng.random() < 0.6
        config.scheduler_config.max_num_batched_tokens = rng.choice((16, 48, 256))
        reserve = rng.choice(("peak", "none", "none"))  # "none" leads to many preemptions

        def sizes(*arguments: Any) -> Any:
            return replace(scheduler_config(*arguments), reserve=reserve)

        with patch("headway.adapters.fastdeploy.engine.resource_manager.scheduler_config", sizes):
            config.cache_config.total_block_num = 20
            self.manager = HeadwayResourceManager(self.num_slots, config, 1, "mixed")
            config.cache_config.total_block_num = self.num_blocks  # as after FastDeploy has measured the memory
            self.manager.reset_cache_config(config.cache_config)
        self.processor = engine.token_processor
        self.processor.resource_manager = self.manager
        self.processor.cached_generated_tokens = self
        self.processor.tokens_counter.clear()
        self.num_outputs: dict[str, int] = {}
        self.worker = FreeWorker(None, 0, config.cache_config.block_size, self.num_outputs, only_first=False)
        self.inbox: deque[bytes] = deque()  # to the worker
        self.outbox: deque[list[StreamTransferData]] = deque()  # to the token processor
        self.prompts: dict[str, list[int]] = {}
        self.got: dict[str, list[int]] = {}
        self.ends: dict[str, int] = {}
        self.aborted: set[str] = set()
        self.cleared: set[str] = set()
        self.clears = rng.random() < 0.2
        self.num_requests = rng.randint(3, 25)
        self.aborts = rng.choice((0.0, 0.3, 1.0))
        self.is_long = rng.random() < 0.6
        self.weights = [rng.choice((1, 3, 9)) for _ in range(5)] + [0.05]

    def put_results(self, results: list[Any]) -> None:
        for result in results:
            if result.error_msg != "Aborted":
                self.got[result.request_id] += result.outputs.token_ids
            if result.finished:
                self.ends[result.request_id] = self.ends.get(result.request_id, 0) + 1

    def run(self) -> None:
        turns = (self.schedule, self.work, self.work, self.process, self.come, self.clear)
        for _ in range(MAX_TURNS):
            if len(self.ends | dict.fromkeys(self.cleared)) == self.num_requests and self.is_quiet():
                break
            self.rng.choices(turns, self.weights)[0]()
        for _ in range(5):
            self.schedule()
        self.check()

    def is_quiet(self) -> bool:
        return not self.inbox and not self.outbox and not self.worker.slots and not self.manager.requests

    def come(self) -> None:
        rng = self.rng
        if len(self.prompts) < self.num_requests:
            request_id = f"req-{len(self.prompts)}"
            shared = [7] * (rng.randint(0, 5) * 16) if rng.random() < 0.7 else []
            most_prompt, most_outputs = (40, 120) if self.is_long else (120, 30)
            self.prompts[request_id] = shared + [rng.randint(10, 900) for _ in range(rng.randint(1, most_prompt))]
            self.num_outputs[request_id] = rng.randint(1, most_outputs)
            self.got[request_id] = []
            request = make_request(request_id, self.prompts[request_id], self.num_outputs[request_id])
            if rng.random() < self.aborts * 0.1:
                self.abort(request_id)
            self.manager.add_request(request)
        if self.prompts and rng.random() < self.aborts * 0.1:
            self.abort(rng.choice(list(self.prompts)))

    def abort(self, request_id: str) -> None:
        if request_id not in self.ends:
            self.aborted.add(request_id)
            self.manager.add_abort_req_ids([request_id])

    def clear(self) -> None:
        """FastDeploy clears its engine, once. It does not answer requests that have a slot."""
        if self.clears and len(self.prompts) > 2:
            self.clears = False
            self.cleared = set(self.prompts) - set(self.ends)
            self.processor.clear_data()
            self.inbox.clear()
            self.outbox.clear()
            self.worker.slots.clear()
            self.worker.given_up.clear()

    def schedule(self) -> None:
        if self.inbox:
            return  # as FastDeploy's loop: the worker has not taken the last tasks
        batch, errors = self.manager.schedule()
        assert {request_id for request_id, _ in errors} <= self.cleared, errors
        self.ends |= {request_id: self.ends.get(request_id, 0) + 1 for request_id, _ in errors}
        if len(batch):
            self.manager.get_real_bsz()
            for task in batch:  # as FastDeploy's loop
                if isinstance(task, Request) and not task.has_been_preempted_before:
                    task.metrics.inference_start_time = time.time()
            self.inbox.append(pickle.dumps((batch, self.manager.real_bsz)))

    def work(self) -> None:
        worker = self.worker
        while self.inbox:
            batch, worker.spanned = pickle.loads(self.inbox.popleft())
            for task in batch:
                worker.take(task)
        tokens = worker.step()
        if tokens is not None:
            self.outbox.append(
                [
                    StreamTransferData(DecoderState.TEXT, slot, tokens=np.array([token]))
                    for slot, token in enumerate(tokens)
                ]
            )

    def process(self) -> None:
        if self.outbox:
            message = self.outbox.popleft()
            self.processor._reschedule_preempt_task_use_zmq(message)
            self.processor.postprocess(self.processor._process_batch_output_use_zmq(message))

    def check(self) -> None:
        assert not self.worker.faults, self.worker.faults[:2]
        ends = {request_id: self.ends.get(request_id, 0) for request_id in self.prompts}
        odd = {
            request_id
            for request_id, count in ends.items()
            if count > 1 or (not count and request_id not in self.cleared)
        }
        assert not odd, odd
        for request_id, prompt in self.prompts.items():
            whole, got = answer(prompt, self.num_outputs[request_id]), self.got[request_id]
            assert got == (whole[: len(got)] if request_id in self.aborted | self.cleared else whole), request_id
        manager = self.manager
        assert not manager.requests and len(manager.waiting) == 0
        assert all(manager.stop_flags) and manager.available_batch() == self.num_slots
        assert manager.available_block_num() == self.num_blocks, manager.info()
        assert not list(manager.to_be_aborted_req_id_set)


def main() -> None:
    first, count = int(sys.argv[1]), int(sys.argv[2])
    engine = make_engine("headway", Sizes())
    logging.disable(logging.CRITICAL)
    failed: dict[int, str] = {}
    numbers = {"preempted": 0, "aborted": 0, "chunks": 0, "requests": 0}
    for seed in range(first, first + count):
        world = World(engine, seed)
        try:
            world.run()
        except Exception:
            failed[seed] = traceback.format_exc()
        numbers["aborted"] += len(world.aborted)
        numbers["requests"] += len(world.prompts)
        numbers["chunks"] += world.worker.num_chunks
        numbers["preempted"] += world.manager._manager.snapshot().num_preemptions
    print("RESULT", json.dumps({"failed": failed, **numbers}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
