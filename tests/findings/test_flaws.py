"""The flaws that running the original showed, 1 to 11.

Those of timing are shown without a clock: by what is touched, what comes before what, and how much is done.
"""

from __future__ import annotations

import ast
import dataclasses
import multiprocessing
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import Any, get_args

import numpy as np
import pytest

import headway
from headway.adapters.fastdeploy import OriginalCalls, ResourceManagerV2
from headway.config import Role
from headway.engine.preprocess import Prepared
from headway.errors import EngineDeadError, QueryError, QueueFullError
from headway.managers import Manager, lock_free
from headway.request import FinishReason, Request, RequestStatus
from headway.sampling import SamplingParams
from headway.scheduler import Message, Sending
from tests.engine.running import Device, Hang
from tests.findings.calls import COMMANDS, IDLE, PLAIN_VERBS, QUERIES, READS, a_request, role_for
from tests.findings.original import make, running
from tests.findings.witness import SOON, Asked, comes, instructions, locks_in
from tests.managers.driving import ALL, Driver, answer_to, hand_made, make_request, prompt_of

CORE = Path(headway.__file__).parent


def test_these_are_all_that_a_caller_can_do() -> None:
    assert {*COMMANDS, *QUERIES, *READS} == {name for name in dir(OriginalCalls) if name[0] != "_"} - PLAIN_VERBS


# -- 1: "lock-free" guards its deque with a lock -----------------------------------------------------------------


def test_flaw_01_the_lock_free_manager_has_no_lock() -> None:
    """None can be reached from it but the one inside the bell, which rings for a writer that sleeps and for no other.

    Under the other two there is one: so one would be seen.
    """
    for name in ALL:
        driver = Driver(make(name))
        driver.add("a")
        driver.step()
        manager = driver.manager
        bells = [manager._mailbox._bell] if isinstance(manager, ResourceManagerV2) else []
        assert bool(bells) == (name == "v2")
        assert (locks_in(manager) == bells) == (name == "v2")


@pytest.mark.parametrize(
    "kind",
    [queue.SimpleQueue, queue.Queue, threading.Lock, threading.Event, multiprocessing.Lock, multiprocessing.Queue],
)
def test_flaw_01_a_lock_is_seen_wherever_it_hides(kind: Callable[[], Any]) -> None:
    """In an attribute, in an object of C, behind a bound method or in what a function closes over."""
    lane = kind()
    one = lane.put if hasattr(lane, "put") else lane.__enter__ if hasattr(lane, "__enter__") else lane
    for thing in (SimpleNamespace(lane=lane), deque([one]), lambda: lane):
        assert locks_in(thing)


class Recorded(deque[Any]):
    """What was appended, and how often anything else was done."""

    def __init__(self) -> None:
        super().__init__()
        self.appended: list[Any] = []

    def append(self, message: Any) -> None:
        self.appended.append(message)
        super().append(message)


class Bell:
    """Counts how often it rings."""

    rings = 0

    def put(self, _: None) -> None:
        self.rings += 1


def test_flaw_01_handing_in_is_one_append() -> None:
    """And no bell rings for a writer that is awake."""
    driver = Driver(make("v2"))
    driver.add("a", max_tokens=20)
    driver.step()
    mailbox = driver.manager._mailbox  # type: ignore[attr-defined]
    mailbox._commands, mailbox._bell = Recorded(), Bell()
    for number, command in enumerate((name for name in COMMANDS if name not in IDLE), start=1):
        COMMANDS[command](driver.manager)
        assert len(mailbox._commands.appended) == number, command
    assert mailbox._bell.rings == 0


# -- 2: a query costs a scheduling period ------------------------------------------------------------------------


@pytest.fixture
def hang() -> Iterator[Hang]:
    """A device that does not answer its first step; let go in the end, so that its thread ends."""
    hang = Hang()
    yield hang
    hang.let_go.set()


def test_flaw_02_a_query_is_answered_while_a_step_is_out(name: str, hang: Hang) -> None:
    """The original drained in `schedule()` alone, and so not while the worker was busy."""
    with running(name, Device(before_step=hang), role=Role.DECODE) as it:
        it.add("a")
        assert hang.reached.wait(SOON)
        progress = it.manager.progress("a", timeout=SOON)
        assert progress is not None and progress.status is RequestStatus.RUNNING_DECODE
        for i in range(3):
            assert it.manager.preallocate_resource_in_d(a_request(it.manager, f"r{i}"), timeout=SOON) is not None
        assert it.manager.audit(timeout=SOON).num_slots_used == 4
        assert it.manager.snapshot().num_in_flight, "the step is still out"
        hang.let_go.set()


def test_flaw_02_commands_are_carried_out_while_a_step_is_out(name: str, hang: Hang) -> None:
    with running(name, Device(before_step=hang)) as it:
        uid = it.add("a")
        assert hang.reached.wait(SOON)
        it.manager.finish_requests([uid])
        assert comes(lambda: uid in it.history.ends)
        assert it.manager.snapshot().num_in_flight, "the step is still out"
        hang.let_go.set()


# -- 3: an exception in a handler leaves callers waiting for ever ------------------------------------------------


def test_flaw_03_a_query_that_is_refused_raises_where_it_was_asked_and_nowhere_else(name: str) -> None:
    with running(name) as it:
        asked = Asked(lambda: it.manager.preallocate_resource_in_d(a_request(it.manager), timeout=1e6))
        assert isinstance(asked.outcome(), QueryError)
        it.history.wait_for([it.add("a")])
        assert it.engine.failure() is None
        assert it.manager.door.num_inside == 0


def breaks(*_: object) -> None:
    raise KeyError("it was not foreseen")


def handle(manager: Manager, message: str, handler: Callable[..., object]) -> None:
    """Have the core carry out messages of this name in another way."""
    core = manager._core
    handlers: Any = core._answers if message == "GetProgress" else core._handlers
    (kind,) = [kind for kind in handlers if kind.__name__ == message]
    handlers[kind] = handler


def test_flaw_03_a_handler_that_breaks_fails_its_caller_and_all_requests_inside(name: str, hang: Hang) -> None:
    with running(name, Device(before_step=hang)) as it:
        uid = it.add("a")
        assert hang.reached.wait(SOON)
        handle(it.manager, "GetProgress", breaks)
        outcome = Asked(lambda: it.manager.progress("a", timeout=1e6)).outcome()
        assert isinstance(outcome, EngineDeadError) and "KeyError: 'it was not foreseen'" in str(outcome)
        assert comes(lambda: uid in it.history.ends)
        assert it.history.ends[uid].reason is FinishReason.ERROR
        assert "KeyError: 'it was not foreseen'" in str(it.engine.failure())
        hang.let_go.set()


@pytest.mark.parametrize("broken", ["AddRequest", "AbortRequests"])
def test_flaw_03_no_request_is_lost_with_a_message_that_broke(name: str, broken: str) -> None:
    """Fire and forget: the original dropped the message, and its client hung."""
    with running(name) as it:
        handle(it.manager, broken, breaks)
        uid = it.add("a", max_tokens=50)
        it.manager.add_abort_req_ids([uid])
        assert comes(lambda: uid in it.history.ends)
        assert it.history.ends[uid].reason is FinishReason.ERROR
        with pytest.raises(EngineDeadError, match="it was not foreseen"):
            it.add("b")


def test_flaw_03_a_request_that_the_core_cannot_serve_ends_with_the_reason(driver: Driver) -> None:
    driver.manager.add_request(hand_made(7, "a", max_tokens=1000))
    driver.run()
    assert driver.history.ends[7].reason is FinishReason.ERROR
    assert "max_model_len (64)" in str(driver.history.ends[7].error)
    driver.assert_empty()


# -- 4: an unbounded drain, and a finish that costs O(running + blocks) ------------------------------------------


def test_flaw_04_a_turn_takes_a_bounded_number_of_commands() -> None:
    driver = Driver(make("v2"))
    for i in range(3000):
        driver.add(f"r{i}")
    driver.manager.drain()
    assert 0 < driver.manager.snapshot().num_requests_added <= lock_free.MAX_COMMANDS_PER_TURN < 3000


def test_flaw_04_a_turn_takes_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_free, "MAX_SECONDS_PER_TURN", -1.0)  # over before it begins
    driver = Driver(make("v2"))
    for i in range(3):
        driver.add(f"r{i}")
    driver.manager.drain()
    assert driver.manager.snapshot().num_requests_added == 1


def test_flaw_04_a_flood_of_commands_does_not_hold_up_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_free, "MAX_COMMANDS_PER_TURN", 1)
    driver = Driver(make("v2"))
    driver.add("a")
    batch = driver.launch()
    assert batch is not None
    for _ in range(100):
        driver.manager.preempted_all()
    driver.manager.post_result(driver.result(batch))
    driver.manager.drain()
    assert driver.manager.snapshot().num_in_flight == 0


def busy(num_running: int) -> Driver:
    """So many that decode, each in the middle of a block."""
    limits: dict[str, Any] = {
        "max_num_seqs": num_running,
        "max_num_batched_tokens": 8192,
        "num_blocks": 4 * num_running + 1,
    }
    driver = Driver(make("v2", block_size=16, reserve="none", **limits))
    for i in range(num_running):
        driver.add(f"r{i}", prompt_of(i, 3), max_tokens=60)
    for _ in range(3):
        driver.step()
    assert driver.manager.snapshot().num_running == num_running
    return driver


def test_flaw_04_a_finish_costs_the_same_however_many_run() -> None:
    def cost(num_running: int, num_finishes: int) -> int:
        driver = busy(num_running)

        def finish() -> None:
            driver.manager.finish_requests([f"r{i}" for i in range(num_finishes)])
            driver.manager.drain()

        taken = instructions(finish)
        assert len(driver.manager.take_effects().ended) == num_finishes
        driver.manager._core.audit()
        return taken

    few, many = cost(64, 16), cost(1024, 16)
    assert many <= 1.1 * few
    assert cost(1024, 256) <= 20 * many  # and 16 times as many, no more than 16 times as much


# -- 5: finishing who waits, or was preempted --------------------------------------------------------------------


@pytest.mark.parametrize("end", ["finish_requests", "finish_requests_async", "add_abort_req_ids"])
def test_flaw_05_who_waits_can_be_finished(name: str, end: str) -> None:
    """TypeError in the caller."""
    driver = Driver(make(name, max_num_seqs=1))
    driver.add("runs", max_tokens=5)
    driver.step()
    waits = driver.add("waits")
    driver.manager.drain()
    assert driver.manager.snapshot().num_waiting == 1
    getattr(driver.manager, end)(["waits"])
    driver.settle()
    assert waits in driver.history.ends and driver.manager.snapshot().num_waiting == 0
    driver.run()
    assert waits not in driver.history.tokens
    driver.assert_empty()


@pytest.mark.parametrize("end", ["finish_requests", "finish_requests_async", "add_abort_req_ids"])
def test_flaw_05_who_was_preempted_can_be_finished_and_every_slot_has_one_owner(name: str, end: str) -> None:
    """Two requests had one slot: the finished one came back from the queue to the place it had held."""
    driver = Driver(make(name, max_num_seqs=2))
    for i in range(2):
        driver.add(f"r{i}", prompt_of(i, 5), max_tokens=12)
    driver.step()
    driver.manager.preempted_all()
    getattr(driver.manager, end)(["r0"])
    for i in range(2, 5):
        driver.add(f"r{i}", prompt_of(i, 5), max_tokens=12)
    while driver.manager.door.num_inside:
        batch = driver.launch()
        assert batch is not None and len(set(batch.slots.tolist())) == len(batch)
        driver.complete(batch)
        driver.manager._core.audit()
    first, *others = sorted(driver.history.tokens)
    assert driver.history.tokens[first] == answer_to(prompt_of(0, 5), 1), "nothing after its end"
    assert [driver.history.tokens[uid] for uid in others] == [answer_to(prompt_of(i, 5), 12) for i in range(1, 5)]
    driver.assert_empty()


# -- 6: storage and hashing on the scheduling thread -------------------------------------------------------------


def test_flaw_06_the_core_neither_stores_nor_hashes() -> None:
    """Whatever could be slow is not even imported there: files, sockets, threads, clocks, digests."""
    slow = {"hashlib", "zlib", "io", "os", "pathlib", "pickle", "socket", "threading", "time", "urllib", "torch"}
    for folder in ("scheduler", "kvcache"):
        for path in (CORE / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not slow & {name.split(".")[0] for name in names}, path
                assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("open", "hash")), path


def test_flaw_06_a_job_that_hangs_holds_up_no_other_request(name: str) -> None:
    """Preparing a request is done behind the writer."""
    let_go, threads = threading.Event(), set()

    def prepare(request: Request) -> Prepared:
        threads.add(threading.current_thread().name)
        let_go.wait(SOON)
        return Prepared([1, 2, 3])

    with running(name, preprocess=prepare) as it:
        image = it.add("image", (), preprocess=b"png")
        assert comes(lambda: threads)
        for i in range(3):
            uid = it.add(f"r{i}")
            assert comes(lambda: uid in it.history.ends), "held up by a job"  # noqa: B023 - asked at once
        assert image not in it.history.ends
        let_go.set()
        it.history.wait_for([image])
        assert it.history.tokens[image] == answer_to([1, 2, 3], 4)
        assert not threads & {"headway-writer", threading.current_thread().name}


def test_flaw_06_kv_on_its_way_holds_up_no_other_request(name: str) -> None:
    """Sending is handed out and reported; the slot is free meanwhile, the blocks are the sender's."""
    sendings: list[Sending] = []
    with running(name, role=Role.PREFILL, max_num_seqs=1, on_sending=sendings.append) as it:
        request = a_request(it.manager, "p")
        assert it.manager.preallocate_resource_in_p(request, timeout=SOON) is not None
        it.manager.add_request_in_p(["p"])
        assert comes(lambda: sendings)
        for i in range(3):
            it.history.wait_for([it.add(f"r{i}", prompt_of(i, 9))])
        assert request.uid not in it.history.ends
        it.manager.send_done(request.uid)
        it.history.wait_for([request.uid])


# -- 7: query ids that collide, results that are kept for ever ---------------------------------------------------


def test_flaw_07_no_two_questions_have_one_reply_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with a clock that stands still, nor when what asked before is gone and its memory is used again."""
    manager = make("v2")
    monkeypatch.setattr(time, "monotonic", lambda: 1.0)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    replies = []
    for _ in range(1000):
        reply, _cell = manager._desk.open()
        del _cell
        replies.append(reply)
        manager._desk.forget(reply)
    assert len(set(replies)) == 1000


@pytest.mark.parametrize("query", QUERIES)
def test_flaw_07_nothing_is_kept_for_who_has_left(query: str) -> None:
    """Neither before the loop comes to the question nor after."""
    manager = make("v2", role=role_for(query))
    for _ in range(20):
        with pytest.raises(TimeoutError):
            QUERIES[query](manager, 1e-3)
        manager.resume()
        assert len(manager._desk) == 0
    manager.drain()
    assert not manager.take_effects()
    assert (len(manager._desk), manager.door.num_inside, manager.snapshot().num_reserved) == (0, 0, 0)


def test_flaw_07_an_answer_that_no_caller_hears_is_gone() -> None:
    """It was claimed in time; then its caller was interrupted."""

    class Value:
        pass

    manager, answers = make("v2"), []

    def answers_late(query: Any, now: float) -> Value:
        del now
        manager._desk.forget(query.reply)
        answer = Value()
        answers.append(weakref.ref(answer))
        return answer

    handle(manager, "GetProgress", answers_late)
    assert isinstance(Asked(lambda: manager.progress("a", SOON)).outcome(manager.drain), QueryError)
    assert [answer() for answer in answers] == [None]


# -- 8: what changes state past the queue ------------------------------------------------------------------------


class OutOfReach:
    """Stands where the core should be."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} of the core was touched from outside")


@pytest.mark.parametrize("what", [*COMMANDS, *QUERIES, *READS])
def test_flaw_08_nothing_that_a_caller_does_touches_the_core(what: str) -> None:
    """Nor do reads: they see the last snapshot. Preempt-all, clear, reset and pause are messages like any other."""
    driver = Driver(make("v2"))
    driver.add("a", max_tokens=20)
    driver.step()
    core, driver.manager._core = driver.manager._core, OutOfReach()  # type: ignore[assignment]
    if what in QUERIES:  # no thread is there to answer
        assert isinstance(Asked(lambda: QUERIES[what](driver.manager, 1e-3)).outcome(), TimeoutError)
    else:
        {**COMMANDS, **READS}[what](driver.manager)
    driver.manager._core = core
    driver.manager.resume()
    driver.run()
    driver.assert_empty()


def test_flaw_08_what_was_queued_before_a_clear_ends_and_does_not_come_back(driver: Driver) -> None:
    """Queued additions reappeared after it."""
    before = [driver.add(f"r{i}", prompt_of(i, 5)) for i in range(6)]
    driver.manager.clear_data()
    after = [driver.add(f"s{i}", prompt_of(i, 5)) for i in range(2)]
    driver.settle()
    assert driver.history.reasons(before) == [FinishReason.ABORT] * 6
    assert set(driver.history.ends) == set(before)
    driver.run()
    assert driver.history.reasons(after) == [FinishReason.LENGTH] * 2
    assert set(driver.history.tokens) == set(after)
    driver.assert_empty()


def test_flaw_08_a_clear_during_a_step_leaves_nothing_of_it(driver: Driver) -> None:
    """What the step still brings belongs to no request, and neither what it computed nor what was cached is found."""
    prompt = prompt_of(1, 20)
    driver.add("cached", prompt, max_tokens=1)
    driver.run()
    before = driver.add("before", prompt, max_tokens=20)
    batch = driver.launch()
    assert batch is not None
    driver.manager.clear_data()
    after = driver.add("after", prompt)
    driver.settle()
    driver.complete(batch)
    driver.run()
    assert before not in driver.history.tokens
    assert driver.history.started[after] == 0
    assert driver.history.tokens[after] == answer_to(prompt, 4)
    driver.assert_empty()


def test_flaw_08_the_configuration_cannot_be_changed_under_way(driver: Driver) -> None:
    for field in dataclasses.fields(driver.manager.config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(driver.manager.config, field.name, 1)
    with pytest.raises(AttributeError):
        driver.manager.snapshot().num_running = 3  # type: ignore[misc]


# -- 9: counts that are stale ------------------------------------------------------------------------------------


def test_flaw_09_what_was_handed_in_counts_before_it_is_applied(driver: Driver) -> None:
    """Else a caller that fetches work for the free slots fetches too much."""
    for i in range(6):
        assert driver.manager.available_batch() == max(0, 4 - i)
        driver.add(f"r{i}")
        assert driver.manager.info()["num_inside"] == i + 1
    driver.run()
    assert driver.manager.available_batch() == 4


def test_flaw_09_the_intake_is_bounded_also_while_nothing_is_drained(name: str) -> None:
    driver = Driver(make(name, max_waiting=3))
    for i in range(7):
        driver.add(f"r{i}")
    with pytest.raises(QueueFullError, match="7 requests inside"):
        driver.add("one too many")
    driver.run()
    assert len(driver.history.ends) == 7
    driver.assert_empty()


def test_flaw_09_what_has_ended_counts_no_more(driver: Driver) -> None:
    driver.add("a")
    driver.add("b")
    driver.manager.add_abort_req_ids(["a"])
    driver.settle()
    assert driver.manager.available_batch() == 3


# -- 10: payloads that stay shared, and no shutdown --------------------------------------------------------------


def test_flaw_10_what_was_handed_in_is_the_callers_no_more() -> None:
    """Lists, arrays and dicts may be changed as soon as the call is back."""
    driver = Driver(make("v2"))
    prompt, bias, stops, ids = np.array([1, 2, 3], np.int32), {5: 1.0}, [7], ["a"]
    sampling = SamplingParams(max_tokens=4, logit_bias=bias, stop_token_ids=stops)  # type: ignore[arg-type]
    request = make_request(driver.manager, "a", prompt, sampling)
    driver.manager.add_request(request)
    other = driver.add("b")
    driver.manager.finish_requests(ids)
    uids = [request.uid]
    driver.manager.add_abort_req_ids(uids)
    prompt[:], ids[:], uids[:], stops[:] = 9, ["b"], [other], [9]
    bias[6] = 1.0
    assert request.prompt.tolist() == [1, 2, 3] and not request.prompt.flags.writeable
    assert request.sampling.logit_bias == {5: 1.0} and request.stop_token_ids == (7,)
    driver.run()
    assert driver.history.reasons([request.uid, other]) == [FinishReason.STOP, FinishReason.LENGTH]


def kinds_of(union: Any) -> Iterator[type]:
    for kind in get_args(union):
        if isinstance(kind, UnionType):
            yield from kinds_of(kind)
        else:
            yield kind


@pytest.mark.parametrize("kind", list(kinds_of(Message)), ids=lambda kind: kind.__name__)
def test_flaw_10_no_message_can_be_changed(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for field in dataclasses.fields(kind):
        assert not str(field.type).startswith(("list", "dict", "set")), field.name


def test_flaw_10_a_shutdown_ends_the_requests_inside_and_fails_the_callers_that_wait(name: str) -> None:
    """The original abandoned what was queued, and the callers that waited."""
    driver = Driver(make(name, max_num_seqs=1))
    manager = driver.manager
    uids = [driver.add("runs", max_tokens=20)]
    batch = driver.launch()
    assert batch is not None
    uids += [driver.add("waits")]
    manager.drain()
    asked = Asked(lambda: manager.wait_worker_inflight_requests_finish(1e6))
    assert comes(lambda: len(manager._desk))
    uids += [driver.add("is on its way")]
    driver.history.take(manager.close(FinishReason.ABORT))
    assert driver.history.reasons(uids) == [FinishReason.ABORT] * 3
    assert isinstance(asked.outcome(), EngineDeadError)
    assert manager.door.num_inside == 0


@pytest.mark.parametrize("what", [*COMMANDS, *QUERIES])
def test_flaw_10_after_a_shutdown_the_sender_is_told(name: str, what: str) -> None:
    manager = make(name)
    manager.close(FinishReason.ERROR, "the device is gone")
    with pytest.raises(EngineDeadError, match="the device is gone"):
        QUERIES[what](manager, SOON) if what in QUERIES else COMMANDS[what](manager)


# -- 11: a pass that costs O(running + blocks) even when nothing happens -----------------------------------------


def test_flaw_11_a_step_does_not_walk_over_the_requests() -> None:
    """Every request decodes a token in the middle of a block: vector operations, whose number is fixed."""

    def cost(num_running: int) -> int:
        driver = busy(num_running)
        batch = None

        def schedule() -> None:
            nonlocal batch
            batch = driver.launch()

        taken = instructions(schedule)
        assert batch is not None and batch.num_decodes == num_running
        result = driver.result(batch)
        taken += instructions(lambda: driver.manager.update(result))
        assert driver.manager.snapshot().num_generation_tokens == 4 * num_running
        return taken

    few, many = cost(64), cost(1024)
    assert abs(many - few) <= 0.02 * few


def test_flaw_11_nor_over_the_blocks_or_slots_when_nothing_happens() -> None:
    """An idle pass, and the metrics, cost the same with whatever pool and however many slots."""

    def cost(num_seqs: int, num_blocks: int) -> list[int]:
        driver = Driver(make("v2", max_num_seqs=num_seqs, max_num_batched_tokens=2048, num_blocks=num_blocks))
        for i in range(3):
            driver.add(f"r{i}", prompt_of(i, 20))
        driver.run()
        manager = driver.manager
        return [instructions(act) for act in (manager.schedule, manager.drain, manager.snapshot, manager.info)]

    assert cost(4, 65) == cost(1024, 16385)


def test_flaw_11_a_snapshot_costs_the_same_however_many_run() -> None:
    few, many = busy(64), busy(1024)
    assert instructions(few.manager._core.snapshot) == instructions(many.manager._core.snapshot)
