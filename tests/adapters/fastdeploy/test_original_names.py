"""The original's names: each call reaches its plain verb with its arguments, and the table in the docs names it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from headway.adapters import fastdeploy
from headway.adapters.fastdeploy import MANAGERS, OriginalCalls, RequestManager
from headway.errors import EngineDeadError
from headway.managers import MANAGERS as PLAIN_MANAGERS
from headway.managers import Manager
from headway.request import FinishReason
from headway.scheduler import SlotPool
from headway.scheduler.state.slot_pool import NoFreeSlotError
from headway.scheduler.state.slot_table import SlotTable
from tests.managers.driving import ALL, Driver, make

REQUEST = object()  # the calls pass it on as it is
HOLD_TIMEOUT = 1.5  # of the managers below; seconds

# For each call: its arguments, the plain verb, and the verb's positional and keyword arguments.
CALLS: dict[str, tuple[tuple[Any, ...], str, tuple[Any, ...], dict[str, Any]]] = {
    "add_request": ((REQUEST,), "add", (REQUEST,), {}),
    "finish_requests": ((["a", 7],), "finish", (["a", 7],), {}),
    "finish_requests_async": ((["a", 7],), "finish", (["a", 7],), {}),
    "add_abort_req_ids": ((["a", 7],), "abort", (["a", 7],), {}),
    "cache_output_tokens": ((["a", 7],), "publish_output", (["a", 7],), {}),
    "preallocate_resource_in_p": ((REQUEST, 2.5), "reserve_prefill", (REQUEST,), {"timeout": 2.5}),
    "preallocate_resource_in_d": ((REQUEST, 2.5), "reserve_decode", (REQUEST,), {"timeout": 2.5}),
    "has_resource_for_prefilled_req": (
        (REQUEST, 2.5),
        "reserve_decode",
        (REQUEST,),
        {"expires_after": HOLD_TIMEOUT, "timeout": 2.5, "shows_blocks": False},
    ),
    "add_request_in_p": ((["a", 7],), "start_prefill", (["a", 7],), {}),
    "add_prefilled_request": (("a", 5), "start_decode", ("a", 5), {}),
    "pre_recycle_resource": ((["a", 7],), "drop_reservations", (["a", 7],), {}),
    "preempted_all": ((), "preempt_all", (), {}),
    "clear_data": ((), "clear", (), {}),
    "wait_worker_inflight_requests_finish": ((2.5,), "await_steps", (2.5,), {}),
    "available_batch": ((), "num_free_slots", (), {}),
}
IDLE = ("reschedule_preempt_task", "recycle_abort_task")
READS = ("get_real_bsz",)

VERBS = sorted({verb for _, verb, _, _ in CALLS.values()})

SLOT_CALLS = {
    "acquire_slot": "acquire",
    "release_slot": "release",
    "get_available_position": "next_free_slot",
    "available_batch": "num_free_slots",
}


def public_methods(kind: type) -> set[str]:
    """The public methods that a class defines itself."""
    return {name for name in vars(kind) if not name.startswith("_")}


def made(name: str) -> Any:
    """A manager with the original's names."""
    return make(name, managers=MANAGERS, hold_timeout=HOLD_TIMEOUT)


def docs_table() -> dict[str, list[str]]:
    """The table of the docstring: what stands beside each of the original's names, in the order of the lines."""
    lines = (fastdeploy.__doc__ or "").splitlines()
    heading = next(i for i, line in enumerate(lines) if "the original" in line)
    column = lines[heading].index("here")
    table: dict[str, list[str]] = {}
    for line in lines[heading + 1 :]:
        if line.startswith("    "):
            names, here = line[:column].split(", "), line[column:].split(", ")
            for i, name in enumerate(names):
                table.setdefault(name.strip(), []).append(here[i if len(names) == len(here) else 0].strip())
    return table


@pytest.mark.parametrize("call", CALLS)
def test_a_call_reaches_its_plain_verb_and_no_other_and_gives_its_answer(call: str) -> None:
    manager = made("v2")
    arguments, verb, positional, named = CALLS[call]
    spies = {name: mock.create_autospec(getattr(manager, name), return_value=object()) for name in VERBS}
    for name, spy in spies.items():
        setattr(manager, name, spy)
    answer = getattr(manager, call)(*arguments)
    spies.pop(verb).assert_called_once_with(*positional, **named)
    assert not [name for name, spy in spies.items() if spy.called]
    if call in ("preallocate_resource_in_p", "preallocate_resource_in_d", "available_batch"):
        assert answer is getattr(manager, verb).return_value
    else:
        assert answer is (True if call == "has_resource_for_prefilled_req" else None)


def test_without_room_for_a_prefilled_request_the_answer_is_no() -> None:
    manager = made("v2")
    manager.reserve_decode = mock.create_autospec(manager.reserve_decode, return_value=None)
    assert manager.has_resource_for_prefilled_req(REQUEST) is False


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("call", IDLE)
def test_a_call_for_which_nothing_is_to_be_done_enters_no_mailbox(name: str, call: str) -> None:
    manager = made(name)
    uid = Driver(manager).add("a")
    manager._put = mock.Mock()
    getattr(manager, call)(["a", uid, "unknown"])
    manager._put.assert_not_called()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("call", IDLE)
def test_a_call_for_which_nothing_is_to_be_done_is_refused_once_the_engine_has_stopped(name: str, call: str) -> None:
    manager = made(name)
    manager.close(FinishReason.ABORT, "it has stopped")
    with pytest.raises(EngineDeadError, match="it has stopped"):
        getattr(manager, call)(["a"])


def test_the_rows_to_look_at_end_with_the_highest_slot_in_use() -> None:
    manager = made("v2")
    driver = Driver(manager)
    assert manager.get_real_bsz() == 0
    short, long = driver.add("a", max_tokens=1), driver.add("b", max_tokens=4)
    driver.step()
    driver.settle()
    assert short in driver.history.ends and long not in driver.history.ends
    assert manager.get_real_bsz() == 2, "slot 0 is free again, slot 1 is not"
    driver.run()
    assert manager.get_real_bsz() == 0


def test_each_original_manager_is_the_plain_manager_of_that_name() -> None:
    assert MANAGERS.keys() == PLAIN_MANAGERS.keys()
    for name, plain in PLAIN_MANAGERS.items():
        assert issubclass(MANAGERS[name], OriginalCalls) and issubclass(MANAGERS[name], plain)


def test_the_four_slot_calls_of_a_request_manager() -> None:
    slots = RequestManager(SlotTable(2, blocks_per_request=4, block_size=4))
    assert (slots.available_batch(), slots.get_available_position()) == (2, 0)
    first = slots.acquire_slot()
    second = slots.acquire_slot()
    assert (first.slot, second.slot, slots.available_batch()) == (0, 1, 0)
    for call in (slots.get_available_position, slots.acquire_slot):
        with pytest.raises(NoFreeSlotError):
            call()
    assert slots.release_slot(first)
    assert (slots.available_batch(), slots.get_available_position()) == (1, 0)
    assert slots.acquire_slot().slot == 0
    assert not slots.release_slot(first), "it has had another owner since"
    assert slots.available_batch() == 0


# -- the table ---------------------------------------------------------------------------------------------------


def test_every_call_is_tested_here() -> None:
    assert public_methods(OriginalCalls) == {*CALLS, *IDLE, *READS}
    assert public_methods(RequestManager) == SLOT_CALLS.keys()


def test_the_table_of_the_docs_names_every_call_and_what_it_does() -> None:
    table = docs_table()
    for call, (_, verb, _, _) in CALLS.items():
        assert verb in table.pop(call), call
    for call in IDLE:
        assert table.pop(call)[0].startswith("nothing: "), call
    assert table.pop("get_real_bsz") == ["snapshot().num_slots_spanned"]
    for call in ("schedule", "prefill_schedule"):
        assert table.pop(call) == ["the same"] and hasattr(Manager, call)
    for call, here in SLOT_CALLS.items():
        if call != "available_batch":  # a call of both
            assert table.pop(call) == [here] and hasattr(SlotPool, here)
    managers = {MANAGERS[name].__name__: PLAIN_MANAGERS[name].__name__ for name in MANAGERS}
    for name, plain in {**managers, "RequestManager": "SlotPool"}.items():
        assert table.pop(name)[0].split()[0] == plain and hasattr(fastdeploy, name)
    assert not table, "the table names what is not there"
