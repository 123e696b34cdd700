"""P: what is lent, and what D may do with it. Without threads and sockets of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from headway.request import Request
from headway.scheduler.batch import IntArray
from headway.scheduler.effects import Lending
from headway.transfer.messages import (
    AnyMessage,
    Consume,
    Consumed,
    Gone,
    MessageError,
    Progress,
    Read,
    Release,
    Renew,
    Renewed,
    Watch,
)
from headway.transfer.reference import Reference, Seal, prompt_digest, sampling_digest

MAX_WATCHED = 4096  # references that one connection watches
NOT_LENT = "the engine lends nothing under this reference (any more)"


class LeaseManager(Protocol):
    """The manager of P, as a lender knows it. All raise EngineDeadError once the engine has stopped."""

    def consume_lease(self, uid: int, generation: int, timeout: float = ...) -> bool: ...

    def renew_leases(self, uids: Iterable[int]) -> None: ...

    def end_leases(self, uids: Iterable[int]) -> None: ...


@dataclass(frozen=True, slots=True)
class Lent:
    """A request whose prompt is lent, or will be. lending: the last one; None: nothing is computed yet."""

    request: Request
    expires: float
    lending: Lending | None = None

    @property
    def num_tokens(self) -> int:
        """Of the prompt."""
        done = self.lending is not None and self.lending.token is not None
        return self.lending.num_tokens if self.lending is not None and done else len(self.request.prompt)


class Lender:
    """All that one engine lends.

    Threads: `expect` before the request is added; `lending`, `revoked` and `ended` on the writer's thread; the rest on
    any thread. A uid is written to by one thread at a time, so there is no lock.

    leases: the manager. block_size: tokens of a block. lifetime: seconds from the arrival of a request until its
    reference is of no use to a D that has not begun with it.
    """

    def __init__(
        self, leases: LeaseManager, seal: Seal, *, block_size: int, clock: Callable[[], float], lifetime: float = 3600.0
    ) -> None:
        self.leases = leases
        self.seal = seal
        self.block_size = block_size
        self._clock = clock
        self._lifetime = lifetime
        self._lent: dict[int, Lent] = {}
        self._borrowers: tuple[Borrower, ...] = ()

    def __len__(self) -> int:
        return len(self._lent)

    # -- the engine ----------------------------------------------------------------------------------------------

    def expect(self, request: Request) -> None:
        """A request whose KV will be lent is about to be added. If it is refused, `ended` must follow."""
        self._lent[request.uid] = Lent(request, self._clock() + self._lifetime)

    def lending(self, lending: Lending) -> None:
        """The writer: this much can be read now."""
        lent = self._lent.get(lending.uid)
        if lent is None:  # no reference was given out: no D can ask for it
            if lending.token is not None:
                self.leases.end_leases([lending.uid])
            return
        self._lent[lending.uid] = replace(lent, lending=lending)
        self._tell_borrowers()

    def revoked(self, uid: int) -> None:
        """The writer: the lease has ended."""
        if self._lent.pop(uid, None) is not None:
            self._tell_borrowers()

    def ended(self, uid: int) -> None:
        """The writer: the request has ended. If its lease had begun before, it goes on."""
        lent = self._lent.get(uid)
        if lent is not None and (lent.lending is None or lent.lending.token is None):
            self.revoked(uid)

    def begin_anew(self, seal: Seal) -> None:
        """All that was lent is void. seal: of the new incarnation. Any thread."""
        self.seal = seal
        self._lent.clear()
        self._tell_borrowers()

    def reference(self, uid: int) -> str | None:
        """The sealed reference of a request that was expected; None if nothing is lent under its uid."""
        lent = self._lent.get(uid)
        if lent is None:
            return None
        done = lent.lending is not None and lent.lending.token is not None
        return self.seal.close(
            Reference(
                engine=self.seal.engine,
                uid=uid,
                generation=lent.lending.generation if lent.lending is not None and done else None,
                num_tokens=lent.num_tokens,
                prompt=prompt_digest(lent.request),
                sampling=sampling_digest(lent.request.sampling),
                expires=lent.expires,
            )
        )

    # -- D -------------------------------------------------------------------------------------------------------

    def open(self, text: str) -> tuple[Reference, Lent]:
        """What a reference names. Raises ValueError, saying why, if nothing (any more)."""
        reference = self.seal.open(text)
        lent = self._lent.get(reference.uid)
        if lent is None:
            raise ValueError(NOT_LENT)
        now = None if lent.lending is None else lent.lending.generation
        if reference.generation is not None and reference.generation != now:
            raise ValueError(f"the reference is of generation {reference.generation}, and this is {now}")
        return reference, lent

    def readable(self, read: Read) -> IntArray:
        """The blocks that may be read now, int32. Raises ValueError, saying why, if any of them may not."""
        lending = self.open(read.reference)[1].lending
        if lending is None or lending.generation != read.generation:
            now = None if lending is None else lending.generation
            raise ValueError(f"blocks of generation {read.generation} were asked for, and this is {now}")
        end, readable = read.first + read.count, self.num_columns(lending)
        if end > readable:
            raise ValueError(f"blocks {read.first} to {end} were asked for, and {readable} can be read")
        return lending.blocks[read.first : end]

    def num_columns(self, lending: Lending) -> int:
        """Blocks that can be read: only whole ones, until all is computed."""
        if lending.token is None:
            return lending.num_tokens // self.block_size
        return -(-lending.num_tokens // self.block_size)

    @property
    def num_borrowers(self) -> int:
        """Connections of D engines."""
        return len(self._borrowers)

    def borrower_of(self, uid: int) -> str | None:
        """The address of a D that watches this request; None if none does. Any thread."""
        return next((one.address for one in self._borrowers if one.watches(uid)), None)

    def borrower(self, on_news: Callable[[], None], address: str = "") -> Borrower:
        """The state of a new connection. on_news: called on any thread when `news` may have something.
        address: HOST:PORT of D."""
        borrower = Borrower(self, on_news, address)
        self._borrowers = (*self._borrowers, borrower)
        return borrower

    def leave(self, borrower: Borrower) -> None:
        """Its connection has ended. Its leases last until the clock ends them: D may come back."""
        self._borrowers = tuple(one for one in self._borrowers if one is not borrower)

    def forget(self, uid: int) -> None:
        """Its lease has ended at the wish of a D. Others that watch it must hear of that."""
        if self._lent.pop(uid, None) is not None:
            self._tell_borrowers()

    def lent(self, uid: int) -> Lent | None:
        """None if nothing is lent under this uid (any more)."""
        return self._lent.get(uid)

    def _tell_borrowers(self) -> None:
        for borrower in self._borrowers:
            borrower.on_news()


class Borrower:
    """What one connection of a D watches. One thread uses it."""

    def __init__(self, lender: Lender, on_news: Callable[[], None], address: str) -> None:
        self.on_news = on_news
        self.address = address
        self._lender = lender
        self._watched: dict[int, str] = {}
        self._told: dict[int, Lending] = {}

    def take(self, message: AnyMessage) -> list[AnyMessage]:
        """The answers to a message. Raises MessageError if D does not send such messages here."""
        match message:
            case Watch(text):
                return self._watch(text)
            case Renew(uids):
                if mine := self._mine(uids):
                    self._lender.leases.renew_leases(mine)
                return [Renewed()]
            case Consume(uid, generation):
                return [Consumed(uid, self._consume(uid, generation))]
            case Release(uids):
                self._release(self._mine(uids))
                return []
        raise MessageError(f"{type(message).__name__} came, which D does not send here")

    def watches(self, uid: int) -> bool:
        """Whether D wants what is lent under this uid. Any thread."""
        return uid in self._watched

    def news(self) -> list[AnyMessage]:
        """What D does not know yet of what it watches."""
        found: list[AnyMessage] = []
        for uid, text in list(self._watched.items()):
            lent = self._lender.lent(uid)
            if lent is None:
                del self._watched[uid]
                self._told.pop(uid, None)
                found.append(Gone(text, NOT_LENT))
            elif lent.lending is not None and self._told.get(uid) is not lent.lending:
                self._told[uid] = lent.lending
                found.append(_progress(lent.lending))
        return found

    def _watch(self, text: str) -> list[AnyMessage]:
        if len(self._watched) >= MAX_WATCHED:
            return [Gone(text, f"at most {MAX_WATCHED} references are watched by one peer")]
        try:
            reference, _ = self._lender.open(text)
        except ValueError as error:
            return [Gone(text, str(error))]
        self._watched[reference.uid] = text
        self._told.pop(reference.uid, None)
        return []  # what there is comes with the news

    def _mine(self, uids: Iterable[int]) -> list[int]:
        return [uid for uid in dict.fromkeys(uids) if uid in self._watched and self._lender.lent(uid) is not None]

    def _consume(self, uid: int, generation: int) -> bool:
        if self._watched.pop(uid, None) is None:
            return False
        self._told.pop(uid, None)
        try:
            valid = self._lender.leases.consume_lease(uid, generation)
        except TimeoutError:  # the writer is stuck: it has not answered, and the lease will end by the clock
            return False
        if valid:
            self._lender.forget(uid)
        return valid

    def _release(self, uids: list[int]) -> None:
        """The lease of a prompt that is not yet computed ends when it begins: nothing names it any more."""
        for uid in uids:
            self._lender.forget(uid)
            self._watched.pop(uid, None)
            self._told.pop(uid, None)
        if uids:
            self._lender.leases.end_leases(uids)


def _progress(lending: Lending) -> Progress:
    blocks = np.ascontiguousarray(lending.blocks, "<i4").tobytes()
    token = None if lending.token is None else int(lending.token)
    return Progress(lending.uid, lending.generation, lending.num_tokens, blocks, token)
