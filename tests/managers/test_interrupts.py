"""Ctrl-C in a caller, wherever it may strike: nothing is left half done, and no other caller notices."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import headway
from headway.config import Role
from headway.errors import EngineDeadError
from headway.managers import Manager
from headway.request import FinishReason
from headway.sampling import SamplingParams
from headway.scheduler import Reservation
from tests.managers.driving import PATIENCE, Asking, Driver, answer_to, make, make_request

_HEADWAY = str(Path(headway.__file__).parent)

# Moments at which an interrupt cannot be made good: when a call has returned and it is not yet noted that it had its
# effect (it costs a place at the door, or the lock), and while there is cleaning up (an id, or the memory of a cell).
_BEYOND_REPAIR = {"enter: pop", "_put_query: acquire"}
_CLEANS_UP = {"leave", "_give_back", "_take_back", "forget"}


class Interrupt:
    """Strikes at the `at`-th moment at which CPython looks for signals: a function begins, or a C function returns."""

    def __init__(self, at: int) -> None:
        self._left = at
        self.struck: str | None = None

    def strikes(self, act: Callable[[], Any]) -> bool:
        """Whether the act was interrupted."""
        before = sys.getprofile()
        sys.setprofile(self._look)
        try:
            act()
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(before)
        return False

    def _look(self, frame: FrameType, event: str, arg: Any) -> None:
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(_HEADWAY):
            return
        name = frame.f_code.co_name + (f": {arg.__name__}" if event == "c_return" else "")
        if name in _BEYOND_REPAIR or frame.f_code.co_name in _CLEANS_UP:
            return
        if self._left == 0:
            self.struck = name
            raise KeyboardInterrupt
        self._left -= 1


def interrupts(act_on: Callable[[Interrupt], bool], at_least: int) -> None:
    """Carry out the same with an interrupt at every moment in turn, until none strikes."""
    for count in itertools.count():
        interrupt = Interrupt(count)
        try:
            if not act_on(interrupt):
                break
        except BaseException as error:
            error.add_note(f"at the {count}th moment, in {interrupt.struck}")
            raise
    assert count >= at_least


def is_usable(manager: Manager) -> Iterator[Driver]:
    """The next request is served; under v1 a half-applied message stops the engine, and then it says so."""
    driver = Driver(manager)
    try:
        driver.settle()
    except KeyboardInterrupt:  # struck while the core was being changed: it cannot be trusted any more
        driver.history.take(manager.close(FinishReason.ERROR, "interrupted"))
        with pytest.raises(EngineDeadError):
            driver.add("next")
        assert manager.door.num_inside == 0
        return
    yield driver


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_an_interrupted_addition_was_never_made_or_is_taken_back(name: str) -> None:
    def act(interrupt: Interrupt) -> bool:
        manager = make(name)
        first = make_request(manager, "a", [4, 5, 6], SamplingParams(max_tokens=4))
        struck = interrupt.strikes(lambda: manager.add(first))
        for driver in is_usable(manager):
            if struck:
                assert not driver.history.ends, "its caller never learned that it was accepted"
                again = driver.add("a", [1, 2, 3])
                driver.run_out()
                assert driver.history.tokens[again] == answer_to([1, 2, 3], 4)
                assert list(driver.history.ends) == [again]
            else:
                driver.run_out()
                assert list(driver.history.ends) == [first.uid]
            driver.assert_empty()
        return struck

    interrupts(act, at_least=5)


@pytest.mark.parametrize("name", ["v1", "v2"])
@pytest.mark.parametrize("drawn", ["at once", "later"])
def test_an_interrupted_reservation_is_not_held(name: str, drawn: str) -> None:
    def act(interrupt: Interrupt) -> bool:
        manager = make(name, role=Role.DECODE)
        if name == "v2" and drawn == "at once":
            put = manager._mailbox.put  # type: ignore[attr-defined]

            def put_and_draw(message: Any) -> None:
                put(message)
                loop = threading.Thread(target=manager.drain)
                loop.start()
                loop.join(PATIENCE)

            manager._mailbox.put = put_and_draw  # type: ignore[attr-defined]
        request = make_request(manager, "a", [4, 5, 6], SamplingParams(max_tokens=4))
        answer: list[Any] = []
        try:
            struck = interrupt.strikes(lambda: answer.append(manager.reserve_decode(request, 0.001)))
        except TimeoutError:
            struck = False
        for driver in is_usable(manager):
            if struck:
                assert not driver.history.ends
                assert manager._core.requests() == []
                assert not manager.snapshot().num_blocks_quarantined, "no connector has heard of the blocks"
            elif answer:
                assert isinstance(answer[0], Reservation)
                manager.drop_reservations("a")
                driver.settle()
                assert list(driver.history.ends) == [request.uid]
            again = make_request(manager, "a", [1, 2, 3], SamplingParams(max_tokens=4))
            asking = Asking(partial(manager.reserve_decode, again, PATIENCE))
            while not asking.done():
                driver.settle()
            assert asking.answer() is not None
            manager.start_decode("a", answer_to([1, 2, 3], 1)[0])
            driver.run_out()
            assert driver.history.tokens[again.uid] == answer_to([1, 2, 3], 4)
            driver.assert_empty()
        return struck

    interrupts(act, at_least=20)


@pytest.mark.parametrize("name", ["v1", "v2"])
@pytest.mark.parametrize("call", ["abort", "pause", "resume", "clear", "audit", "progress"])
def test_whatever_is_interrupted_the_engine_goes_on(name: str, call: str) -> None:
    def act(interrupt: Interrupt) -> bool:
        manager = make(name)
        request = make_request(manager, "someone", [1, 2, 3], SamplingParams(max_tokens=4))
        manager.add(request)
        arguments = {"abort": ("someone",), "pause": ("preempt",), "audit": (0.001,)}
        arguments["progress"] = ("someone", 0.001)  # type: ignore[assignment]
        options = {"timeout": 0.001} if call == "pause" else {}
        try:
            struck = interrupt.strikes(lambda: getattr(manager, call)(*arguments.get(call, ()), **options))
        except TimeoutError:
            struck = False
        for driver in is_usable(manager):
            manager.resume()
            driver.settle()
            assert manager.door.paused == manager.snapshot().paused is False
            driver.add("next")
            driver.run_out()
            assert len(driver.history.ends) == 2
            driver.assert_empty()
            assert len(manager._desk) == 0
        return struck

    interrupts(act, at_least=3)
