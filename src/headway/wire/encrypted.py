"""Sockets between machines: encrypted, and open only to programs that know the key of the side that listens.

An address names the key: "tcp://10.0.0.7:40123 KEY". So an address is all that another process must be told, and it is
a secret. An address without a key is for sockets of this machine.

The key is the public half of a CurveZMQ pair that the listening side makes, and never leaves in the clear: without it
no handshake begins, and the payload of every frame is encrypted.
"""

from __future__ import annotations

import re
from typing import Any

import zmq

_KEY = re.compile(r"[0-9a-f]{80}")  # its 40 characters in hex


def listen(socket: zmq.Socket[Any], endpoint: str) -> str:
    """Bind the socket, "tcp://HOST:*" for any free port, and return the address for `connect`. Raises zmq.ZMQError."""
    public, secret = zmq.curve_keypair()
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.bind(endpoint)
    bound = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    return f"{bound} {public.hex()}"


def connect(socket: zmq.Socket[Any], address: str) -> None:
    """Connect the socket to an address of `listen`, or to one without a key. Raises zmq.ZMQError for another text."""
    endpoint, _, key = address.partition(" ")
    if key:
        if not _KEY.fullmatch(key):
            raise zmq.ZMQError(zmq.EINVAL, "the key of the address is no key")
        public, secret = zmq.curve_keypair()
        socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
        socket.setsockopt(zmq.CURVE_SERVERKEY, bytes.fromhex(key))
    socket.connect(endpoint)
