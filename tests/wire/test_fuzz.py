"""Whatever bytes come: a message, or a WireError, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.config import SchedulerConfig
from headway.request import FinishReason
from headway.sampling import SamplingParams
from headway.scheduler.batch import Logprobs, PromptLogprobs
from headway.scheduler.effects import PromptOutputs, RequestEnd, TokenOutputs
from headway.scheduler.snapshot import Snapshot
from headway.token_ids import pack
from headway.wire import codec, to_client, to_engine
from headway.wire.checks import check_to_client, check_to_engine
from headway.wire.uids import MOST_CLIENTS, UID_BITS
from headway.wire.wire_errors import WireError, WireErrors
from tests.managers.driving import VOCAB, new_request

ADD = new_request("r", pack([1, 2, 3], VOCAB), SamplingParams(max_tokens=2, stop=("x",), logit_bias={1: 2.0}), uid=1)
LOGPROBS = Logprobs(
    rows=np.array([1], np.int32),
    sampled=np.array([-1.0], np.float32),
    ranks=np.array([1], np.int32),
    top_ids=np.array([[3, 4]], np.int32),
    top=np.array([[-1.0, -2.0]], np.float32),
)
TOKENS = TokenOutputs(np.array([1, 2], np.int64), np.array([3, 4], np.int32), LOGPROBS)
JUDGED = PromptLogprobs(
    rows=np.array([0, 1], np.int32),
    starts=np.array([1, 7], np.int32),
    counts=np.array([2, 1], np.int32),
    logprobs=np.array([-1.0, -2.0, -3.0], np.float32),
    ranks=np.array([1, 2, 3], np.int32),
    top_ids=np.array([[3], [4], [5]], np.int32),
    top=np.array([[-1.0], [-1.0], [-1.0]], np.float32),
)
PROMPTS = PromptOutputs(np.array([1, 2], np.int64), JUDGED)
STEP = to_client.Step([(1, 0)], [TOKENS], [RequestEnd(2, "r", FinishReason.STOP)], prompt_logprobs=[PROMPTS])
TO_ENGINE = [
    to_engine.AddGroup([ADD]),
    to_engine.Abort([1, 2]),
    to_engine.PullFrom(1, {"a": "b" * 9, "n": 1}),
    to_engine.Call(1, to_engine.PauseEngine("abort", True, 1.0)),
    to_engine.Attach(1, "ipc:///tmp/client-1"),
    to_engine.Detach(1),
    to_engine.TellCache(1),
]
TO_CLIENT = [
    STEP,
    to_client.Status(Snapshot(), False, None),
    to_client.Ready(SchedulerConfig()),
    to_client.Refused(1, 0, "invalid", "no"),
    to_client.Returned(1, True),
    to_client.CacheNews(1, False, bytes(32)),
]


@st.composite
def damaged(draw: st.DrawFn, messages: list[Any]) -> bytes:
    """The bytes of a message with some of them replaced, cut out or put in, or no message at all."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=64))
    data = bytearray(codec.encode(draw(st.sampled_from(messages))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@st.composite
def misshapen(draw: st.DrawFn, messages: list[Any]) -> bytes:
    """A message in which one value is another: of the right form as msgpack, and mostly of the wrong kind."""
    tree = msgspec.msgpack.decode(codec.encode(draw(st.sampled_from(messages))))
    other = st.one_of(
        *(st.none(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=3), st.binary(max_size=9)),
        *(st.lists(st.integers(-2, 9), max_size=3), st.sampled_from(["|O", "<f8", "<i4", "<i8", "("])),
    )
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if not isinstance(node[key], (list, dict)) or draw(st.integers(0, 5)) == 0:
            node[key] = draw(other)
            break
        node = node[key]
    return msgspec.msgpack.encode(tree)


@given(st.one_of(damaged(TO_ENGINE), misshapen(TO_ENGINE)))
def test_bytes_to_the_engine_are_a_message_that_can_be_answered_or_a_wire_error(data: bytes) -> None:
    try:
        message = codec.decode_to_engine(data)
        check_to_engine(message, clients={0, 1})
    except WireError as error:
        assert "\n" not in str(error)
    else:
        if isinstance(message, to_engine.AddGroup):
            assert len({request.uid >> UID_BITS for request in message.requests}) == 1


@given(st.one_of(damaged(TO_CLIENT), misshapen(TO_CLIENT)))
def test_bytes_to_a_client_are_a_message_whose_arrays_fit_or_a_wire_error(data: bytes) -> None:
    try:
        message = codec.decode_to_client(data)
        check_to_client(message, num_token_ids=10)
    except WireError as error:
        assert "\n" not in str(error)
    else:
        if isinstance(message, to_client.Step):
            for outputs in message.tokens:
                assert len(outputs.uids.tolist()) == len(outputs.tokens.tolist())
                assert all(0 <= token < 10 for token in outputs.tokens.tolist())


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("92a54162ff72749101"),  # a tag that is not UTF-8
        b"\x91" * 100_000,  # nested too deep
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million items, of which none follows
        b"",
    ],
    ids=["tag", "nested", "long", "empty"],
)
def test_bytes_that_once_were_fatal_are_a_wire_error(data: bytes) -> None:
    for decode in (codec.decode_to_engine, codec.decode_to_client):
        with pytest.raises(WireError):
            decode(data)


@pytest.mark.parametrize("uid", [5 << UID_BITS, -1, None])
def test_a_uid_that_names_no_client_is_a_wire_error(uid: int | None) -> None:
    group = to_engine.AddGroup([new_request("r", pack([1], VOCAB), SamplingParams(), uid=uid)])
    with pytest.raises(WireError):
        check_to_engine(group, clients={0})


@pytest.mark.parametrize(
    "message",
    [
        to_engine.AddGroup([]),
        to_engine.PullFrom(1, {"a": "b" * 20_000}),
        to_engine.PullFrom(1, {"a": float("nan")}),
        to_engine.AddGroup(
            [new_request(f"{i}", pack([1], VOCAB), SamplingParams(), uid=i << UID_BITS) for i in range(2)]
        ),
        to_engine.Call(7 << UID_BITS, to_engine.IsPaused()),
        to_engine.Abort([1, 7 << UID_BITS]),
        to_engine.Finish([-1]),
        to_engine.PullFrom(7 << UID_BITS, None),
        to_engine.Attach(0, "ipc:///tmp/client"),
        to_engine.Attach(MOST_CLIENTS, "ipc:///tmp/client"),
        to_engine.Attach(3, "client"),
        to_engine.Attach(3, "ipc://" + "x" * 1000),
        to_engine.Detach(0),
        to_engine.TellCache(5),
    ],
    ids=[
        *("no request", "large parameters", "parameters that are no JSON", "two clients", "a call of no client"),
        *("an abort of no client", "an answer of no client", "a source of no client", "the owner comes"),
        *("a client beyond all numbers", "no address", "a long address", "the owner goes", "no client asks"),
    ],
)
def test_a_message_that_cannot_be_carried_out_is_a_wire_error(message: to_engine.ToEngine) -> None:
    with pytest.raises(WireError):
        check_to_engine(message, clients={0, 1})


def broken(**arrays: Any) -> to_client.Step:
    fields = {name: getattr(LOGPROBS, name) for name in Logprobs.__dataclass_fields__}
    given_ = {name: arrays.pop(name) for name in list(arrays) if name in fields}
    fields |= given_
    outputs = {"uids": TOKENS.uids, "tokens": TOKENS.tokens, **arrays}
    return to_client.Step([], [TokenOutputs(**outputs, logprobs=Logprobs(**fields))], [])


def broken_prompts(**arrays: Any) -> to_client.Step:
    uids = arrays.pop("uids", PROMPTS.uids)
    return to_client.Step([], [], [], prompt_logprobs=[PromptOutputs(uids, replace(JUDGED, **arrays))])


def test_a_part_of_a_digest_is_a_wire_error() -> None:
    with pytest.raises(WireError):
        check_to_client(to_client.CacheNews(1, False, bytes(32), bytes(33)), VOCAB)


@pytest.mark.parametrize(
    "step",
    [
        broken_prompts(uids=np.array([1], np.int64)),
        broken_prompts(uids=np.array([1, 2], np.int32)),
        broken_prompts(counts=np.array([2, 2], np.int32)),
        broken_prompts(counts=np.array([3, 0], np.int32)),
        broken_prompts(counts=np.array([4, -1], np.int32)),
        broken_prompts(starts=np.array([1], np.int32)),
        broken_prompts(ranks=np.array([1, 2], np.int32)),
        broken_prompts(ranks=np.array([1, 2, 3], np.float32)),
        broken_prompts(top=np.array([-1.0, -1.0, -1.0], np.float32)),
        broken_prompts(top_ids=np.array([[3, 3], [4, 4], [5, 5]], np.int32)),
        broken_prompts(top_ids=np.array([[3], [4], [10]], np.int32)),
        broken(tokens=np.array([3], np.int32)),
        broken(tokens=np.array([3, 10], np.int32)),
        broken(tokens=np.array([-1, 3], np.int32)),
        broken(uids=np.array([1, 2], np.int32)),
        broken(rows=np.array([2], np.int32)),
        broken(rows=np.array(1, np.int32)),
        broken(top_ids=np.array([[3, 10]], np.int32)),
        broken(top=np.array([[-1.0]], np.float32)),
        broken(ranks=np.array([1.0], np.float32)),
    ],
)
def test_a_step_whose_arrays_do_not_fit_is_a_wire_error(step: to_client.Step) -> None:
    check_to_client(STEP, num_token_ids=10)
    with pytest.raises(WireError):
        check_to_client(step, num_token_ids=10)


def test_a_flood_of_wire_errors_is_counted_and_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    errors = WireErrors("engine")
    for _ in range(1000):
        errors.note(WireError("junk"))
    assert errors.count == 1000
    assert len(caplog.records) == 10 and "512 so far: junk" in caplog.records[-1].message
