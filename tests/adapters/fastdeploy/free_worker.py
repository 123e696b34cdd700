"""A worker for FastDeploy's engine without a device. It runs free, as the real one does: it takes tasks from the queue,
computes chunks, decodes as long as it has blocks, and sends tokens whenever it has some.

It keeps tokens in blocks, by block id, and reads them back to make the next token. So a block with two owners, a wrong
table, or a chunk that was not computed shows as wrong tokens, or as a read of an empty place.
"""

from __future__ import annotations

import hashlib
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq

from fastdeploy.engine.request import RequestType
from fastdeploy.inter_communicator import EngineWorkerQueue
from fastdeploy.inter_communicator.zmq_client import ZmqIpcClient
from fastdeploy.output.stream_transfer_data import DecoderState, StreamTransferData

END = 1  # the end-of-sequence token
GAVE_UP = -9  # FastDeploy's word for a slot that was given up
NOTHING = -1  # FastDeploy's word for a slot without a token
STEP_SECONDS = 0.002


def next_token(tokens: list[int]) -> int:
    """The model: the token that follows."""
    digest = hashlib.blake2b(np.asarray(tokens, dtype=np.int64).tobytes(), digest_size=4).digest()
    return 10 + int.from_bytes(digest, "little") % 900


def answer(prompt: list[int], num_outputs: int) -> list[int]:
    """All output tokens of a request; the last one is the end."""
    tokens = list(prompt)
    for _ in range(num_outputs - 1):
        tokens.append(next_token(tokens))
    return [*tokens[len(prompt) :], END]


@dataclass
class Occupant:
    """What the worker knows of the request in a slot.

    table: its blocks. num_in_place: leading tokens whose KV is there. pending: the token to compute next, once it
        decodes. num_outputs: output tokens that it has.
    """

    request_id: str
    table: list[int] = field(default_factory=list)
    num_in_place: int = 0
    pending: int | None = None
    num_outputs: int = 0
    is_new: bool = False


class FreeWorker(threading.Thread):
    """See the module. num_outputs: for each request id, how many tokens it gives. faults: what must not happen.

    only_first: P: a request is over after its first token.
    """

    def __init__(self, address: Any, port: int, block_size: int, num_outputs: dict[str, int], only_first: bool) -> None:
        super().__init__(daemon=True)
        self.address, self.port, self.block_size = address, port, block_size
        self.num_outputs = num_outputs
        self.only_first = only_first
        self.kv: dict[tuple[int, int], int] = {}
        self.slots: dict[int, Occupant] = {}
        self.given_up: list[int] = []
        self.spanned = 0
        self.over: set[str] = set()  # requests that have given their last token
        self.faults: list[str] = []
        self.num_steps = self.num_given_up = self.num_stalls = self.num_chunks = 0

    def run(self) -> None:
        queue = EngineWorkerQueue(address=self.address, is_server=False, num_client=1, client_id=0)
        output = ZmqIpcClient(name=f"get_save_output_rank0_{self.port}", mode=zmq.PUSH)
        output.connect()
        try:
            while True:
                if queue.exist_tasks():
                    tasks, _ = queue.get_tasks()
                    for batch, spanned in tasks:
                        self.spanned = spanned
                        for task in batch:
                            self.take(task)
                tokens = self.step()
                if tokens is not None:
                    self.num_steps += 1
                    output.socket.send_pyobj(
                        [
                            StreamTransferData(DecoderState.TEXT, slot, tokens=np.array([token]))
                            for slot, token in enumerate(tokens)
                        ]
                    )
                time.sleep(STEP_SECONDS)
        except Exception:
            self.faults.append(traceback.format_exc())

    def take(self, task: Any) -> None:
        kind = task.task_type.value
        if kind == RequestType.PREFILL.value:
            self.prefill(task)
        elif kind == RequestType.DECODE.value:
            if task.idx in self.slots:
                self.slots[task.idx].table = list(task.block_tables)
        else:
            self.slots.pop(task.idx, None)
            self.given_up.append(task.idx)
            self.num_given_up += 1

    def prefill(self, task: Any) -> None:
        occupant = self.slots.get(task.idx)
        if occupant is None or occupant.request_id != task.request_id:
            occupant = self.slots[task.idx] = Occupant(task.request_id)
        known = [*task.prompt_token_ids, *task.output_token_ids]
        occupant.table = list(task.block_tables)
        for position in range(task.prefill_start_index, task.prefill_end_index):
            self.kv[self.place(occupant, position)] = known[position]
        occupant.num_in_place = task.prefill_end_index
        occupant.num_outputs = len(task.output_token_ids)
        occupant.pending = None
        occupant.is_new = task.prefill_end_index >= len(known)
        self.num_chunks += 1

    def place(self, occupant: Occupant, position: int) -> tuple[int, int]:
        return occupant.table[position // self.block_size], position % self.block_size

    def step(self) -> list[int] | None:
        """One token for each slot that the engine knows; None: there is nothing to say."""
        tokens: dict[int, int] = dict.fromkeys(self.given_up, GAVE_UP)
        self.given_up = []
        for slot, occupant in list(self.slots.items()):
            token = self.sample(occupant)
            if token is None:
                continue
            tokens[slot] = token
            if token == END or self.only_first:
                self.over.add(occupant.request_id)
                del self.slots[slot]
        if not tokens:
            return None
        return [tokens.get(slot, NOTHING) for slot in range(max(self.spanned, *(slot + 1 for slot in tokens)))]

    def sample(self, occupant: Occupant) -> int | None:
        """The next token of a request; None: it has a chunk to come, or no block."""
        if occupant.pending is not None:
            if occupant.num_in_place // self.block_size >= len(occupant.table):
                self.num_stalls += 1
                return None
            self.kv[self.place(occupant, occupant.num_in_place)] = occupant.pending
            occupant.num_in_place += 1
        elif not occupant.is_new:
            return None
        occupant.is_new = False
        try:
            tokens = [self.kv[self.place(occupant, position)] for position in range(occupant.num_in_place)]
        except LookupError as error:
            self.faults.append(f"{occupant.request_id}: nothing in place {error}")
            return END
        occupant.num_outputs += 1
        is_last = occupant.num_outputs >= self.num_outputs[occupant.request_id]
        occupant.pending = END if is_last else next_token(tokens)
        return occupant.pending
