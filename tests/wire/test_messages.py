"""What crosses between the processes arrives as it was sent."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from headway.config import EngineConfig, Role, SchedulerConfig
from headway.errors import (
    DuplicateRequestError,
    EngineDeadError,
    EnginePausedError,
    QueryError,
    QueueFullError,
    RequestError,
)
from headway.model_limits import ModelLimits
from headway.placement import Placement
from headway.request import FinishReason, NewRequest, Span, Transfer
from headway.sampling import SamplingParams
from headway.scheduler.audit import AuditReport, Owner
from headway.scheduler.batch import Logprobs, PromptLogprobs
from headway.scheduler.effects import Effects, PromptOutputs, RequestEnd, TokenOutputs
from headway.scheduler.snapshot import Snapshot
from headway.token_ids import pack
from headway.wire import codec, to_client, to_engine
from headway.wire.launch import Launch
from headway.wire.refusals import kind_of, refusal
from headway.wire.uids import UID_BITS, effects_of_client

FIRST, SECOND = 0 << UID_BITS, 1 << UID_BITS  # the first uids of two API processes


def logprobs(rows: list[int]) -> Logprobs:
    """Rows that can be told apart: everything of row r is made of r."""
    of = np.array(rows, np.int32)
    return Logprobs(
        rows=of,
        sampled=-of.astype(np.float32),
        ranks=of + 1,
        top_ids=np.stack([of * 10, of * 10 + 1], axis=1).astype(np.int32),
        top=np.stack([-of, -of - 0.5], axis=1).astype(np.float32),
    )


def test_a_request_crosses_unchanged() -> None:
    sampling = SamplingParams(
        temperature=0.7, seed=-5, logit_bias={3: -1.5}, stop=("a", "b"), stop_token_ids=(4,), logprobs=2
    )
    sent = NewRequest(
        request_id="id",
        prompt=pack([1, 2, 300], 1000),
        sampling=sampling,
        uid=7,
        priority=-3,
        cache_salt="salt",
        reads_prefix_cache=False,
        spans=(Span(0, 2, b"digest", 5),),
        preprocess=b"image",
        transfer=Transfer.PULL,
        arrival_time=2.5,
    )
    (arrived,) = codec.decode_to_engine(codec.encode(to_engine.AddGroup([sent]))).requests
    assert arrived.prompt.tolist() == [1, 2, 300]
    assert pack(arrived.prompt, 1000) is arrived.prompt, "the engine need not copy it"
    assert replace(arrived, prompt=sent.prompt) == sent


def test_a_request_that_brings_little_takes_the_defaults() -> None:
    sent = NewRequest(request_id="id", prompt=pack([], 1000), sampling=SamplingParams())
    (arrived,) = codec.decode_to_engine(codec.encode(to_engine.AddGroup([sent]))).requests
    assert replace(arrived, prompt=sent.prompt) == sent and not len(arrived.prompt)


@pytest.mark.parametrize(
    "message",
    [
        to_engine.Abort([1, 2]),
        to_engine.Finish([3]),
        to_engine.PullFrom(3, {"remote_host": "p", "remote_port": 7}),
        to_engine.PullFrom(3, None),
        to_engine.Call(1 << UID_BITS, to_engine.PauseEngine("preempt", True, 2.5)),
        to_engine.Call(1, to_engine.ResumeEngine()),
        to_engine.Call(2, to_engine.IsPaused()),
        to_engine.Call(3, to_engine.ResetCache(1.0)),
        to_engine.Call(4, to_engine.AuditEngine(1.0)),
        to_engine.TellCache(3),
        to_engine.Shutdown(1.5),
    ],
)
def test_commands_cross_unchanged(message: to_engine.ToEngine) -> None:
    assert codec.decode_to_engine(codec.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        to_client.Ready(
            SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=20, num_blocks=30),
            Placement("cpu", "float32", "numba"),
        ),
        to_client.LoadFailed("no such model"),
        to_client.CacheNews(3, True, bytes(64), bytes(32)),
        to_client.Accepted(5),
        to_client.Refused(5, 2, "invalid", "why"),
        to_client.Status(Snapshot(num_running=3, num_preemptions=1), True, "broken"),
        to_client.Status(Snapshot(paused=True, next_deadline=1.25), False, None),
        to_client.Status(
            Snapshot(), False, None, 1, to_client.TransferCounts({"idle": 1}, 2, {"tcp": 3}, {"tcp": 4}, {"tcp": 0.5})
        ),
        to_client.Status(Snapshot(), False, None, 0, None, to_client.KVEventCounts(3, 1)),
        to_client.Returned(
            3,
            AuditReport(
                ("a", "b"), 1, 2, 3, 4, 5, 6, (Owner("r", "slot", 7, 8), Owner("s", "borrower", None, 9, 5, 1.5, "p:1"))
            ),
        ),
        to_client.Returned(3, 17),
        to_client.Returned(3, True),
        to_client.Returned(3),
        to_client.Raised(3, "timeout", "why"),
    ],
)
def test_replies_cross_unchanged(message: to_client.ToClient) -> None:
    assert codec.decode_to_client(codec.encode(message)) == message


def prompt_logprobs(*runs: tuple[int, int]) -> PromptLogprobs:
    """Runs (start, count) that can be told apart: everything of position p is made of p."""
    positions = np.concatenate([np.arange(start, start + count) for start, count in runs]).astype(np.int32)
    starts, counts = (np.array(column, np.int32) for column in zip(*runs, strict=True))
    return PromptLogprobs(
        rows=np.arange(len(runs), dtype=np.int32),
        starts=starts,
        counts=counts,
        logprobs=-positions.astype(np.float32),
        ranks=positions,
        top_ids=np.stack([positions, positions + 1], axis=1),
        top=np.stack([-positions, -positions - 0.5], axis=1).astype(np.float32),
    )


def test_effects_cross_unchanged() -> None:
    effects = Effects(
        started=[(1, 16), (2, 0)],
        prompt_logprobs=[PromptOutputs(np.array([2, 1], np.int64), prompt_logprobs((4, 2), (1, 1)))],
        tokens=[TokenOutputs(np.array([1, 2], np.int64), np.array([30, 40], np.int32), logprobs([1]))],
        ended=[
            RequestEnd(1, "one", FinishReason.STOP, stop_token=30),
            RequestEnd(2, "two", FinishReason.ERROR, error="broken", engine_stopped=True),
        ],
    )
    step = codec.decode_to_client(codec.encode(to_client.Step.of(effects)))
    assert isinstance(step, to_client.Step)
    arrived = step.effects
    assert arrived.started == [(1, 16), (2, 0)]
    assert arrived.ended == effects.ended
    (outputs,) = arrived.tokens
    assert outputs.uids.tolist() == [1, 2]
    assert outputs.tokens.tolist() == [30, 40]
    assert outputs.logprobs is not None
    assert outputs.logprobs.rows.tolist() == [1]
    assert outputs.logprobs.top_ids.tolist() == [[10, 11]]
    assert outputs.logprobs.top.tolist() == [[-1.0, -1.5]]
    (prompts,) = arrived.prompt_logprobs
    assert prompts.uids.tolist() == [2, 1]
    for name in PromptLogprobs.__dataclass_fields__:
        mine, theirs = (getattr(one.logprobs, name) for one in (effects.prompt_logprobs[0], prompts))
        assert mine.dtype == theirs.dtype and mine.tolist() == theirs.tolist()


def test_each_api_process_gets_its_own_part_of_a_step() -> None:
    uids = np.array([FIRST + 1, SECOND + 1, FIRST + 2, SECOND + 2], np.int64)
    asked = np.array([FIRST + 1, SECOND + 1, FIRST + 2], np.int64)
    effects = Effects(
        started=[(FIRST + 2, 0), (SECOND + 2, 5)],
        prompt_logprobs=[PromptOutputs(asked, prompt_logprobs((1, 2), (5, 1), (8, 3)))],
        tokens=[TokenOutputs(uids, np.array([10, 11, 12, 13], np.int32), logprobs([1, 2, 3]))],
        ended=[RequestEnd(SECOND + 1, "b", FinishReason.LENGTH)],
    )
    first, second = (effects_of_client(effects, client) for client in (0, 1))
    assert first.started == [(FIRST + 2, 0)] and second.started == [(SECOND + 2, 5)]
    assert not first.ended and second.ended == effects.ended
    assert first.tokens[0].tokens.tolist() == [10, 12]
    assert second.tokens[0].tokens.tolist() == [11, 13]
    # Row 2 of the step is row 1 of the first client's part; its numbers came along.
    assert first.tokens[0].logprobs.rows.tolist() == [1]
    assert first.tokens[0].logprobs.sampled.tolist() == [-2.0]
    assert second.tokens[0].logprobs.rows.tolist() == [0, 1]
    assert second.tokens[0].logprobs.ranks.tolist() == [2, 4]
    (mine,), (theirs,) = first.prompt_logprobs, second.prompt_logprobs
    assert mine.uids.tolist() == [FIRST + 1, FIRST + 2] and theirs.uids.tolist() == [SECOND + 1]
    assert mine.logprobs.rows.tolist() == [0, 1] and mine.logprobs.starts.tolist() == [1, 8]
    assert mine.logprobs.ranks.tolist() == [1, 2, 8, 9, 10] and theirs.logprobs.top.tolist() == [[-5.0, -5.5]]


def test_a_client_whom_a_step_does_not_concern_gets_nothing() -> None:
    effects = Effects(tokens=[TokenOutputs(np.array([FIRST], np.int64), np.array([1], np.int32))])
    assert not effects_of_client(effects, 1)


@pytest.mark.parametrize(
    "cls",
    [
        *(DuplicateRequestError, RequestError, QueueFullError, EnginePausedError, EngineDeadError, QueryError),
        *(TimeoutError, ValueError),
    ],
)
def test_a_refusal_arrives_as_the_error_that_it_was(cls: type[Exception]) -> None:
    error = refusal(kind_of(cls("why")), "why")
    assert type(error) is cls and str(error) == "why"


def test_a_fault_of_ours_is_not_taken_for_a_refusal() -> None:
    assert kind_of(ZeroDivisionError()) == "internal"
    assert type(refusal("internal", "why")) is RuntimeError


def test_the_launch_line_carries_the_whole_config() -> None:
    config = EngineConfig(model="m", role=Role.PREFILL, num_blocks=50, max_waiting=3)
    launch = Launch(config, ModelLimits(10, (1,), 20), "/tmp/x")
    assert msgspec.json.decode(msgspec.json.encode(launch), type=Launch) == launch


def test_bytes_that_are_no_message_are_an_error() -> None:
    with pytest.raises(ValueError):
        codec.decode_to_engine(b"\x00")
