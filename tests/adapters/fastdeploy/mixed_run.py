"""A mixed engine of FastDeploy with a free-running worker: real EngineService, worker queue and token processor.

A program: `python -m tests.adapters.fastdeploy.mixed_run '{"manager": "headway", ...}'` prints what came of it as JSON.
To be run inside `unshare -npf --mount-proc` alone.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from tests.adapters.fastdeploy.fast_deploy_engine import make_engine, make_request
from tests.adapters.fastdeploy.free_worker import FreeWorker, answer


@dataclass(kw_only=True)
class Plan:
    """manager: "v1", FastDeploy's own, or "headway". aborts: share of requests that are aborted. pause: whether the
    engine is paused and resumed half-way."""

    manager: str = "headway"
    num_requests: int = 60
    num_blocks: int = 64
    num_slots: int = 8
    most_outputs: int = 60
    most_prompt: int = 150
    aborts: float = 0.0
    prefix_caching: bool = False
    pause: bool = False
    budget: int = 256
    seed: int = 1
    seconds: float = 60.0


class Run:
    """One run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.num_outputs: dict[str, int] = {}
        self.engine = make_engine(plan.manager, plan)
        self.worker = FreeWorker(
            self.engine.engine_worker_queue.address,
            self.engine.cfg.parallel_config.local_engine_worker_queue_port,
            self.engine.cfg.cache_config.block_size,
            self.num_outputs,
            only_first=False,
        )
        self.prompts: dict[str, list[int]] = {}
        self.got: dict[str, list[int]] = {}
        self.ends: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        self.aborted: set[str] = set()

    def start(self) -> None:
        self.engine.running = True
        self.engine.send_response_server = self  # FastDeploy sends errors past its scheduler
        self.worker.start()
        self.engine.token_processor.run()
        threading.Thread(target=self.engine._schedule_request_to_worker_v1, daemon=True).start()

    def send_response(self, request_id: str, results: list[Any], **_: Any) -> None:
        self.ends[request_id] = self.ends.get(request_id, 0) + 1
        self.errors[request_id] = results[0].error_msg

    def put(self, i: int, rng: random.Random) -> None:
        plan, request_id = self.plan, f"req-{i}"
        shared = [7] * (rng.randint(0, 4) * 16) if plan.prefix_caching else []
        prompt = shared + [rng.randint(10, 900) for _ in range(rng.randint(5, plan.most_prompt))]
        self.num_outputs[request_id] = rng.randint(1, plan.most_outputs)
        self.prompts[request_id], self.got[request_id] = prompt, []
        request = make_request(request_id, prompt, self.num_outputs[request_id])
        (added,) = self.engine.scheduler.put_requests([request])
        assert added[1] is None, added

    def collect(self) -> None:
        for request_id, outputs in self.engine.scheduler.get_results().items():
            for output in outputs:
                if output.outputs is not None and output.error_code == 200 and output.error_msg != "Aborted":
                    self.got[request_id] += output.outputs.token_ids
                if output.finished:
                    self.ends[request_id] = self.ends.get(request_id, 0) + 1
                    if output.error_msg:
                        self.errors[request_id] = output.error_msg

    def run(self) -> dict[str, Any]:
        plan, rng = self.plan, random.Random(self.plan.seed)
        self.start()
        until = time.monotonic() + plan.seconds
        num_put, paused = 0, not plan.pause
        while len(self.ends) < plan.num_requests and time.monotonic() < until:
            if num_put < plan.num_requests:
                self.put(num_put, rng)
                num_put += 1
                if rng.random() < plan.aborts:
                    victim = f"req-{rng.randrange(num_put)}"
                    if victim not in self.ends:
                        self.aborted.add(victim)
                        self.engine.resource_manager.add_abort_req_ids([victim])
            if not paused and num_put == plan.num_requests // 2:
                paused = True
                self.pause()
            self.collect()
            time.sleep(0.002)
        time.sleep(0.3)
        self.collect()
        return self.report()

    def pause(self) -> None:
        """Pause: all requests so far end. Then go on."""
        before = set(self.prompts) - set(self.ends)
        self.aborted |= before
        done = threading.Event()

        def begin() -> None:
            self.engine._control_pause(None)
            done.set()

        threading.Thread(target=begin, daemon=True).start()
        while not done.wait(0.005):
            self.collect()
        with self.engine._pause_cond:
            self.engine.is_paused = self.engine._rejecting_new_requests = False
            self.engine._pause_cond.notify_all()

    def report(self) -> dict[str, Any]:
        manager, worker = self.engine.resource_manager, self.worker
        wrong = [
            request_id
            for request_id, prompt in self.prompts.items()
            if request_id not in self.aborted and self.got[request_id] != answer(prompt, self.num_outputs[request_id])
        ]
        cut = [
            request_id
            for request_id in self.aborted
            if not is_start(self.got[request_id], answer(self.prompts[request_id], self.num_outputs[request_id]))
        ]
        own = self.plan.manager == "headway"
        free = manager.available_block_num() if own else len(manager.cache_manager.gpu_free_block_list)
        return {
            "manager": self.plan.manager,
            "num_ended": len(self.ends),
            "ended_twice": [request_id for request_id, ends in self.ends.items() if ends > 1],
            "wrong": wrong[:5] + cut[:5],
            "num_exact": len(self.prompts) - len(wrong),
            "num_aborted": len(self.aborted),
            # An abort may come too late: then the answer is whole.
            "cut_without_a_word": [
                request_id
                for request_id in self.aborted
                if self.errors.get(request_id) is None
                and self.got[request_id] != answer(self.prompts[request_id], self.num_outputs[request_id])
            ],
            "errors_of_others": {k: v for k, v in self.errors.items() if k not in self.aborted},
            "faults": worker.faults[:3],
            "num_given_up": worker.num_given_up,
            "num_steps": worker.num_steps,
            "num_stalls": worker.num_stalls,
            "num_chunks": worker.num_chunks,
            "num_waiting": len(manager.waiting),
            "num_requests_left": len(manager.requests),
            "num_slots_used": sum(not flag for flag in manager.stop_flags),
            "num_free_slots": int(manager.available_batch()),
            "num_blocks_used": self.plan.num_blocks - free,
            "info": manager.info() if own else "",
        }


def is_start(tokens: list[int], whole: list[int]) -> bool:
    """Whether an aborted request has given the first tokens of its answer, or all."""
    return tokens == whole[: len(tokens)]


def main() -> None:
    result = Run(Plan(**json.loads(sys.argv[1]))).run()
    print("RESULT", json.dumps(result), flush=True)
    os._exit(0)  # FastDeploy's own exit kills process groups


if __name__ == "__main__":
    main()
