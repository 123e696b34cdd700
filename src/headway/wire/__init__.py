"""What crosses between an API process and the engine process, as msgpack over ZeroMQ ipc.

    API process i  -- AddGroup, Abort, Finish, Ask, Shutdown -->  engine process      (one PULL socket for all)
    API process i  <-- Ready | LoadFailed, then Accepted, Rejected, Step, Status, Answered, Refused --  engine process

Arrays cross as the raw bytes of their memory (one host, one byte order), so a step of a thousand tokens costs the
engine process two copies and no loop. Everything else is a tagged msgspec struct; nothing is ever pickled.

The upper bits of a uid name the API process that minted it, which is how a step finds its way back.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.config import EngineConfig, PauseMode
from headway.errors import (
    DuplicateRequestError,
    EngineDeadError,
    EnginePausedError,
    QueryError,
    QueueFullError,
    RequestError,
)
from headway.request import FinishReason, NewRequest
from headway.scheduler.audit import AuditReport
from headway.scheduler.batch import Logprobs
from headway.scheduler.effects import Effects, RequestEnd, TokenOutputs
from headway.scheduler.snapshot import Snapshot

REFUSALS: dict[str, type[Exception]] = {  # kind -> what the engine raised, the more special first
    "duplicate": DuplicateRequestError,
    "invalid": RequestError,
    "queue_full": QueueFullError,
    "paused": EnginePausedError,
    "dead": EngineDeadError,
    "query": QueryError,
    "timeout": TimeoutError,
    "value": ValueError,
}


def kind_of(error: Exception) -> str:
    """The kind that stands for `error`; "internal" is no refusal but a fault of ours."""
    return next((kind for kind, cls in REFUSALS.items() if isinstance(error, cls)), "internal")


def refusal(kind: str, message: str) -> Exception:
    """The error that a `Rejected` or `Refused` stands for; RuntimeError for "internal"."""
    return REFUSALS.get(kind, RuntimeError)(message)


UID_BITS = 40  # of a uid, for the counter of the process that minted it


def client_of(uid: int) -> int:
    """The index of the API process that minted `uid`, or the number of a question."""
    return uid >> UID_BITS


class ModelFacts(msgspec.Struct, frozen=True):
    """What the model's files say of it, as the API process has read them."""

    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()


class Launch(msgspec.Struct, frozen=True):
    """The one line of JSON that an engine process reads on its standard input.

    socket_dir: the private folder of the sockets; the engine process removes it if its parent is gone.
    num_clients: API processes; process i listens at `output_address(socket_dir, i)`.
    """

    config: EngineConfig
    model: ModelFacts
    socket_dir: str
    num_clients: int = 1


def input_address(socket_dir: str) -> str:
    """Where the engine process takes commands."""
    return f"ipc://{socket_dir}/engine"


def output_address(socket_dir: str, client: int) -> str:
    """Where API process `client` takes what comes back."""
    return f"ipc://{socket_dir}/client-{client}"


class AddGroup(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The sequences of one client request, each with a uid of one client: all of them are accepted, or none."""

    requests: list[NewRequest]


class Abort(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Nobody wants these any more."""

    uids: list[int]


class Finish(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The answers of these are complete: a stop string was found."""

    uids: list[int]


class Pause(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """See `Engine.pause`. Answer: None."""

    mode: PauseMode
    reset_prefix_cache: bool
    timeout: float


class Resume(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """See `Engine.resume`. Answer: None."""


class IsPaused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """See `Engine.is_paused`. Answer: bool."""


class ResetPrefixCache(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """See `Engine.reset_prefix_cache`. Answer: int."""

    timeout: float


class Audit(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """See `Engine.audit`. Answer: AuditReport."""

    timeout: float


Question = Pause | Resume | IsPaused | ResetPrefixCache | Audit


class Ask(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Something about the whole engine, answered by one `Answered` or `Refused` of the same number.

    number: in the asking process's own range, as its uids are.
    """

    number: int
    question: Question


class Shutdown(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Stop the engine process; running work may go on for `grace` seconds."""

    grace: float = 0.0


ToEngine = AddGroup | Abort | Finish | Ask | Shutdown


class Ready(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine is loaded and takes requests; the limits that it decided on, as in `SchedulerConfig`."""

    max_model_len: int
    max_num_seqs: int
    num_blocks: int
    block_size: int


class LoadFailed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine could not be loaded; the process is about to end."""

    message: str


class Accepted(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A group of several was accepted whole. (Of a single one its outputs say so.)"""

    uid: int  # of its first member


class Rejected(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A group was refused, and what was accepted of it taken back. kind: see `REFUSALS`."""

    uid: int  # of the group's first member
    kind: str
    message: str


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """A `RequestEnd`, without the request id, which the other side knows."""

    uid: int
    reason: FinishReason
    stop_token: int | None = None
    message: str | None = None


class StepLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """`Logprobs` as bytes. rows, ranks: int32 [R]; sampled: float32 [R]; top_ids, top: [R, width]."""

    rows: bytes
    sampled: bytes
    ranks: bytes
    top_ids: bytes
    top: bytes
    width: int


class StepTokens(msgspec.Struct, frozen=True, array_like=True):
    """`TokenOutputs` as bytes. uids: int64 [S]; tokens: int32 [S]."""

    uids: bytes
    tokens: bytes
    logprobs: StepLogprobs | None = None


class Step(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The effects of one turn of the writer that concern one client."""

    started: list[tuple[int, int]]
    tokens: list[StepTokens]
    ended: list[Ended]


class Status(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine's pulse, sent several times a second, busy or not."""

    snapshot: Snapshot
    stalled: bool
    failure: str | None


class Answered(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What was asked for is done; see the question for its answer."""

    number: int
    answer: AuditReport | int | bool | None = None


class Refused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """It could not be done. kind: see `REFUSALS`."""

    number: int
    kind: str
    message: str


ToClient = Ready | LoadFailed | Accepted | Rejected | Step | Status | Answered | Refused


def _parts(value: object) -> tuple[str, tuple[int, ...], bytes]:
    """An array in parts that cross."""
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"cannot send {type(value).__name__}")
    return value.dtype.str, value.shape, value.tobytes()


def _array(kind: type, parts: tuple[str, tuple[int, ...], bytes]) -> NDArray[Any]:
    """The array, read-only, on the memory of its part of the message."""
    dtype, shape, data = parts
    array = np.frombuffer(data, dtype)
    return array if len(shape) == 1 else array.reshape(shape)


_encoder = msgspec.msgpack.Encoder(enc_hook=_parts)
_to_engine = msgspec.msgpack.Decoder(ToEngine, dec_hook=_array)
_to_client = msgspec.msgpack.Decoder(ToClient, dec_hook=_array)

encode = _encoder.encode


def decode_to_engine(data: bytes) -> ToEngine:
    """Raises msgspec.DecodeError (a ValueError) for bytes that are no such message."""
    message: ToEngine = _to_engine.decode(data)
    return message


def decode_to_client(data: bytes) -> ToClient:
    """Raises msgspec.DecodeError (a ValueError) for bytes that are no such message."""
    message: ToClient = _to_client.decode(data)
    return message


def pack_logprobs(logprobs: Logprobs | None) -> StepLogprobs | None:
    if logprobs is None or not len(logprobs.rows):
        return None
    return StepLogprobs(
        np.asarray(logprobs.rows, np.int32).tobytes(),
        np.asarray(logprobs.sampled, np.float32).tobytes(),
        np.asarray(logprobs.ranks, np.int32).tobytes(),
        np.asarray(logprobs.top_ids, np.int32).tobytes(),
        np.asarray(logprobs.top, np.float32).tobytes(),
        logprobs.top_ids.shape[1],
    )


def unpack_logprobs(packed: StepLogprobs | None) -> Logprobs | None:
    if packed is None:
        return None
    rows = np.frombuffer(packed.rows, np.int32)
    shape = (len(rows), packed.width)
    return Logprobs(
        rows=rows,
        sampled=np.frombuffer(packed.sampled, np.float32),
        ranks=np.frombuffer(packed.ranks, np.int32),
        top_ids=np.frombuffer(packed.top_ids, np.int32).reshape(shape),
        top=np.frombuffer(packed.top, np.float32).reshape(shape),
    )


def pack_effects(effects: Effects) -> Step:
    """The message that carries `effects`; `unpack_effects` is its inverse up to request ids."""
    return Step(
        effects.started,
        [
            StepTokens(
                np.asarray(out.uids, np.int64).tobytes(),
                np.asarray(out.tokens, np.int32).tobytes(),
                pack_logprobs(out.logprobs),
            )
            for out in effects.tokens
        ],
        [Ended(end.uid, end.reason, end.stop_token, end.message) for end in effects.ended],
    )


def unpack_effects(step: Step) -> Effects:
    """The effects in `step`. The arrays are read-only views of the message; request ids are empty."""
    return Effects(
        started=step.started,
        tokens=[
            TokenOutputs(
                np.frombuffer(out.uids, np.int64),
                np.frombuffer(out.tokens, np.int32),
                unpack_logprobs(out.logprobs),
            )
            for out in step.tokens
        ],
        ended=[RequestEnd(end.uid, "", end.reason, end.stop_token, end.message) for end in step.ended],
    )


def effects_of_client(effects: Effects, client: int) -> Effects:
    """The part of `effects` that concerns the requests of one API process."""
    tokens = []
    for out in effects.tokens:
        mine = out.uids >> UID_BITS == client
        if mine.any():
            tokens.append(TokenOutputs(out.uids[mine], out.tokens[mine], _logprobs_of_rows(out.logprobs, mine)))
    return Effects(
        started=[item for item in effects.started if client_of(item[0]) == client],
        tokens=tokens,
        ended=[end for end in effects.ended if client_of(end.uid) == client],
    )


def _logprobs_of_rows(logprobs: Logprobs | None, kept: NDArray[np.bool_]) -> Logprobs | None:
    if logprobs is None:
        return None
    mine = kept[logprobs.rows]
    new_row = np.cumsum(kept, dtype=np.int32) - 1  # where a kept row stands once the others are gone
    return Logprobs(
        rows=new_row[logprobs.rows[mine]],
        sampled=logprobs.sampled[mine],
        ranks=logprobs.ranks[mine],
        top_ids=logprobs.top_ids[mine],
        top=logprobs.top[mine],
    )
