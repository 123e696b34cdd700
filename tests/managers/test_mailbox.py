"""The mailbox: two lanes, bounded taking, and a sleep that no message is slept through."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from headway.managers import Mailbox
from headway.scheduler import AbortRequests, Command, DeviceLost, Message, StepResult
from tests.managers.driving import PATIENCE


def command(number: int) -> Command:
    return AbortRequests((number,))


def result(step_id: int) -> StepResult:
    return StepResult(step_id, np.zeros(0, np.int32))


def names(messages: list[Message]) -> list[str]:
    """c1 for command 1, r1 for the result of step 1, lost for a lost device."""
    kinds = {
        AbortRequests: lambda m: f"c{m.uids[0]}",
        StepResult: lambda m: f"r{m.step_id}",
        DeviceLost: lambda m: "lost",
    }
    return [kinds[type(message)](message) for message in messages]


# -- two lanes ---------------------------------------------------------------------------------------------------


def test_results_come_before_commands_and_each_lane_is_first_in_first_out() -> None:
    mailbox = Mailbox()
    mailbox.put(command(1))
    mailbox.put_result(result(1))
    mailbox.put(command(2))
    mailbox.put_result(DeviceLost("gone"))
    assert len(mailbox) == 4
    assert names(list(mailbox.take(10))) == ["r1", "lost", "c1", "c2"]
    assert len(mailbox) == 0


def test_a_result_that_arrives_during_the_taking_overtakes_the_commands_left() -> None:
    mailbox = Mailbox()
    for number in (1, 2, 3):
        mailbox.put(command(number))
    taken = []
    for message in mailbox.take(10):
        taken.append(message)
        if len(taken) == 1:
            mailbox.put_result(result(7))
    assert names(taken) == ["c1", "r7", "c2", "c3"]


def test_taking_is_bounded_in_commands_but_takes_every_result() -> None:
    mailbox = Mailbox()
    for number in range(5):
        mailbox.put(command(number))
        mailbox.put_result(result(number))
    assert names(list(mailbox.take(2))) == ["r0", "r1", "r2", "r3", "r4", "c0", "c1"]
    assert names(list(mailbox.take(2))) == ["c2", "c3"]
    mailbox.put_result(result(9))
    assert names(list(mailbox.take(0))) == ["r9"]
    assert names(list(mailbox.take(2))) == ["c4"]
    assert names(list(mailbox.take(2))) == []


def test_a_result_behind_the_last_command_of_a_turn_is_still_taken() -> None:
    mailbox = Mailbox()
    mailbox.put(command(1))
    mailbox.put(command(2))
    taking = mailbox.take(1)
    taken = [next(taking)]
    mailbox.put_result(result(1))
    taken += taking
    assert names(taken) == ["c1", "r1"]
    assert len(mailbox) == 1


def test_a_taker_that_stops_early_leaves_the_rest() -> None:
    mailbox = Mailbox()
    for number in range(4):
        mailbox.put(command(number))
    for message in mailbox.take(4):
        if names([message]) == ["c1"]:
            break
    assert len(mailbox) == 2
    assert names(list(mailbox.take(4))) == ["c2", "c3"]


# -- sleeping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("put", [lambda m: m.put(command(1)), lambda m: m.put_result(result(1))])
def test_waiting_returns_at_once_when_something_is_there(put: Callable[[Mailbox], None]) -> None:
    mailbox = Mailbox()
    put(mailbox)
    began = time.monotonic()
    mailbox.wait(PATIENCE)
    assert time.monotonic() - began < PATIENCE / 2


@pytest.mark.parametrize("put", [lambda m: m.put(command(1)), lambda m: m.put_result(result(1))])
def test_a_sleeping_writer_is_woken(put: Callable[[Mailbox], None]) -> None:
    mailbox = Mailbox()
    writer = threading.Thread(target=mailbox.wait, args=(PATIENCE,))
    began = time.monotonic()
    writer.start()
    while not mailbox._sleeping:
        time.sleep(0.001)
    put(mailbox)
    writer.join(PATIENCE / 2)
    assert not writer.is_alive()
    assert time.monotonic() - began < PATIENCE / 2
    assert len(mailbox) == 1


def test_waiting_ends_when_no_message_comes() -> None:
    mailbox = Mailbox()
    began = time.monotonic()
    mailbox.wait(0.02)
    assert time.monotonic() - began >= 0.02
    mailbox.wait(0.0)
    assert not mailbox._sleeping


def test_no_producer_rings_for_a_writer_that_is_awake() -> None:
    mailbox = Mailbox()
    for number in range(100):
        mailbox.put(command(number))
        mailbox.put_result(result(number))
    assert mailbox._bell.empty()


def test_bells_that_rang_for_the_same_messages_do_not_pile_up() -> None:
    mailbox = Mailbox()
    mailbox._sleeping = True  # as the producers see it
    for number in range(5):
        mailbox.put(command(number))
    assert mailbox._bell.qsize() == 5
    mailbox.wait(PATIENCE)
    assert mailbox._bell.empty()


# -- no message is slept through: every place at which a producer can come in between ----------------------------


class BellWithoutSleep:
    """A bell at which no thread waits: it notes whether the writer would have slept on."""

    def __init__(self) -> None:
        self._rings: list[None] = []
        self.slept_on = False
        self.at_sleep: Callable[[], None] = lambda: None

    def put(self, ring: None) -> None:
        self._rings.append(ring)

    def empty(self) -> bool:
        return not self._rings

    def get(self, timeout: float) -> None:
        self.at_sleep()
        if not self._rings:
            self.slept_on = True
            raise queue.Empty
        self._rings.pop()

    def get_nowait(self) -> None:
        self._rings.pop()


class Interleaved(Mailbox):
    """Lets a producer in right before or right after the writer's look."""

    def __init__(self) -> None:
        super().__init__()
        self.bell = BellWithoutSleep()
        self._bell = self.bell  # type: ignore[assignment]
        self.before_look: Callable[[], None] = lambda: None
        self.after_look: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        self.before_look()
        found = super().__len__()
        self.after_look()
        return found


class WithoutSecondLook(Interleaved):
    """Wrong: announces and sleeps, without looking once more."""

    def wait(self, timeout: float) -> None:
        self._sleeping = True
        try:
            self._bell.get(timeout=timeout)
        except queue.Empty:
            return
        finally:
            self._sleeping = False


class AnnouncesAfterLook(Interleaved):
    """Wrong: looks, then announces, then sleeps."""

    def wait(self, timeout: float) -> None:
        if len(self):
            return
        self._sleeping = True
        try:
            self._bell.get(timeout=timeout)
        except queue.Empty:
            return
        finally:
            self._sleeping = False


def once(act: Callable[[], None]) -> Callable[[], None]:
    todo = [act]
    return lambda: todo.pop()() if todo else None


def slept_through(kind: type[Interleaved], moment: str) -> bool:
    """Whether a writer sleeps on although a producer handed something in at that moment."""
    mailbox = kind()
    hand_in = once(lambda: mailbox.put(command(1)))
    match moment:
        case "before the announcement":
            hand_in()
        case "between announcement and look":
            mailbox.before_look = hand_in
        case "between look and sleep":
            mailbox.after_look = hand_in
        case "asleep":
            mailbox.bell.at_sleep = hand_in
    mailbox.wait(PATIENCE)
    mailbox.before_look = mailbox.after_look = lambda: None
    hand_in()  # in case the moment never came
    assert len(mailbox) == 1
    return mailbox.bell.slept_on


MOMENTS = ("before the announcement", "between announcement and look", "between look and sleep", "asleep")


@pytest.mark.parametrize("moment", MOMENTS)
def test_no_message_is_slept_through(moment: str) -> None:
    assert not slept_through(Interleaved, moment)


@pytest.mark.parametrize(
    ("kind", "moment"),
    [(WithoutSecondLook, "before the announcement"), (AnnouncesAfterLook, "between look and sleep")],
)
def test_the_order_of_announcement_look_and_sleep_is_what_it_takes(kind: type[Interleaved], moment: str) -> None:
    assert slept_through(kind, moment)


def test_nothing_is_lost_or_reordered_under_many_producers_and_a_writer_that_sleeps() -> None:
    """Each producer waits for its message to be taken before it hands in the next, so the writer sleeps often."""
    num_producers, num_each = 4, 400
    mailbox = Mailbox()
    taken: list[list[int]] = [[] for _ in range(num_producers)]
    go_on = [threading.Semaphore(1) for _ in range(num_producers)]

    def produce(who: int) -> None:
        for number in range(num_each):
            assert go_on[who].acquire(timeout=PATIENCE)
            if number % 5 == 0:
                mailbox.put_result(result(who * num_each + number))
            else:
                mailbox.put(command(who * num_each + number))

    producers = [threading.Thread(target=produce, args=(who,), daemon=True) for who in range(num_producers)]
    for producer in producers:
        producer.start()
    while sum(map(len, taken)) < num_producers * num_each:
        began = time.monotonic()
        mailbox.wait(PATIENCE)
        assert time.monotonic() - began < PATIENCE / 2, "a message was slept through"
        for message in mailbox.take(3):
            number = message.step_id if isinstance(message, StepResult) else message.uids[0]  # type: ignore[union-attr]
            who, number = divmod(number, num_each)
            taken[who].append(number)
            go_on[who].release()
    for producer in producers:
        producer.join(PATIENCE)
    assert taken == [list(range(num_each))] * num_producers
    assert len(mailbox) == 0


# -- a crowd -----------------------------------------------------------------------------------------------------


def sleeps_of(mailbox: Mailbox, commands: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for number in range(commands):
        mailbox.put(command(number))
    monkeypatch.undo()
    return slept


def test_a_thread_in_a_flood_gives_way_to_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = Mailbox()
    mailbox.wait(0.001)
    slept = sleeps_of(mailbox, 600, monkeypatch)
    assert 0 < len(slept) < 600 and all(0 < seconds < 0.1 for seconds in slept)
    assert len(mailbox) == 600  # each was handed in all the same
    list(mailbox.take(600))
    assert not sleeps_of(mailbox, 100, monkeypatch)


def test_where_there_is_no_writer_no_producer_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not sleeps_of(Mailbox(), 2_000, monkeypatch)


def test_results_never_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = Mailbox()
    mailbox.wait(0.001)
    sleeps_of(mailbox, 600, monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("the device waits"))
    mailbox.put_result(result(1))
