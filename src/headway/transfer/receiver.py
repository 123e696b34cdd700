"""D: what is wanted of one peer, and how far it is. Without threads, sockets and a clock of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from headway.scheduler.batch import IntArray
from headway.scheduler.effects import Pull
from headway.transfer.layout import KVLayout
from headway.transfer.messages import (
    AnyMessage,
    Consume,
    Consumed,
    Gone,
    MessageError,
    Progress,
    Release,
    Renew,
    Renewed,
    Watch,
)
from headway.transfer.reader import Slice
from headway.transfer.reference import Reference, prompt_digest, sampling_digest

SLICE_BYTES = 8 * 2**20  # read at once: so long does a stop wait for shared memory


class Failure(StrEnum):
    """Why KV has not come: the prompt is computed here."""

    BAD_PARAMS = "bad_params"  # they cannot be read, or are for another prompt, or are used twice
    UNKNOWN_PEER = "unknown_peer"
    PEER_DOWN = "peer_down"
    GONE = "gone"  # P does not lend it (any more)
    READ = "read"
    STOPPED = "stopped"  # nothing wants it any more


Done = Callable[[int, int | None, str | None], None]
"""(uid, token, error), as `Manager.receive_done`."""


class PeerSilentError(OSError):
    """The peer is connected, and says nothing."""


@dataclass(slots=True)
class Job:
    """A request that waits for KV of this peer. pull: None, as long as it has no blocks.

    generation, readable, sources, token: as far as P has said. next: the column to read next. in_flight: slices that
    readers have. void: what is read so far is of an earlier generation. failure: it ends with this, as soon as no
    reader writes for it. consuming: all is read, and P was asked whether that counts.
    """

    uid: int
    text: str
    reference: Reference
    pull: Pull | None = None
    uses_token: bool = False
    generation: int | None = None
    readable: int = 0
    sources: IntArray | None = None
    token: int | None = None
    next: int = 0
    in_flight: int = 0
    void: bool = False
    consuming: bool = False
    failure: tuple[Failure, str] | None = None


class Receiver:
    """The jobs of one peer. One thread uses it: that of the peer.

    done: called exactly once for each pull, when no reader writes to its blocks any more.
    num_token_ids: token ids go from 0 to one less.
    outbox: messages for the peer; to be emptied after each call. failures: by reason.
    """

    def __init__(self, layout: KVLayout, num_token_ids: int, done: Done) -> None:
        self.outbox: list[AnyMessage] = []
        self.failures = Counter(dict.fromkeys(Failure, 0))  # every key from the start: other threads read it
        self.num_received = 0
        self._layout = layout
        self._num_token_ids = num_token_ids
        self._slice_columns = max(1, SLICE_BYTES // layout.block_bytes)
        self._done = done
        self._jobs: dict[int, Job] = {}
        self._by_source: dict[tuple[bytes, int], Job] = {}
        self._engine: bytes | None = None  # of the last connection
        self._connected = False
        self._down: str | None = None  # why it is not connected
        self._num_blocks = 0
        self._lease_seconds = 0.0
        self._heartbeat_at = 0.0
        self._asked_at: float | None = None  # since when the peer owes a sign of life

    # -- requests ------------------------------------------------------------------------------------------------

    @property
    def is_wanted(self) -> bool:
        """Whether anything waits for a connection."""
        return any(job.failure is None for job in self._jobs.values())

    @property
    def is_urgent(self) -> bool:
        """Whether blocks wait for a connection."""
        return any(job.failure is None and job.pull is not None for job in self._jobs.values())

    @property
    def num_jobs(self) -> int:
        """Requests that wait for this peer, or for its readers to stop."""
        return len(self._jobs)

    @property
    def num_reading(self) -> int:
        """Slices that readers have."""
        return sum(job.in_flight for job in self._jobs.values())

    def want(self, uid: int, text: str) -> None:
        """A request is in the queue: P is to keep what it lends. text: a reference; raises ValueError for another."""
        job = self._jobs[uid] = Job(uid, text, Reference.parse(text))
        reference = job.reference
        source = (reference.engine, reference.uid)
        if source in self._by_source:
            self._fail(job, Failure.BAD_PARAMS, "another request has the same reference")
            return
        self._by_source[source] = job
        if self._connected and reference.engine != self._engine:
            self._fail(job, Failure.GONE, "the peer was restarted, or the reference is of another engine")
        elif self._connected:
            self.outbox.append(Watch(text))

    def pull(self, pull: Pull, text: str) -> None:
        """A request has blocks: read into them."""
        uid = pull.request.uid
        if uid not in self._jobs:
            self.want(uid, text)
        job = self._jobs[uid]
        job.pull = pull
        job.next = pull.num_cached_tokens // self._layout.block_size
        reference, request = job.reference, pull.request
        if reference.num_tokens != len(request.prompt) or reference.prompt != prompt_digest(request):
            mine, theirs = len(request.prompt), reference.num_tokens
            self._fail(
                job, Failure.BAD_PARAMS, f"the reference is for another prompt ({mine} tokens here, {theirs} there)"
            )
        sampling = request.sampling
        job.uses_token = reference.sampling == sampling_digest(sampling) and sampling.logprobs is None
        if self._down is not None and self._engine in (None, reference.engine):  # another: P was restarted
            self._fail(job, Failure.PEER_DOWN, self._down)
        self._advance(job)

    def stop(self, uid: int) -> bool:
        """A request does not want it any more. Whether `done` is called for it: not if it has no blocks, nor for other
        uids."""
        job = self._jobs.get(uid)
        if job is None:
            return False
        self._fail(job, Failure.STOPPED, "it is not wanted any more")
        if job.pull is None:
            self._remove(job)
            return False
        self._advance(job)
        return True

    # -- the connection ------------------------------------------------------------------------------------------

    def connected(self, engine: bytes, num_blocks: int, lease_seconds: float, now: float) -> None:
        """The peer has taken this side. num_blocks: of its memory."""
        self._engine, self._num_blocks, self._lease_seconds = engine, num_blocks, lease_seconds
        self._connected, self._down = True, None
        self._heartbeat_at, self._asked_at = now, None
        for job in list(self._jobs.values()):
            if job.failure is None and job.reference.engine != engine:
                self._fail(job, Failure.GONE, "the peer was restarted, or the reference is of another engine")
                self._advance(job)
            elif job.failure is None:
                self.outbox.append(Watch(job.text))

    def lost(self, reason: str) -> None:
        """There is no connection, and no reader any more. Requests without blocks wait for the next one."""
        self._connected, self._down = False, reason
        self.outbox.clear()
        for job in list(self._jobs.values()):
            job.in_flight, job.consuming = 0, False
            if job.pull is not None:
                self._fail(job, Failure.PEER_DOWN, reason)
                self._advance(job)
            else:
                job.generation, job.sources, job.token, job.readable = None, None, None, 0

    def take(self, message: AnyMessage) -> None:
        """Raises MessageError for a message that P does not send here."""
        self._asked_at = None
        match message:
            case Progress():
                self._progress(message)
            case Gone(text, reason):
                job = next((job for job in self._jobs.values() if job.text == text), None)
                if job is not None and not job.consuming:
                    self._fail(job, Failure.GONE, reason[:600])
                    self._advance(job)
            case Consumed(uid, valid):
                self._consumed(uid, valid)
            case Renewed():
                pass
            case _:
                raise MessageError(f"{type(message).__name__} came, which P does not send here")

    def tick(self, now: float) -> None:
        """Raises PeerSilentError. To be called after all messages that are there were taken: after a long sleep, the
        answer of the peer is among them."""
        if self._asked_at is not None and now - self._asked_at > self._lease_seconds:
            raise PeerSilentError(f"the peer has said nothing for {now - self._asked_at:.1f} s")
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + self._lease_seconds / 3
            uids = (job.reference.uid for job in self._jobs.values() if job.failure is None and not job.consuming)
            self.outbox.append(Renew(tuple(uids)))
            self._asked_at = now if self._asked_at is None else self._asked_at

    def seconds_left(self, now: float) -> float:
        """Until `tick` has something to do."""
        silent_at = self._heartbeat_at if self._asked_at is None else self._asked_at + self._lease_seconds
        return max(0.0, min(self._heartbeat_at, silent_at) - now)

    # -- reads ---------------------------------------------------------------------------------------------------

    def next_slice(self) -> Slice | None:
        """Something to read, for which `read_done` or `lost` must follow; None if there is nothing now."""
        for job in self._jobs.values():
            if job.pull is None or job.sources is None or job.failure is not None or job.void:
                continue
            end = min(job.readable, job.next + self._slice_columns)
            if job.next >= end:
                continue
            columns = slice(job.next, end)
            assert job.generation is not None, "P has said how far it is"
            part = Slice(job.uid, job.text, job.generation, job.next, job.sources[columns], job.pull.blocks[columns])
            job.next = end
            job.in_flight += 1
            return part
        return None

    def read_done(self, part: Slice, error: str | None) -> None:
        """A reader has stopped to write to the targets of a slice."""
        job = self._jobs[part.uid]
        job.in_flight -= 1
        if error is not None and not job.void:
            self._fail(job, Failure.READ, error)
        self._advance(job)

    # -- one job -------------------------------------------------------------------------------------------------

    def _progress(self, message: Progress) -> None:
        assert self._engine is not None, "a message comes from a peer that is connected"
        job = self._by_source.get((self._engine, message.uid))
        if job is None or job.failure is not None or job.consuming:
            return
        if message.generation != job.generation:
            job.void = job.generation is not None and job.pull is not None
        job.generation, job.token = message.generation, message.token
        num_tokens, size = message.num_tokens, self._layout.block_size
        job.readable = num_tokens // size if message.token is None else self._layout.columns_for(num_tokens)
        if len(message.blocks) % 4:
            raise MessageError(f"blocks are of 4 bytes each, got {len(message.blocks)} bytes")
        job.sources = np.frombuffer(message.blocks, "<i4")
        self._check_progress(job)
        self._advance(job)

    def _check_progress(self, job: Job) -> None:
        """Nothing that P says makes this side read or write beyond the blocks of the request."""
        sources, token = job.sources, job.token
        assert sources is not None
        columns = self._layout.columns_for(job.reference.num_tokens)
        readable = sources[: job.readable]
        if not 0 < job.readable <= min(len(sources), columns) or (token is not None and job.readable != columns):
            error = f"P says that {job.readable} of {len(sources)} blocks can be read; the prompt has {columns}"
        elif not 0 <= int(readable.min()) <= int(readable.max()) < self._num_blocks:
            error = f"P names a block that is not among its {self._num_blocks}"
        elif token is not None and token >= self._num_token_ids:
            error = f"P names the token {token}; token ids are below {self._num_token_ids}"
        else:
            return
        self._fail(job, Failure.READ, error)

    def _consumed(self, uid: int, valid: bool) -> None:
        assert self._engine is not None, "a message comes from a peer that is connected"
        job = self._by_source.get((self._engine, uid))
        if job is None or not job.consuming or job.failure is not None:
            return
        if not valid:
            job.failure = (Failure.GONE, "the lease had ended before all was read")
            self._advance(job)
            return
        self._remove(job)
        self.num_received += 1
        self._done(job.uid, job.token if job.uses_token else None, None)

    def _fail(self, job: Job, failure: Failure, text: str) -> None:
        """It ends, as soon as no reader writes for it. P hears of it at once."""
        if job.failure is not None:
            return
        job.failure = (failure, text)
        if self._connected and failure not in (Failure.GONE, Failure.PEER_DOWN) and self._is_first(job):
            self.outbox.append(Release((job.reference.uid,)))

    def _advance(self, job: Job) -> None:
        """Do what is due, now that something has changed."""
        pull = job.pull
        if pull is None or job.in_flight:
            return
        if job.failure is not None:
            self._remove(job)
            self.failures[job.failure[0]] += 1
            self._done(job.uid, None, f"{job.failure[0].value}: {job.failure[1]}")
            return
        if job.void:
            job.void, job.next = False, pull.num_cached_tokens // self._layout.block_size
        all_read = job.token is not None and job.next >= job.readable
        if all_read and not job.consuming:
            assert job.generation is not None
            job.consuming = True
            self.outbox.append(Consume(job.reference.uid, job.generation))

    def _is_first(self, job: Job) -> bool:
        """Whether it is the request that its reference belongs to."""
        return self._by_source.get((job.reference.engine, job.reference.uid)) is job

    def _remove(self, job: Job) -> None:
        del self._jobs[job.uid]
        if self._is_first(job):
            del self._by_source[job.reference.engine, job.reference.uid]
