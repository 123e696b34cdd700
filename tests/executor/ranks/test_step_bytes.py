"""What a rank reads is what rank 0 has sent."""

from __future__ import annotations

import os
import threading

import numpy as np

from headway.executor.ranks.orders import read_frames, write_frame
from headway.executor.ranks.step_bytes import step_bytes, step_of
from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler.batch import Admission, Batch

ARRAYS = ("slots", "positions", "num_new_tokens", "samples", "table_slots", "table_columns", "table_blocks")


def test_a_batch_is_the_same_behind_the_pipe():
    sampling = SamplingParams(temperature=1.0, seed=3, prompt_logprobs=4, stop=("x",))
    prompt = np.arange(5, dtype=np.int32)
    request = Request(
        uid=7, request_id="secret", prompt=prompt, sampling=sampling, max_tokens=9, grammar=object(), spans=()
    )
    known = np.arange(8, dtype=np.int32)
    batch = Batch(
        step_id=11,
        num_decodes=1,
        num_tokens=9,
        slots=np.array([3, 1], np.int32),
        positions=np.array([20, 0], np.int32),
        num_new_tokens=np.array([1, 8], np.int32),
        samples=np.array([True, False]),
        table_slots=np.array([1, 1], np.int32),
        table_columns=np.array([0, 1], np.int32),
        table_blocks=np.array([9, 4], np.int32),
        admissions=(Admission(1, request, known, 2, prompt_logprobs_from=3),),
    )
    found = step_of(step_bytes(batch))
    assert (found.step_id, found.num_decodes, found.num_tokens) == (11, 1, 9)
    for name in ARRAYS:
        theirs, ours = getattr(found, name), getattr(batch, name)
        assert theirs.dtype == ours.dtype and theirs.tolist() == ours.tolist()
    (one,) = found.admissions
    assert (one.slot, one.num_cached_tokens, one.prompt_logprobs_from) == (1, 2, 3)
    assert one.tokens.tolist() == known.tolist() and one.request.prompt.tolist() == prompt.tolist()
    assert one.request.sampling.prompt_logprobs == 4
    assert b"secret" not in step_bytes(batch), "who asked is of no use to a rank"


def test_frames_come_whole_and_in_order_whatever_the_pipe_holds():
    frames = [b"", b"a", os.urandom(300_000), b"bc" * 5]
    read, write = os.pipe()

    def send():
        for frame in frames:
            write_frame(write, frame)
        os.write(write, b"\x09\x00\x00\x00cut")  # its writer has ended in the midst
        os.close(write)

    thread = threading.Thread(target=send)
    thread.start()
    assert list(read_frames(read)) == frames
    thread.join()
    os.close(read)
