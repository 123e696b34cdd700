"""Who may talk to whom: a version, a secret that both know, and a layout that is the same.

Without a secret only peers on loopback are talked to. With one, each side proves that it knows the secret, without
showing it, before it tells anything else. Nothing is encrypted: the network between P and D must be trusted to carry
prompts.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from typing import TypeVar

from headway.transfer.channel import Channel
from headway.transfer.layout import PROTOCOL, KVLayout
from headway.transfer.memory import MemoryHandle
from headway.transfer.messages import Hello, Message, Proof, Purpose, Ready, Refused, Welcome

SECONDS = 5.0  # that each message of a handshake may take
MIN_SECRET_BYTES = 16

_T = TypeVar("_T", bound=Message)


class RefusedError(ValueError):
    """The two sides do not fit, or do not trust each other; the text says why."""


def check_secret(secret: bytes | None) -> None:
    """Raises ValueError for a secret that could be guessed."""
    if secret is not None and len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"the secret of KV peers needs at least {MIN_SECRET_BYTES} bytes, got {len(secret)}")


def greet(channel: Channel, layout: KVLayout, secret: bytes | None, *, purpose: Purpose) -> Ready:
    """D's side. Raises RefusedError, or the errors of `Channel.receive`."""
    _check_host(channel, secret)
    nonce = os.urandom(16)
    channel.send(Hello(PROTOCOL, nonce, purpose))
    welcome = _expect(channel, Welcome)
    _check_protocol(welcome.protocol)
    _check_proof(welcome.proof, secret, b"P", nonce + welcome.nonce)
    channel.send(Proof(_proof(secret, b"D", nonce + welcome.nonce), layout))
    ready = _expect(channel, Ready)
    _check_layout(layout, ready.layout)
    return ready


def receive(
    channel: Channel,
    layout: KVLayout,
    secret: bytes | None,
    *,
    engine: bytes,
    lease_seconds: float,
    memory: MemoryHandle | None,
    has_nixl: bool = False,
) -> tuple[Purpose, KVLayout]:
    """P's side: what D wants, and its layout. Tells D why, and raises RefusedError, if D cannot be served; else the
    errors of `Channel.receive`."""
    try:
        _check_host(channel, secret)
        hello = _expect(channel, Hello)
        _check_protocol(hello.protocol)
        nonce = os.urandom(16)
        channel.send(Welcome(PROTOCOL, nonce, _proof(secret, b"P", hello.nonce + nonce)))
        proof = _expect(channel, Proof)
        _check_proof(proof.proof, secret, b"D", hello.nonce + nonce)
        _check_layout(layout, proof.layout)
        if hello.purpose is Purpose.NIXL and not has_nixl:
            raise RefusedError("this engine has no NIXL: it needs --kv-transport nixl too")
    except RefusedError as error:
        channel.send(Refused(str(error)))
        raise
    channel.send(Ready(engine, layout, lease_seconds, memory))
    return hello.purpose, proof.layout


def _expect(channel: Channel, kind: type[_T]) -> _T:
    message = channel.receive(SECONDS)
    if isinstance(message, Refused):
        raise RefusedError(message.reason[:600])
    if not isinstance(message, kind):
        raise RefusedError(f"{type(message).__name__} came where {kind.__name__} was expected")
    return message


def _check_host(channel: Channel, secret: bytes | None) -> None:
    host = channel.peer_host
    if secret is None and not ipaddress.ip_address(host).is_loopback:
        raise RefusedError(f"{host} is not on loopback: KV peers on several hosts need a shared secret (--kv-secret)")


def _check_protocol(theirs: int) -> None:
    if theirs != PROTOCOL:
        raise RefusedError(f"protocol differs: {PROTOCOL} here, {theirs} there")


def _check_layout(mine: KVLayout, theirs: KVLayout) -> None:
    try:
        mine.check(theirs)
    except ValueError as error:
        raise RefusedError(str(error)) from None


def _check_proof(proof: bytes, secret: bytes | None, side: bytes, nonces: bytes) -> None:
    if secret is None and proof:
        raise RefusedError("the peer has a secret (--kv-secret), and none was given here")
    if not hmac.compare_digest(proof, _proof(secret, side, nonces)):
        raise RefusedError("the peer does not know the secret (--kv-secret) that was given here")


def _proof(secret: bytes | None, side: bytes, nonces: bytes) -> bytes:
    """The side is part of it, so that no side can be made to say the proof of the other."""
    return b"" if secret is None else hmac.digest(secret, b"headway-kv " + side + nonces, "sha256")
