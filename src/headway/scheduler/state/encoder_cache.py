"""Which encoder outputs of images and videos the device keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from headway.request import Span


@dataclass(slots=True)
class _Output:
    """size: encoder tokens. holders: uid -> its span, of the requests that still need it."""

    size: int
    holders: dict[int, Span] = field(default_factory=dict)


class EncoderCache:
    """Encoder outputs by digest, at most `budget` encoder tokens together.

        need      absent -> to be encoded by the next batch; idle or held -> held
        done, release   held -> idle, once no request holds it

    An output is held by the requests whose span is not wholly computed yet, and idle when there are none. Idle outputs
    stay until room is needed; the least recently held goes first. As all that a step encodes is held at once, no step
    encodes more than `budget` tokens either.

    The device follows by `take_changes`: a batch drops first and encodes then. Steps run in order, so what an earlier
    step reads may be dropped by a later batch at any time.

    used: encoder tokens of all that is kept, or will be by the next batch.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._num_held = 0  # encoder tokens of the outputs that a request holds
        self._outputs: dict[bytes, _Output] = {}
        self._idle: dict[bytes, None] = {}  # in the order in which they fell idle
        self._held: dict[int, dict[bytes, None]] = {}  # uid -> digests
        self._to_encode: dict[bytes, None] = {}
        self._evicted: list[bytes] = []

    @property
    def room(self) -> int:
        """Encoder tokens that can be had now: what is empty or idle."""
        return self.budget - self._num_held

    def count_fitting(self, spans: Sequence[Span], room: int) -> int:
        """How many of these spans, from the first on, can be had together with `room` encoder tokens. Changes nothing.

        An output that a request holds needs no room.
        """
        claimed: set[bytes] = set()
        for i, span in enumerate(spans):
            output = self._outputs.get(span.digest)
            if (output is not None and output.holders) or span.digest in claimed:
                continue
            room -= span.num_encoder_tokens if output is None else output.size
            if room < 0:
                return i
            claimed.add(span.digest)
        return len(spans)

    def need(self, uid: int, span: Span) -> bool:
        """Let a request hold the output for its span; the next batch encodes it if the device does not keep it.

        False, and nothing has changed, if there is no room now.
        """
        if not self.count_fitting((span,), self.room):
            return False
        output = self._outputs.get(span.digest)
        if output is None:
            self._evict(span.num_encoder_tokens)
            output = self._outputs[span.digest] = _Output(span.num_encoder_tokens)
            self._to_encode[span.digest] = None
            self.used += output.size
        if not output.holders:
            self._idle.pop(span.digest, None)
            self._num_held += output.size
        output.holders.setdefault(uid, span)
        self._held.setdefault(uid, {})[span.digest] = None
        return True

    def done(self, uid: int, digest: bytes) -> None:
        """A request needs an output no more, its span is computed. If it holds none, nothing happens."""
        held = self._held.get(uid)
        if held is None or digest not in held:
            return
        del held[digest]
        if not held:
            del self._held[uid]
        self._let_go(uid, digest)

    def release(self, uid: int) -> None:
        """A request needs nothing any more: it ended, or gave up its slot. If it holds none, nothing happens."""
        for digest in self._held.pop(uid, ()):
            self._let_go(uid, digest)

    def take_changes(self) -> tuple[list[tuple[int, Span]], list[bytes]]:
        """What the next batch tells the executor: the spans to encode, each with a request that has it, and the
        digests to drop before that. A digest can be in both."""
        if not self._to_encode and not self._evicted:
            return [], []
        encode = [next(iter(self._outputs[digest].holders.items())) for digest in self._to_encode]
        self._to_encode = {}
        evicted, self._evicted = self._evicted, []
        return encode, evicted

    def forget_encoded(self, digests: Iterable[bytes]) -> None:
        """The step that was to encode these has failed: they do not count as kept, also if requests hold them.

        The next batch has the device drop what there may be of them; a request that needs one has it encoded again.
        Outputs that the next batch encodes anyway stay.
        """
        for digest in digests:
            output = self._outputs.get(digest)
            if output is None or digest in self._to_encode:
                continue
            for uid in list(output.holders):
                self.done(uid, digest)
            del self._idle[digest]
            self._drop(digest)

    def clear(self) -> None:
        """Forget everything, also what requests hold: the weights have changed, or the device was lost."""
        self._evicted += [digest for digest in self._outputs if digest not in self._to_encode]
        self.used = self._num_held = 0
        for book in (self._outputs, self._idle, self._held, self._to_encode):
            book.clear()

    def audit(self, uids_alive: Iterable[int]) -> None:
        """Full check. uids_alive: all that may hold something. Raises AssertionError."""
        outputs = self._outputs
        strangers = self._held.keys() - set(uids_alive)
        assert not strangers, f"requests that are gone hold encoder outputs: {sorted(strangers)[:8]}"
        holds = {(uid, digest) for uid, held in self._held.items() for digest in held}
        assert holds == {(uid, digest) for digest in outputs for uid in outputs[digest].holders}, "holders differ"
        assert set(self._idle) == {d for d in outputs if not outputs[d].holders}, "idle is what no request holds"
        assert not any(digest in self._idle for digest in self._to_encode), "encoded for no request"
        assert self._to_encode.keys() <= outputs.keys(), "encoded, but not kept"
        assert self._num_held == sum(output.size for output in outputs.values() if output.holders), "held is miscounted"
        assert self.used == sum(output.size for output in outputs.values()), "used is miscounted"
        assert self.used <= self.budget, f"{self.used} encoder tokens kept, of {self.budget}"

    def _evict(self, size: int) -> None:
        while self.used + size > self.budget:
            digest = next(iter(self._idle))
            del self._idle[digest]
            self._drop(digest)

    def _drop(self, digest: bytes) -> None:
        self.used -= self._outputs.pop(digest).size
        self._evicted.append(digest)

    def _let_go(self, uid: int, digest: bytes) -> None:
        output = self._outputs[digest]
        del output.holders[uid]
        if output.holders:
            return
        self._num_held -= output.size
        if digest in self._to_encode:  # wanted by no request before it was encoded
            del self._to_encode[digest], self._outputs[digest]
            self.used -= output.size
        else:
            self._idle[digest] = None
