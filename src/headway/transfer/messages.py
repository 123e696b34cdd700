"""What two connectors say to each other, as msgpack.

    D                                    P
    Hello     protocol, nonce, purpose -->
              <--  Welcome               protocol, nonce, proof of the secret
    Proof     of the secret; layout -->
              <--  Ready                 layout, length of leases, memory        or Refused, and the end

    on the first connection, for all requests             on further connections: see `tcp` and `nixl`
    Watch     a reference           -->
              <--  Progress, Gone
    Renew     all that D wants      -->
              <--  Renewed
    Consume   all is read           -->
              <--  Consumed
    Release   it is not wanted      -->

A uid in a message is P's. It counts only after a `Watch` of the same connection that P has accepted.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from headway.error_text import first_line
from headway.transfer.layout import KVLayout
from headway.transfer.memory import MemoryHandle
from headway.transfer.reference import MAX_CHARACTERS, Count, EngineId

MAX_UIDS = 2**16
MAX_METADATA_BYTES = 2**16  # of an agent of NIXL; some hundred are usual

Nonce = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Sealed = Annotated[str, msgspec.Meta(max_length=MAX_CHARACTERS)]
Uids = Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_UIDS)]
Token = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class MessageError(ValueError):
    """These bytes are no message."""


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """A message between two connectors."""


class Purpose(StrEnum):
    """What a connection is for: requests, or blocks that travel in one of two ways."""

    REQUESTS = "requests"
    TCP = "tcp"
    NIXL = "nixl"


class Hello(Message, frozen=True):
    """The first message of D."""

    protocol: int
    nonce: Nonce
    purpose: Purpose


class Welcome(Message, frozen=True):
    """proof: see `handshake`; empty without a secret."""

    protocol: int
    nonce: Nonce
    proof: bytes


class Proof(Message, frozen=True):
    """layout: of D."""

    proof: bytes
    layout: KVLayout


class Ready(Message, frozen=True):
    """lease_seconds: the length of a lease. memory: for a reader on the same host; None: it cannot be mapped."""

    engine: EngineId
    layout: KVLayout
    lease_seconds: Seconds
    memory: MemoryHandle | None


class Refused(Message, frozen=True):
    """P does not do what the last message asked for."""

    reason: str


class Watch(Message, frozen=True):
    """D wants what this reference names, and wants to know how far it is."""

    reference: Sealed


class Progress(Message, frozen=True):
    """The first `num_tokens` tokens can be read. blocks: int32 as bytes, little endian, P's blocks of these tokens in
    order. token: what follows the prompt; then all is there, and a lease has begun."""

    uid: Count
    generation: Count
    num_tokens: Count
    blocks: bytes
    token: Token | None


class Gone(Message, frozen=True):
    """Nothing is lent under this reference, which was watched, or not any more."""

    reference: Sealed
    reason: str


class Renew(Message, frozen=True):
    """D still wants all of these. Also the sign that D is there."""

    uids: Uids


class Renewed(Message, frozen=True):
    """The sign that P is there."""


class Consume(Message, frozen=True):
    """D has read all."""

    uid: Count
    generation: Count


class Consumed(Message, frozen=True):
    """valid: whether the lease was there all the time."""

    uid: Count
    valid: bool


class Release(Message, frozen=True):
    """D does not want these any more."""

    uids: Uids


class Read(Message, frozen=True):
    """The blocks in these columns of the prompt: `first` up to, not including, `first + count`."""

    reference: Sealed
    generation: Count
    first: Count
    count: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]


class Reading(Message, frozen=True):
    """Bytes of this many blocks follow, see `tcp`."""

    count: Count


class Reach(Message, frozen=True):
    """What P needs to write to D by NIXL. metadata: of D's agent. address: where D's memory begins in its process."""

    metadata: Annotated[bytes, msgspec.Meta(max_length=MAX_METADATA_BYTES)]
    address: Count


class Write(Message, frozen=True):
    """Write these blocks, and then a note with this number. targets: int32 as bytes, little endian, blocks of D."""

    read: Read
    number: Count
    targets: bytes


class Written(Message, frozen=True):
    """D has all of the last `Write`."""


AnyMessage = (
    Hello
    | Welcome
    | Proof
    | Ready
    | Refused
    | Watch
    | Progress
    | Gone
    | Renew
    | Renewed
    | Consume
    | Consumed
    | Release
    | Read
    | Reading
    | Reach
    | Write
    | Written
)

encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def decode(data: bytes | bytearray | memoryview) -> AnyMessage:
    """The message in `data`. Raises MessageError for any other bytes."""
    try:
        message: AnyMessage = _decoder.decode(data)
    except Exception as error:  # not only DecodeError: UnicodeDecodeError, RecursionError, OverflowError ...
        raise MessageError(f"{len(data)} bytes that are no message: {first_line(error)}") from None
    return message
