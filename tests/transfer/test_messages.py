"""Bytes are a message, or a MessageError; nothing else comes of them."""

import contextlib
import socket
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.transfer import messages
from headway.transfer.channel import MAX_FRAME_BYTES, Channel, ChannelClosedError
from headway.transfer.memory import MemoryHandle
from headway.transfer.messages import MessageError
from tests.transfer.rig import layout

EVERY = [
    messages.Hello(1, b"n" * 16, messages.Purpose.NIXL),
    messages.Welcome(1, b"n" * 16, b""),
    messages.Proof(b"p", layout()),
    messages.Ready(b"e" * 16, layout(), 30.0, MemoryHandle(1, 2, "headway-kv-1")),
    messages.Refused("no"),
    messages.Watch("text"),
    messages.Progress(1, 0, 5, b"\0" * 8, None),
    messages.Gone("text", "why"),
    messages.Renew((1, 2)),
    messages.Renewed(),
    messages.Consume(1, 0),
    messages.Consumed(1, True),
    messages.Release((1,)),
    messages.Read("text", 0, 1, 2),
    messages.Reading(3),
    messages.Reach(b"metadata", 2**47),
    messages.Write(messages.Read("text", 0, 1, 2), 5, b"\0" * 8),
    messages.Written(),
]


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_every_message_comes_back(message: messages.AnyMessage) -> None:
    assert messages.decode(messages.encode(message)) == message


@given(st.binary(max_size=200))
def test_junk_is_a_message_error(data: bytes) -> None:
    try:
        messages.decode(data)
    except MessageError as error:
        assert len(str(error).splitlines()) == 1


@given(st.sampled_from(EVERY), st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_message_is_another_message_or_a_message_error(
    message: messages.AnyMessage, position: int, value: int
) -> None:
    data = bytearray(messages.encode(message))
    data[position % len(data)] = value
    with contextlib.suppress(MessageError):
        messages.decode(data)


@pytest.mark.parametrize(
    "parts",
    [
        ["Read", "x" * 513, 0, 0, 1], ["Read", "x", 0, -1, 1], ["Read", "x", 0, 0, 0], ["Read", "x", 0, 0, 1, 5],
        ["Progress", -1, 0, 0, b"", None], ["Progress", 1, 0, 0, b"", -1], ["Progress", 1, 0, 0, b"", 2**31],
        ["Hello", 1, b"short", "tcp"], ["Hello", 1, b"n" * 16, "other"], ["Reach", b"m" * 2**17, 0],
        ["Ready", b"e", {}, 30.0, None], ["Renew", [2**63]], ["Renew", [0] * 70_000],
        ["Unknown"], [], {},
    ],
    ids=lambda parts: str(parts)[:30],
)  # fmt: skip
def test_fields_out_of_range_are_refused(parts: object) -> None:
    with pytest.raises(MessageError):
        messages.decode(msgspec.msgpack.encode(parts))


def ends() -> tuple[socket.socket, Channel]:
    near, far = socket.socketpair()
    return near, Channel(far)


@given(st.lists(st.sampled_from(EVERY), max_size=5), st.lists(st.integers(1, 40), max_size=5))
def test_frames_come_whole_however_the_bytes_are_cut(sent: list[messages.AnyMessage], cuts: list[int]) -> None:
    near, channel = ends()
    data = b"".join(struct.pack("<I", len(raw)) + raw for raw in map(messages.encode, sent))
    received: list[messages.AnyMessage] = []
    for cut in [*cuts, len(data)]:
        part, data = data[:cut], data[cut:]
        near.sendall(part)
        received += channel.wait(0.0)
    while len(received) < len(sent):
        received += channel.wait(10.0)
    assert received == sent
    near.close()
    channel.close()


@given(st.binary(min_size=1, max_size=300))
def test_junk_on_a_socket_ends_the_connection(data: bytes) -> None:
    near, channel = ends()
    near.sendall(data)
    near.close()
    with pytest.raises((MessageError, ChannelClosedError)):
        while True:
            channel.receive(10.0)
    channel.close()


@pytest.mark.parametrize("size", [0, MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_the_length_of_a_frame_is_checked_before_anything_is_kept_for_it(size: int) -> None:
    near, channel = ends()
    near.sendall(struct.pack("<I", size))
    with pytest.raises(MessageError, match=f"from 1 to {MAX_FRAME_BYTES} bytes, got {size}"):
        channel.receive(10.0)
    near.close()
    channel.close()


def test_a_message_that_is_too_long_is_not_sent() -> None:
    near, channel = ends()
    with pytest.raises(MessageError, match=f"at most {MAX_FRAME_BYTES} bytes"):
        channel.send(messages.Progress(1, 0, 0, b"x" * MAX_FRAME_BYTES, None))
    near.close()
    channel.close()


def test_half_a_message_is_waited_for_as_long_as_was_said() -> None:
    near, channel = ends()
    near.sendall(b"\x05\0")
    with pytest.raises(TimeoutError, match=r"has sent no whole message within 0.01 s"):
        channel.receive(0.01)
    near.close()
    channel.close()


def test_bytes_after_a_message_are_not_taken_with_it() -> None:
    near, channel = ends()
    raw = messages.encode(messages.Reading(1))
    near.sendall(struct.pack("<I", len(raw)) + raw + b"abcdef")
    assert channel.receive(10.0) == messages.Reading(1)
    targets = [bytearray(2), bytearray(3), bytearray(1)]
    channel.receive_bytes([memoryview(target) for target in targets])
    assert b"".join(targets) == b"abcdef"
    near.close()
    channel.close()


def test_messages_before_the_end_of_a_connection_or_before_junk_count() -> None:
    for end, error in ((b"", ChannelClosedError), (struct.pack("<I", 0), MessageError)):
        near, channel = ends()
        raw = messages.encode(messages.Consumed(1, True))
        near.sendall(struct.pack("<I", len(raw)) + raw + end)
        near.close()
        assert channel.wait(10.0) == [messages.Consumed(1, True)]
        with pytest.raises(error):
            channel.wait(10.0)
        channel.close()


def test_many_buffers_cross_in_order() -> None:
    near, far = socket.socketpair()
    source, sink = Channel(near), Channel(far)
    sent = [bytes([index % 251]) * (index % 7 + 1) for index in range(1500)]
    source.send_bytes([memoryview(one) for one in sent])
    targets = [bytearray(len(one)) for one in sent]
    sink.receive_bytes([memoryview(one) for one in targets])
    assert [bytes(one) for one in targets] == sent
    source.close()
    with pytest.raises(ChannelClosedError):
        sink.receive_bytes([memoryview(bytearray(1))])
    sink.close()
