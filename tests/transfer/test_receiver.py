"""Lender and receiver without threads and sockets, under every order of events that chance finds.

P's blocks get a new owner as soon as their lease has ended. Readers are late. Whatever happens: D is told of each pull
once, when no reader can write to its blocks any more, and never that all is there when it is not.
"""

import random
from collections import deque
from typing import TypeVar

import numpy as np
import pytest

from headway.scheduler.effects import Lending, Pull
from headway.transfer import messages
from headway.transfer.lender import Borrower, Lender
from headway.transfer.messages import AnyMessage, Consume
from headway.transfer.reader import Slice
from headway.transfer.receiver import Receiver
from headway.transfer.reference import Seal
from tests.transfer.rig import BLOCK_SIZE, TOKEN, Clock, FakeManager, layout, request

NUM_BLOCKS = 512
COLUMNS = 5
NUM_TOKENS = BLOCK_SIZE * COLUMNS - 1
GARBAGE = -1

T = TypeVar("T")


class World:
    """One P, one D, and what is on its way between them. A block holds one number: which prompt, and which column."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.manager = FakeManager()
        self.p_blocks = np.full(NUM_BLOCKS, GARBAGE)
        self.d_blocks = np.full(NUM_BLOCKS, GARBAGE)
        self.free = deque(range(NUM_BLOCKS))
        self.lendings: dict[int, Lending] = {}
        self.texts: dict[int, str] = {}
        self.pulled: dict[int, Pull] = {}
        self.done: dict[int, str | None] = {}
        self.reading: list[Slice] = []
        self.to_p: deque[AnyMessage] = deque()
        self.to_d: deque[AnyMessage] = deque()
        self.borrower: Borrower | None = None
        self.lender = self._lender()
        self.receiver = Receiver(layout(NUM_BLOCKS), 100, self._done)
        self.receiver._slice_columns = 2

    def _lender(self) -> Lender:
        return Lender(self.manager, Seal(self.clock), block_size=BLOCK_SIZE, clock=self.clock)

    def _done(self, uid: int, token: int | None, error: str | None) -> None:
        assert uid in self.pulled and uid not in self.done, "told twice, or of nothing"
        assert all(part.uid != uid for part in self.reading), "a reader still writes"
        self.done[uid] = error
        held = self.d_blocks[self.pulled[uid].blocks[:COLUMNS]]
        if error is None:
            assert token == TOKEN
            assert held.tolist() == [self.word(uid, column) for column in range(COLUMNS)], "other KV than P's"
        self.d_blocks[self.pulled[uid].blocks] = GARBAGE  # a new owner

    @staticmethod
    def word(uid: int, column: int) -> int:
        return uid * 100 + column

    # -- P -------------------------------------------------------------------------------------------------------

    def lend(self) -> None:
        uid = len(self.texts)
        self.lender.expect(request(uid, NUM_TOKENS))
        self.texts[uid] = str(self.lender.reference(uid))
        self._compute(uid, 0, 0)

    def compute_more(self) -> None:
        if (one := self._any(self._computing())) is not None:
            self._compute(one.uid, one.num_tokens + self.rng.randint(1, 9), one.generation, one)

    def preempt(self) -> None:
        if (one := self._any(self._computing())) is not None:
            self._give(one)
            self._compute(one.uid, self.rng.randint(0, 9), one.generation + 1)

    def revoke(self) -> None:
        uid = self._any(list(self.manager.leases))
        if uid is not None:
            del self.manager.leases[uid]
            self._give(self.lendings.pop(uid))
            if self.rng.random() < 0.5:  # else the connector hears of it later, or never
                self.lender.revoked(uid)

    def restart_p(self) -> None:
        self.cut()
        for uid in list(self.lendings):
            self._give(self.lendings.pop(uid))
        self.manager.leases.clear()
        self.lender = self._lender()

    def _computing(self) -> list[Lending]:
        return [one for one in self.lendings.values() if one.token is None]

    def _compute(self, uid: int, num_tokens: int, generation: int, before: Lending | None = None) -> None:
        blocks = before.blocks if before else np.array([self.free.popleft() for _ in range(COLUMNS)], np.int32)
        num_tokens = min(num_tokens, NUM_TOKENS)
        is_done = num_tokens == NUM_TOKENS
        for column in range(COLUMNS if is_done else num_tokens // BLOCK_SIZE):
            self.p_blocks[blocks[column]] = self.word(1000 + uid, column)
        lending = Lending(uid, "r", blocks, num_tokens, generation, TOKEN if is_done else None)
        if is_done:
            self.manager.leases[uid] = generation
        self.lendings[uid] = lending
        self.lender.lending(lending)

    def _give(self, lending: Lending) -> None:
        """Its blocks have a new owner."""
        self.p_blocks[lending.blocks] = GARBAGE
        self.free.extend(lending.blocks.tolist())

    # -- D -------------------------------------------------------------------------------------------------------

    def want(self) -> None:
        uid = self._any([uid for uid in self.texts if 1000 + uid not in self.pulled])
        if uid is not None and 1000 + uid not in self.receiver._jobs:
            self.receiver.want(1000 + uid, self.texts[uid])

    def pull(self) -> None:
        uid = self._any([uid for uid in self.texts if 1000 + uid not in self.pulled])
        if uid is not None:
            cached = self.rng.choice([0, 0, 1, 2])
            blocks = np.arange(COLUMNS, dtype=np.int32) + COLUMNS * (uid % 100)
            self.d_blocks[blocks[:cached]] = [self.word(1000 + uid, column) for column in range(cached)]
            one = self.pulled[1000 + uid] = Pull(request(1000 + uid, NUM_TOKENS), blocks, cached * BLOCK_SIZE)
            self.receiver.pull(one, self.texts[uid])

    def stop(self) -> None:
        uid = self._any(list(self.pulled))
        if uid is not None:
            self.receiver.stop(uid)

    def begin_read(self) -> None:
        part = self.receiver.next_slice()
        if part is not None:
            self.reading.append(part)

    def end_read(self) -> None:
        part = self._any(self.reading)
        if part is not None:
            self.reading.remove(part)
            self.d_blocks[part.targets] = self.p_blocks[part.sources]
            self.receiver.read_done(part, "broken" if self.rng.random() < 0.05 else None)

    # -- the network ---------------------------------------------------------------------------------------------

    def connect(self) -> None:
        if self.borrower is None:
            self.borrower = self.lender.borrower(lambda: None)
            self.receiver.connected(self.lender.seal.engine, NUM_BLOCKS, 30.0, self.clock())

    def cut(self) -> None:
        if self.borrower is not None:
            for part in self.reading:  # readers are waited for, and may write until then
                self.d_blocks[part.targets] = self.p_blocks[part.sources]
            self.reading.clear()
            self.lender.leave(self.borrower)
            self.borrower = None
            self.to_p.clear()
            self.to_d.clear()
            self.receiver.lost("cut")

    def deliver_to_p(self) -> None:
        if self.borrower is not None and self.to_p:
            message = self.to_p.popleft()
            known = self.lendings.get(message.uid) if isinstance(message, Consume) else None
            answers = self.borrower.take(message)
            self.to_d.extend(answers)
            if isinstance(message, Consume) and answers == [messages.Consumed(message.uid, True)]:
                assert known is not None
                self._give(self.lendings.pop(message.uid))
            for uid in self.manager.ended:
                if uid in self.lendings and self.lendings[uid].token is not None:
                    self._give(self.lendings.pop(uid))
            self.manager.ended.clear()

    def deliver_to_d(self) -> None:
        if self.borrower is not None:
            self.to_d.extend(self.borrower.news())
            if self.to_d:
                self.receiver.take(self.to_d.popleft())

    def pass_time(self) -> None:
        self.clock.now += self.rng.choice([0.1, 5.0, 11.0])
        if self.borrower is not None:
            try:
                self.receiver.tick(self.clock())
            except OSError:
                self.cut()

    # -- the course of things --------------------------------------------------------------------------------------

    def _any(self, values: list[T]) -> T | None:
        return self.rng.choice(values) if values else None

    def run(self, num_events: int) -> None:
        often = [self.deliver_to_p, self.deliver_to_d, self.begin_read, self.end_read, self.compute_more]
        events = 12 * often + 3 * [self.lend, self.pull, self.connect]
        events += [self.want, self.stop, self.revoke, self.preempt, self.pass_time]
        rare = [self.cut, self.restart_p]
        for _ in range(num_events):
            self.rng.choice(rare if self.rng.random() < 0.002 else events)()
            self.to_p.extend(self.receiver.outbox)
            self.receiver.outbox.clear()
        self.cut()
        self.receiver.lost("the end")
        assert self.done.keys() == self.pulled.keys(), "a pull without an answer"
        assert self.receiver.num_jobs == sum(job.pull is None for job in self.receiver._jobs.values())


def test_whatever_happens_d_is_told_once_and_never_of_kv_that_is_not_p_s() -> None:
    outcomes: dict[str, int] = {}
    for seed in range(60):
        world = World(seed)
        world.run(1500)
        for error in world.done.values():
            kind = "ok" if error is None else error.split(":")[0]
            outcomes[kind] = outcomes.get(kind, 0) + 1
    assert set(outcomes) == {"ok", "gone", "stopped", "read", "peer_down"}, outcomes
    assert outcomes["ok"] > 500, outcomes


def test_heartbeats_are_a_third_of_a_lease_apart_and_name_all_that_is_wanted() -> None:
    receiver = Receiver(layout(), 100, lambda uid, token, error: None)
    seal = Seal(lambda: 0.0)
    for uid in range(3):
        lender = Lender(FakeManager(), seal, block_size=BLOCK_SIZE, clock=lambda: 0.0)
        lender.expect(request(uid))
        receiver.want(100 + uid, str(lender.reference(uid)))
    receiver.connected(seal.engine, 64, 30.0, 0.0)
    receiver.outbox.clear()
    sent = []
    for now in range(31):
        receiver.tick(float(now))
        sent += [(now, message) for message in receiver.outbox]
        receiver.outbox.clear()
        assert receiver.seconds_left(float(now)) <= 10.0
        if now == 15:
            receiver.stop(101)
            receiver.outbox.clear()
    all_three, two = messages.Renew((0, 1, 2)), messages.Renew((0, 2))
    assert sent == [(0, all_three), (10, all_three), (20, two), (30, two)]


def test_a_peer_that_owes_an_answer_for_a_lease_is_silent() -> None:
    receiver = Receiver(layout(), 100, lambda uid, token, error: None)
    receiver.connected(b"e" * 16, 64, 30.0, 0.0)
    receiver.tick(0.0)
    receiver.take(messages.Renewed())
    receiver.tick(500.0)  # D slept: the peer owes nothing
    receiver.tick(530.0)
    with pytest.raises(OSError, match=r"has said nothing for 31.0 s"):
        receiver.tick(531.0)


def test_a_d_hears_at_once_that_another_d_has_consumed_what_both_watch() -> None:
    manager = FakeManager()
    lender = Lender(manager, Seal(lambda: 0.0), block_size=BLOCK_SIZE, clock=lambda: 0.0)
    lender.expect(request(1))
    text = str(lender.reference(1))
    woken: list[str] = []
    one, other = lender.borrower(lambda: woken.append("one")), lender.borrower(lambda: woken.append("other"))
    assert one.take(messages.Watch(text)) == other.take(messages.Watch(text)) == []
    manager.leases[1] = 0
    lender.lending(Lending(1, "r1", np.arange(3, dtype=np.int32), 10, 0, TOKEN))
    one.news(), other.news()
    woken.clear()
    assert one.take(Consume(1, 0)) == [messages.Consumed(1, True)]
    assert "other" in woken
    assert [type(news) for news in other.news()] == [messages.Gone]
