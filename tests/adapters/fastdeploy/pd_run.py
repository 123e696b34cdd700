"""A P and a D engine of FastDeploy, each with a free-running worker; a thread of ours moves the KV.

A program, as `mixed_run`. To be run inside `unshare -npf --mount-proc` alone.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any

from fastdeploy.inter_communicator import EngineWorkerQueue
from tests.adapters.fastdeploy.fast_deploy_engine import MAX_MODEL_LEN, make_engine, make_request
from tests.adapters.fastdeploy.free_worker import FreeWorker, answer

PORTS = {"prefill": 46778, "decode": 46878}
PD_PORTS = {"prefill": 46800, "decode": 46900}


@dataclass(kw_only=True)
class Plan:
    """As `mixed_run.Plan`. decode_blocks: of D."""

    manager: str = "headway"
    num_requests: int = 40
    num_blocks: int = 64
    decode_blocks: int = 64
    num_slots: int = 8
    most_outputs: int = 40
    most_prompt: int = 150
    aborts: float = 0.0
    prefix_caching: bool = False
    budget: int = MAX_MODEL_LEN
    seed: int = 1
    seconds: float = 60.0


class Side:
    """One engine and its worker."""

    def __init__(self, plan: Plan, role: str, num_outputs: dict[str, int]) -> None:
        self.engine = make_engine(
            *(plan.manager, plan),
            splitwise_role=role,
            num_blocks=plan.decode_blocks if role == "decode" else plan.num_blocks,
            engine_worker_queue_port=PORTS[role],
            cache_queue_port=PORTS[role] + 1,
            pd_comm_port=PD_PORTS[role],
            cache_transfer_protocol="ipc",
        )
        self.worker = FreeWorker(
            self.engine.engine_worker_queue.address,
            self.engine.cfg.parallel_config.local_engine_worker_queue_port,
            self.engine.cfg.cache_config.block_size,
            num_outputs,
            only_first=role == "prefill",
        )
        self.errors: dict[str, str] = {}

    def start(self) -> None:
        engine = self.engine
        engine.running = True
        engine.send_response_server = self
        self.worker.start()
        engine.token_processor.run()
        threading.Thread(target=engine.split_connector.start_receiver, daemon=True).start()
        threading.Thread(target=engine._schedule_request_to_worker_v1, daemon=True).start()
        if engine.cfg.scheduler_config.splitwise_role == "decode":
            engine._decode_process_splitwise_requests()

    def send_response(self, request_id: str, results: list[Any], **_: Any) -> None:
        self.errors[request_id] = results[0].error_msg

    def numbers(self) -> dict[str, Any]:
        manager = self.engine.resource_manager
        own = hasattr(manager, "_manager")
        free = manager.available_block_num() if own else len(manager.cache_manager.gpu_free_block_list)
        return {
            "faults": self.worker.faults[:3],
            "num_given_up": self.worker.num_given_up,
            "num_steps": self.worker.num_steps,
            "num_requests_left": len(manager.requests),
            "num_slots_used": sum(not flag for flag in manager.stop_flags),
            "num_free_slots": int(manager.available_batch()),
            "num_blocks_used": self.engine.cfg.cache_config.total_block_num - free,
            "errors": dict(list(self.errors.items())[:5]),
            "info": manager.info() if own else "",
        }


class Messager(threading.Thread):
    """In the place of FastDeploy's cache messager: brings the KV of a prompt from P's blocks to D's."""

    def __init__(self, prefill: Side, decode: Side) -> None:
        super().__init__(daemon=True)
        self.prefill, self.decode = prefill, decode
        self.sources: dict[str, list[int]] = {}
        self.targets: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}
        self.faults: list[str] = []

    def run(self) -> None:
        queue = EngineWorkerQueue(
            address=self.prefill.engine.engine_worker_queue.address, is_server=False, num_client=1, client_id=0
        )
        pending: set[str] = set()
        try:
            while True:
                for info in queue.get_cache_info():
                    request_id = info["request_id"]
                    if "dest_block_ids" in info:
                        self.targets[request_id] = list(info["dest_block_ids"])
                    else:
                        self.sources[request_id] = list(info["src_block_ids"])
                        self.lengths[request_id] = info["need_prefill_tokens"]
                        queue.put_finished_add_cache_task_req([request_id])
                        pending.add(request_id)
                for request_id in list(pending):
                    if request_id in self.prefill.worker.over:
                        self.copy(request_id)
                        pending.discard(request_id)
                        queue.put_finished_req([[request_id, "finished"]])
                time.sleep(0.001)
        except Exception:
            self.faults.append(traceback.format_exc())

    def copy(self, request_id: str) -> None:
        size = self.prefill.worker.block_size
        for position in range(self.lengths[request_id]):
            place = position // size, position % size
            source = (self.sources[request_id][place[0]], place[1])
            target = (self.targets[request_id][place[0]], place[1])
            self.decode.worker.kv[target] = self.prefill.worker.kv[source]


def main() -> None:
    plan = Plan(**json.loads(sys.argv[1]))
    num_outputs: dict[str, int] = {}
    prefill, decode = Side(plan, "prefill", num_outputs), Side(plan, "decode", num_outputs)
    messager = Messager(prefill, decode)
    for thread in (prefill, decode, messager):
        thread.start()
    rng = random.Random(plan.seed)
    prompts: dict[str, list[int]] = {}
    got: dict[str, list[int]] = {}
    ends: dict[str, int] = {}
    errors: dict[str, str] = {}
    aborted: set[str] = set()
    until = time.monotonic() + plan.seconds

    def collect() -> None:
        for request_id, outputs in decode.engine.scheduler.get_results().items():
            for output in outputs:
                if output.outputs is not None and output.error_code == 200 and output.error_msg != "Aborted":
                    got[request_id] += output.outputs.token_ids
                if output.finished:
                    ends[request_id] = ends.get(request_id, 0) + 1
                    if output.error_msg:
                        errors[request_id] = output.error_msg
        prefill.engine.scheduler.get_results()

    while len(ends) < plan.num_requests and time.monotonic() < until:
        if len(prompts) < plan.num_requests:
            request_id = f"req-{len(prompts)}"
            shared = [7] * (rng.randint(0, 4) * 16) if plan.prefix_caching else []
            prompts[request_id] = shared + [rng.randint(10, 900) for _ in range(rng.randint(5, plan.most_prompt))]
            num_outputs[request_id] = rng.randint(2, plan.most_outputs)
            got[request_id] = []
            for side, role in ((decode, "decode"), (prefill, "prefill")):
                request = make_request(request_id, prompts[request_id], num_outputs[request_id])
                request.disaggregate_info = {
                    "role": role,
                    "prefill_ip": "127.0.0.1",
                    "decode_ip": "127.0.0.1",
                    "prefill_connector_port": PD_PORTS["prefill"],
                    "decode_connector_port": PD_PORTS["decode"],
                    "transfer_protocol": "ipc",
                }
                assert side.engine.scheduler.put_requests([request])[0][1] is None
            if rng.random() < plan.aborts:
                victim = rng.choice(list(prompts))
                if victim not in ends:
                    aborted.add(victim)
                    decode.engine.resource_manager.add_abort_req_ids([victim])
        collect()
        time.sleep(0.002)
    time.sleep(0.5)
    collect()
    whole = {request_id: answer(prompt, num_outputs[request_id]) for request_id, prompt in prompts.items()}
    preempted = {request_id for request_id, error in errors.items() if "enough blocks" in error}
    cut = aborted | preempted
    wrong = [request_id for request_id in prompts if request_id not in cut and got[request_id] != whole[request_id]]
    wrong += [request_id for request_id in cut if got[request_id] != whole[request_id][: len(got[request_id])]]
    result = {
        "manager": plan.manager,
        "num_ended": len(ends),
        "ended_twice": [request_id for request_id, count in ends.items() if count > 1],
        "wrong": wrong[:5],
        "num_exact": len(prompts) - len(wrong),
        "num_aborted": len(aborted),
        "num_preempted": len(preempted),
        "errors_of_others": {k: v for k, v in errors.items() if k not in cut},
        "messager_faults": messager.faults,
        "prefill": prefill.numbers(),
        "decode": decode.numbers(),
    }
    print("RESULT", json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
