"""What the review of the original found: F1 to F4, and the pass that the default manager lacked."""

from __future__ import annotations

import ast
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import headway
from headway.adapters.fastdeploy import OriginalCalls, RequestManager
from headway.config import Role
from headway.errors import EngineDeadError, QueryError
from headway.managers import MANAGERS, Manager
from headway.managers.surface import Surface
from headway.request import FinishReason
from headway.sampling import SamplingParams
from headway.scheduler import Batch, PreprocessDone, SlotTable
from tests.findings.calls import PLAIN_VERBS, QUERIES, role_for
from tests.findings.original import make, running
from tests.findings.witness import SOON, Asked, comes
from tests.managers.driving import ALL, Driver, answer_to, every_manager, make_request, prompt_of

SOURCE = Path(headway.__file__).parent

# -- F1: `event.wait()` without a timeout ------------------------------------------------------------------------


@contextmanager
def another_thread_holds(lock: Any) -> Iterator[None]:
    locked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            locked.set()
            go_on.wait(SOON)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert locked.wait(SOON)
    yield
    go_on.set()
    holder.join(SOON)


def test_F1_the_queries_here_are_all_there_are() -> None:
    """Whatever waits for an answer has a timeout."""
    methods = inspect.getmembers(OriginalCalls, inspect.isfunction)
    with_timeout = {name for name, method in methods if "timeout" in inspect.signature(method).parameters}
    assert {name for name in with_timeout if not name.startswith("_")} - PLAIN_VERBS == set(QUERIES)


@pytest.mark.parametrize("query", QUERIES)
def test_F1_a_query_to_a_loop_that_stands_still_times_out(query: str) -> None:
    """It waited for ever. And what timed out is not carried out later, when the loop goes on."""
    manager = make("v2", role=role_for(query))
    assert isinstance(Asked(lambda: QUERIES[query](manager, 0.01)).outcome(), TimeoutError)
    manager.drain()
    snapshot = manager.snapshot()
    assert (snapshot.num_reserved, snapshot.num_requests_added, manager.door.num_inside) == (0, 0, 0)


@pytest.mark.parametrize("name", ["v1"])
def test_F1_nor_does_the_lock_keep_a_query_for_ever(name: str) -> None:
    manager = make(name)
    with another_thread_holds(manager._lock):  # type: ignore[attr-defined]
        assert isinstance(Asked(lambda: manager.progress("a", 0.01)).outcome(), TimeoutError)
    assert manager.progress("a", SOON) is None


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), None, "1"])
@pytest.mark.parametrize("query", QUERIES)
def test_F1_a_timeout_that_never_comes_is_refused(query: str, timeout: Any) -> None:
    manager = make("v2")
    outcome = Asked(lambda: QUERIES[query](manager, timeout)).outcome()
    assert isinstance(outcome, ValueError) and "timeout" in str(outcome)
    manager.drain()
    assert manager.door.num_inside == 0 and not manager.door.paused


def test_F1_a_query_whose_loop_stops_fails_with_the_reason() -> None:
    """Handed in and never taken: the original left it waiting."""
    manager = make("v2")
    asked = Asked(lambda: manager.progress("a", 1e6))
    assert comes(lambda: len(manager._mailbox))  # type: ignore[attr-defined]
    manager.close(FinishReason.ERROR, "the device is gone")
    outcome = asked.outcome()
    assert isinstance(outcome, EngineDeadError) and "the device is gone" in str(outcome)


def test_F1_a_query_whose_loop_dies_over_it_fails_too() -> None:
    """Taken, claimed, and then the thread that would have answered is no more."""
    manager = make("v2")

    class Died(BaseException):
        pass

    def die(*_: object) -> Any:
        raise Died

    manager._core.ask = die  # type: ignore[assignment, method-assign]
    asked = Asked(lambda: manager.progress("a", SOON / 2))
    assert comes(lambda: len(manager._mailbox))  # type: ignore[attr-defined]
    with pytest.raises(Died):
        manager.drain()
    manager.close(FinishReason.ERROR, "the writer died")
    outcome = asked.outcome()
    assert isinstance(outcome, EngineDeadError) and "the writer died" in str(outcome)


@pytest.mark.parametrize("query", QUERIES)
def test_F1_the_loop_cannot_ask_itself(name: str, query: str) -> None:
    """It would wait for itself: an error at once, whatever the timeout."""
    manager = make(name)

    def loop() -> Any:
        manager.drain()
        return QUERIES[query](manager, 1e6)

    outcome = Asked(loop).outcome()
    assert isinstance(outcome, QueryError) and "thread that has to answer" in str(outcome)
    assert manager.door.num_inside == 0 and not manager.door.paused


# -- F2: the slot is free before the message is applied ----------------------------------------------------------


def test_F2_no_slot_is_freed_on_the_callers_thread() -> None:
    """The original freed the slot where the finish was handed in, and cleared it again when that was applied."""
    driver = Driver(make("v2"))
    uid = driver.add("a", max_tokens=20)
    driver.step()
    state = driver.manager._core._state
    before = (state.slots.num_free_slots(), state.table.generation.tolist(), state.entries[uid].handle)
    for end in (driver.manager.finish_requests, driver.manager.finish_requests_async, driver.manager.add_abort_req_ids):
        end(["a"])
        assert before == (state.slots.num_free_slots(), state.table.generation.tolist(), state.entries[uid].handle)
    driver.settle()
    assert state.slots.num_free_slots() == 4
    driver.assert_empty()


@pytest.mark.parametrize("late", ["finish_requests", "add_abort_req_ids", "recycle_abort_task", "pre_recycle_resource"])
def test_F2_a_late_finish_never_clears_the_slot_of_a_newcomer(name: str, late: str) -> None:
    """There is one slot; whatever is still said of its last owner, by request id or uid, its next owner keeps it."""
    driver = Driver(make(name, max_num_seqs=1))
    old = driver.add("old", prompt_of(1, 5), max_tokens=40)
    driver.step()
    driver.manager.finish_requests(["old"])
    newcomer = driver.add("newcomer", prompt_of(2, 5), max_tokens=6)
    getattr(driver.manager, late)(["old", old])
    batch = driver.launch()
    assert batch is not None and [admission.request.uid for admission in batch.admissions] == [newcomer]
    getattr(driver.manager, late)(["old", old])
    driver.settle()
    driver.complete(batch)
    driver.run()
    assert driver.history.tokens[newcomer] == answer_to(prompt_of(2, 5), 6)
    assert driver.history.reasons([old, newcomer]) == [FinishReason.STOP, FinishReason.LENGTH]
    driver.assert_empty()


@pytest.mark.parametrize("depth", [1, 2])
def test_F2_a_late_result_is_not_the_newcomers(name: str, depth: int) -> None:
    """The step was made for the last owner; its result comes when the slot has been given away."""
    driver = Driver(make(name, max_num_seqs=1))
    old = driver.add("old", prompt_of(1, 5), max_tokens=40)
    for _ in range(depth):  # the first result is that of a prefill chunk, the second that of a decode
        batch = driver.launch()
        assert batch is not None
        late = driver.result(batch)
        if depth == 2 and batch.step_id == 1:
            driver.history.take(driver.manager.update(late))
    driver.manager.finish_requests(["old"])
    newcomer = driver.add("newcomer", prompt_of(2, 5), max_tokens=6)
    first = driver.launch()
    assert first is not None
    driver.history.take(driver.manager.update(late))
    driver.complete(first)
    driver.run()
    assert len(driver.history.tokens.get(old, [])) == depth - 1
    assert driver.history.tokens[newcomer] == answer_to(prompt_of(2, 5), 6)
    driver.assert_empty()


def test_F2_of_32_that_live_none_loses_its_slot_when_8_finish_at_a_time(name: str) -> None:
    """The original: 24 of 32 in eight seconds. Here 8 finish and 8 come during each step."""
    driver = Driver(make(name, max_num_seqs=32, num_blocks=1025))
    prompts = {driver.add(f"r{i}", prompt_of(i, 5), max_tokens=40): i for i in range(32)}
    alive = list(prompts)
    for turn in range(1, 25):
        batch = driver.launch()
        assert batch is not None
        finished, alive = alive[:8], alive[8:]
        driver.manager.finish_requests(finished)
        for i in range(32 + 8 * turn, 40 + 8 * turn):
            uid = driver.add(f"r{i}", prompt_of(i, 5), max_tokens=40)
            prompts[uid] = i
            alive.append(uid)
        driver.manager.finish_requests_async(finished)
        driver.settle()
        driver.complete(batch)
        assert driver.history.reasons(finished) == [FinishReason.STOP] * 8
        assert set(driver.history.ends).isdisjoint(alive)
        driver.manager._core.audit()
    driver.run()
    assert [driver.history.tokens[uid] for uid in alive] == [answer_to(prompt_of(prompts[uid], 5), 40) for uid in alive]
    driver.assert_empty()


def test_F2_a_release_by_a_handle_of_the_past_does_nothing() -> None:
    table = SlotTable(max_num_seqs=2, blocks_per_request=4, block_size=4)
    slots = RequestManager(table)
    old = slots.acquire_slot()
    assert slots.release_slot(old)
    newcomer = slots.acquire_slot()
    assert newcomer.slot == old.slot
    assert not slots.release_slot(old)
    assert (slots.available_batch(), slots.get_available_position()) == (1, 1)
    assert table.owns(*newcomer)


# -- F3: one manager copies another's logic ----------------------------------------------------------------------


def test_F3_no_manager_has_an_operation_of_its_own() -> None:
    """What can be asked or told is written once, for all of them."""
    operations = {name for name in vars(Surface) if not name.startswith("_")} - {"snapshot"}
    for kind in (Manager, *MANAGERS.values()):
        assert not operations & set(vars(kind)), kind


def test_F3_no_manager_looks_into_the_scheduling_state() -> None:
    """So what a message does can only be written in the core, which is the same for all of them."""
    parts = {"entries", "waiting", "occupants", "prefilling", "table", "slots", "pool", "prefix", "deadlines"}
    assert parts <= set(vars(make("v2")._core._state))
    parts |= {"_state", "_moves"}
    for path in (SOURCE / "managers").glob("*.py"):
        used = {name_of(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not used & parts, path


def test_F3_an_add_comes_to_the_same_under_every_manager() -> None:
    """Also one that has to be prepared first: the copy of the original did the one and forgot the other."""

    def story(name: str) -> list[Any]:
        driver = Driver(make(name, max_num_seqs=1))
        manager = driver.manager
        seen: list[Any] = []
        driver.add("first", prompt_of(1, 5), max_tokens=3)
        manager.add_request(make_request(manager, "image", [], SamplingParams(max_tokens=3), preprocess=b"png"))
        driver.add("last", prompt_of(3, 5), max_tokens=3)
        manager.drain()
        effects = manager.take_effects()
        seen.append([request.request_id for request in effects.jobs])
        seen.append((manager.snapshot().num_preparing, manager.snapshot().num_waiting))
        prompt = make_request(manager, "-", prompt_of(2, 5), SamplingParams(), uid=0).prompt
        manager.post_result(PreprocessDone(effects.jobs[0].uid if effects.jobs else -1, prompt))
        for _ in range(20):
            batch = driver.launch()
            if batch is None:
                break
            seen.append([(admission.slot, admission.request.request_id) for admission in batch.admissions])
            driver.complete(batch)
        driver.settle()
        return [*seen, [(end.request_id, end.reason) for end in driver.history.ends.values()]]

    stories = [story(name) for name in ALL]
    assert stories[0] == stories[1] == stories[2]
    assert stories[0][0] == ["image"] and stories[0][-1][1] == ("image", FinishReason.LENGTH)


# -- F4: the same switch is looked at in several places ----------------------------------------------------------


@cache
def all_nodes() -> list[tuple[str, ast.AST]]:
    """The whole package, as (file, node)."""
    return [
        (str(path.relative_to(SOURCE)), node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
    ]


def name_of(node: ast.AST) -> str:
    """Of a variable or an attribute; else empty."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def test_F4_the_switches_are_read_in_one_place() -> None:
    switches = {"ENABLE_V1_KVCACHE_SCHEDULER", "ENABLE_V2_KVCACHE_SCHEDULER"}
    found = [where for where, node in all_nodes() if isinstance(node, ast.Constant) and node.value in switches]
    assert found == ["managers/__init__.py"] * 2


def test_F4_the_choice_is_made_in_one_place() -> None:
    calls = [(where, node) for where, node in all_nodes() if isinstance(node, ast.Call)]
    chosen = [where for where, node in calls if name_of(node.func) == "choose_scheduler"]
    assert chosen == ["engine/engine.py"]


def test_F4_no_code_asks_a_manager_which_one_it_is() -> None:
    kinds = {kind.__name__ for kind in MANAGERS.values()}
    asking = {"isinstance", "issubclass", "type"}
    for where, node in all_nodes():
        if isinstance(node, ast.Call) and name_of(node.func) in asking:
            assert not kinds & {name_of(part) for part in ast.walk(node)}, where


def test_F4_a_switch_turned_while_an_engine_runs_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(name) as it:
        for switch in ("ENABLE_V1_KVCACHE_SCHEDULER", "ENABLE_V2_KVCACHE_SCHEDULER"):
            for value in ("0", "1"):
                monkeypatch.setenv(switch, value)
                uid = it.add(f"{switch}={value}")
                it.manager.finish_requests([uid])
                uids = [uid, it.add(f"{switch}={value} again")]
                it.history.wait_for(uids)
        assert it.engine.failure() is None
        assert isinstance(it.manager, MANAGERS[name])  # type: ignore[index]


@every_manager
def test_F4_recycling_is_one_call_whatever_the_manager(name: str) -> None:
    """The original's token processor chose between two. `finish_requests_async` is only the other name of it."""
    for method in ("finish_requests", "finish_requests_async"):
        driver = Driver(make(name))
        uid = driver.add("a", max_tokens=20)
        driver.step()
        getattr(driver.manager, method)([uid])
        driver.settle()
        assert driver.history.reasons([uid]) == [FinishReason.STOP]
        driver.assert_empty()


# -- prefill_schedule: the default manager had none --------------------------------------------------------------


@every_manager
def test_prefill_schedule_an_engine_with_the_P_role_runs_under_every_manager(name: str) -> None:
    """AttributeError, under the default one."""
    with running(name, role=Role.PREFILL, max_num_batched_tokens=16) as it:
        prompts = [prompt_of(i, 10 + 4 * i) for i in range(8)]
        uids = [it.add(f"r{i}", prompt) for i, prompt in enumerate(prompts)]
        it.history.wait_for(uids)
        assert [it.history.tokens[uid] for uid in uids] == [answer_to(prompt, 1) for prompt in prompts]
        assert it.engine.failure() is None


def test_prefill_schedule_of_the_default_manager_is_schedule() -> None:
    def batches(method: str) -> list[Any]:
        driver = Driver(make("v0"))
        driver.next_pass = getattr(driver.manager, method)
        for i in range(6):
            driver.add(f"r{i}", prompt_of(i, 30), max_tokens=5)
        taken: list[Batch] = []
        while driver.manager.door.num_inside:
            batch = driver.step()
            assert batch is not None
            taken.append(batch)
        return [(batch.num_decodes, batch.slots.tolist(), batch.num_new_tokens.tolist()) for batch in taken]

    assert batches("prefill_schedule") == batches("schedule")
