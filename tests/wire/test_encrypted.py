"""Sockets between machines are open only to programs that know the key."""

from __future__ import annotations

import pytest
import zmq

from headway.wire import encrypted

PATIENCE_MS = 20_000
SHORT_MS = 300


@pytest.fixture
def context():
    context = zmq.Context()
    context.setsockopt(zmq.LINGER, 0)
    yield context
    context.destroy(linger=0)


def listening(context: zmq.Context) -> tuple[zmq.Socket, str]:
    socket = context.socket(zmq.PULL)
    return socket, encrypted.listen(socket, "tcp://127.0.0.1:*")


def test_a_program_that_was_told_the_address_is_heard(context):
    inside, address = listening(context)
    outside = context.socket(zmq.PUSH)
    encrypted.connect(outside, address)
    outside.send(b"tokens")
    assert inside.poll(PATIENCE_MS)
    assert inside.recv() == b"tokens"


def test_a_program_without_the_key_and_one_with_another_key_are_not_heard(context):
    inside, address = listening(context)
    endpoint, _, _ = address.partition(" ")
    bare = context.socket(zmq.PUSH)
    encrypted.connect(bare, endpoint)
    bare.send(b"bare")
    wrong = context.socket(zmq.PUSH)
    encrypted.connect(wrong, f"{endpoint} {zmq.curve_keypair()[0].hex()}")
    wrong.send(b"wrong")
    right = context.socket(zmq.PUSH)
    encrypted.connect(right, address)
    right.send(b"right")
    assert inside.poll(PATIENCE_MS)
    assert inside.recv() == b"right"
    assert not inside.poll(SHORT_MS)


@pytest.mark.parametrize("key", ["zz", "00" * 39, "not a key"])
def test_an_address_whose_key_is_none_is_refused(context, key):
    with pytest.raises(zmq.ZMQError):
        encrypted.connect(context.socket(zmq.PUSH), f"tcp://127.0.0.1:9 {key}")


def test_addresses_of_this_machine_need_no_key(context, tmp_path):
    inside = context.socket(zmq.PULL)
    inside.bind(f"ipc://{tmp_path}/s")
    outside = context.socket(zmq.PUSH)
    encrypted.connect(outside, f"ipc://{tmp_path}/s")
    outside.send(b"here")
    assert inside.poll(PATIENCE_MS)
