"""All three managers: one surface, and what every caller may rely on whichever it is."""

from __future__ import annotations

import inspect
import time

import pytest

from headway.config import Role
from headway.errors import DuplicateRequestError, QueueFullError, RequestError
from headway.managers import MANAGERS, Manager
from headway.request import FinishReason
from headway.sampling import SamplingParams
from headway.scheduler import Effects, Snapshot, StepResult
from tests.managers.driving import ALL, Driver, answer_to, every_manager, hand_made, make, make_request, prompt_of

PUBLIC = [name for name, _ in inspect.getmembers(Manager, inspect.isfunction) if not name.startswith("_")]


# -- one surface -------------------------------------------------------------------------------------------------


def test_the_surface_has_the_names_its_users_know() -> None:
    assert {
        "add",
        "finish",
        "abort",
        "num_free_slots",
        "snapshot",
        "schedule",
        "prefill_schedule",
        "update",
    } <= set(PUBLIC)


@pytest.mark.parametrize("method", PUBLIC)
def test_every_method_has_one_signature_and_is_documented(method: str) -> None:
    """The base says what a method does; a manager may say more, but cannot take more or less."""
    assert inspect.getdoc(getattr(Manager, method))
    signatures = {str(inspect.signature(getattr(kind, method))) for kind in (Manager, *MANAGERS.values())}
    assert len(signatures) == 1


@every_manager
def test_no_manager_adds_to_the_surface(name: str) -> None:
    kind = type(make(name))
    assert kind.__doc__
    assert {member for member in dir(kind) if not member.startswith("_")} == {*PUBLIC, "allocation"}


# -- counts and snapshots ----------------------------------------------------------------------------------------


def test_num_free_slots_counts_what_was_accepted_before_anything_is_applied(driver: Driver) -> None:
    manager = driver.manager
    assert manager.num_free_slots() == 4
    for i in range(6):
        driver.add(f"r{i}")
        assert manager.num_free_slots() == max(0, 3 - i)
    driver.run()
    assert manager.num_free_slots() == 4


def test_num_free_slots_counts_what_was_ended_once_that_is_applied(driver: Driver) -> None:
    driver.add("a")
    driver.add("b")
    driver.manager.abort(["a"])
    driver.settle()
    assert driver.manager.num_free_slots() == 3


def test_a_snapshot_never_changes(driver: Driver) -> None:
    before = driver.manager.snapshot()
    assert before == Snapshot(num_slots=4, num_blocks_total=128, num_blocks_free=128)
    driver.add(max_tokens=8)
    driver.step()
    assert before == Snapshot(num_slots=4, num_blocks_total=128, num_blocks_free=128)
    assert driver.manager.snapshot() != before
    with pytest.raises(AttributeError):
        before.num_running = 3  # type: ignore[misc]


def test_every_snapshot_is_consistent_in_itself(driver: Driver) -> None:
    for i in range(9):
        driver.add(f"r{i}", prompt_of(i, 5 + i), max_tokens=3 + i)
    last = driver.manager.snapshot()
    while driver.manager.door.num_inside:
        for act in (driver.launch, driver.settle):
            batch = act()
            snapshot = driver.manager.snapshot()
            assert snapshot.num_running + snapshot.num_waiting == (
                snapshot.num_requests_added - snapshot.num_requests_ended
            )
            assert snapshot.num_running <= snapshot.num_slots == 4
            assert 0 <= snapshot.num_blocks_free + snapshot.num_blocks_evictable <= snapshot.num_blocks_total
            assert 0.0 <= snapshot.kv_cache_usage <= 1.0
            assert snapshot.step_id >= last.step_id
            assert snapshot.num_generation_tokens >= last.num_generation_tokens
            if batch is not None:
                assert snapshot.num_in_flight == 1
                driver.complete(batch)
                assert driver.manager.snapshot().num_in_flight == 0
            last = snapshot
    end = driver.manager.snapshot()
    assert (end.num_requests_added, end.num_requests_ended, end.has_work) == (9, 9, False)
    assert end.num_generation_tokens == sum(3 + i for i in range(9))


def test_applying_a_command_publishes_what_it_changed(driver: Driver) -> None:
    driver.add()
    driver.manager.drain()
    assert driver.manager.snapshot().num_waiting == 1
    driver.manager.abort(["a"])
    driver.manager.drain()
    assert driver.manager.snapshot().num_waiting == 0


# -- refusals ----------------------------------------------------------------------------------------------------


def test_a_refused_request_leaves_no_trace(name: str) -> None:
    driver = Driver(make(name, max_waiting=1))
    uids = [driver.add(f"r{i}") for i in range(5)]
    with pytest.raises(QueueFullError):
        driver.add("r5")
    with pytest.raises(RequestError):
        driver.add("r6", [])
    driver.run()
    with pytest.raises(RequestError):
        driver.add("r7", [1] * 64)
    assert set(driver.history.ends) == set(uids)
    assert driver.manager.snapshot().num_requests_added == 5
    driver.assert_empty()


def test_a_duplicate_is_refused_and_the_first_goes_on(driver: Driver) -> None:
    uid = driver.add("a", max_tokens=3)
    driver.step()
    with pytest.raises(DuplicateRequestError, match="'a'"):
        driver.add("a")
    driver.run()
    assert driver.history.tokens[uid] == answer_to([1, 2, 3], 3)
    again = driver.add("a", max_tokens=2)
    driver.run()
    assert driver.history.reasons([uid, again]) == [FinishReason.LENGTH] * 2


@pytest.mark.parametrize("second_id", ["a", "b"])
def test_a_uid_handed_in_twice_harms_no_request(driver: Driver, second_id: str) -> None:
    manager = driver.manager
    manager.add(hand_made(7, "a"))
    with pytest.raises(DuplicateRequestError):
        manager.add(hand_made(7, second_id))
    driver.run()
    assert driver.history.tokens[7] == answer_to([1, 2, 3], 4)
    driver.assert_empty()


def test_a_request_that_the_core_refuses_ends_with_an_error(driver: Driver) -> None:
    """The door lets none such in; a request made by hand may be one."""
    driver.manager.add(hand_made(7, "a", max_tokens=1000))
    other = driver.add("b")
    driver.run()
    assert driver.history.ends[7].reason is FinishReason.ERROR
    assert "max_model_len (64)" in str(driver.history.ends[7].error)
    assert driver.history.ends[other].reason is FinishReason.LENGTH
    driver.assert_empty()


# -- the passes and the round trip -------------------------------------------------------------------------------


@every_manager
def test_many_requests_get_the_answers_they_should(driver: Driver) -> None:
    prompts = {
        driver.add(f"r{i}", prompt_of(i, 1 + 6 * i), max_tokens=1 + i): prompt_of(i, 1 + 6 * i) for i in range(9)
    }
    driver.run()
    for i, (uid, prompt) in enumerate(prompts.items()):
        assert driver.history.tokens[uid] == answer_to(prompt, 1 + i)
        assert driver.history.ends[uid].reason is FinishReason.LENGTH
        assert driver.history.ends[uid].request_id == f"r{i}"
    assert set(driver.history.started) == set(prompts)
    driver.assert_empty()


def test_a_stop_token_ends_a_request(name: str) -> None:
    prompt = prompt_of(0, 6)
    stop = answer_to(prompt, 3)[2]
    driver = Driver(make(name, eos=(stop,)))
    stopped = driver.add("a", prompt, max_tokens=20)
    ignoring = driver.add("b", prompt, max_tokens=6, ignore_eos=True)
    patient = driver.add("c", prompt, max_tokens=6, min_tokens=4)
    driver.run()
    assert driver.history.tokens[stopped] == answer_to(prompt, 3)
    assert driver.history.ends[stopped].reason is FinishReason.STOP
    assert driver.history.ends[stopped].stop_token == stop
    assert driver.history.reasons([ignoring, patient]) == [FinishReason.LENGTH] * 2


def test_update_returns_all_that_came_about_since_the_last_look(driver: Driver) -> None:
    driver.add("a", max_tokens=2)
    driver.add("b")
    batch = driver.launch()
    assert batch is not None
    driver.manager.abort(["b"])
    driver.manager.drain()
    effects = driver.manager.update(driver.result(batch))
    assert [end.request_id for end in effects.ended] == ["b"]
    assert [outputs.tokens.tolist() for outputs in effects.tokens] == [answer_to([1, 2, 3], 1)]
    assert not driver.manager.take_effects()


def test_a_posted_result_is_applied_like_an_update(driver: Driver) -> None:
    uid = driver.add(max_tokens=2)
    while driver.manager.door.num_inside:
        batch = driver.launch()
        assert batch is not None
        driver.manager.post_result(driver.result(batch))
        driver.settle()
    assert driver.history.tokens[uid] == answer_to([1, 2, 3], 2)


def test_a_result_that_is_unknown_or_told_twice_changes_nothing(driver: Driver) -> None:
    uid = driver.add(max_tokens=3)
    batch = driver.launch()
    assert batch is not None
    result = driver.result(batch)
    driver.history.take(driver.manager.update(result))
    before = driver.manager.snapshot()
    assert not driver.manager.update(result)
    assert not driver.manager.update(StepResult(99, result.tokens))
    assert driver.manager.snapshot() == before
    driver.run()
    assert driver.history.tokens[uid] == answer_to([1, 2, 3], 3)


def test_the_loop_is_woken_by_what_was_handed_in(driver: Driver) -> None:
    """`wait` returns at once when there is something to do, else after its timeout."""
    driver.manager.wait(0.0)
    for tell in (lambda: driver.add("a"), lambda: driver.manager.abort(["a"])):
        tell()
        driver.manager.wait(1e9)
        driver.settle()
    began = time.monotonic()
    driver.manager.wait(0.02)
    assert time.monotonic() - began >= 0.019


@every_manager
@pytest.mark.parametrize("role", [Role.MIXED, Role.PREFILL])
def test_every_manager_has_a_prefill_pass(name: str, role: Role) -> None:
    """In the prefill role it does all the work: prompt and one token."""
    driver = Driver(make(name, role=role))
    driver.next_pass = driver.manager.prefill_schedule
    uids = [driver.add(f"r{i}", prompt_of(i, 20), max_tokens=1) for i in range(6)]
    if role is Role.MIXED and name != "v0":
        assert driver.step() is None  # it admits no request: a mixed engine does that in `schedule`
        driver.next_pass = driver.manager.schedule
    driver.run()
    assert [driver.history.tokens[uid] for uid in uids] == [answer_to(prompt_of(i, 20), 1) for i in range(6)]
    driver.assert_empty()


def test_v0_makes_no_difference_between_its_passes() -> None:
    batches = []
    for method in ("schedule", "prefill_schedule"):
        driver = Driver(make("v0"))
        driver.next_pass = getattr(driver.manager, method)
        for i in range(6):
            driver.add(f"r{i}", prompt_of(i, 30), max_tokens=5)
        taken = []
        while driver.manager.door.num_inside:
            batch = driver.step()
            assert batch is not None
            taken.append((batch.num_decodes, batch.slots.tolist(), batch.num_new_tokens.tolist()))
        batches.append(taken)
    assert batches[0] == batches[1]
    assert any(num_decodes for num_decodes, _, _ in batches[0])


# -- a small pool ------------------------------------------------------------------------------------------------


@every_manager
@pytest.mark.parametrize("caching", [True, False])
def test_a_small_pool_preempts_under_dynamic_allocation_and_queues_under_static(name: str, caching: bool) -> None:
    """The answers are the same."""
    driver = Driver(make(name, num_blocks=17, enable_prefix_caching=caching))  # 16 blocks: one longest request
    prompts = [prompt_of(i, 6) for i in range(8)]
    uids = [driver.add(f"r{i}", prompt, max_tokens=30) for i, prompt in enumerate(prompts)]
    most_running = 0
    while driver.manager.door.num_inside:
        driver.step()
        most_running = max(most_running, driver.manager.snapshot().num_running)
    preemptions = driver.manager.snapshot().num_preemptions
    if name == "v0":
        assert (preemptions, most_running) == (0, 1)  # 9 blocks each
    else:
        assert preemptions > 0 and most_running > 1
    assert [driver.history.tokens[uid] for uid in uids] == [answer_to(prompt, 30) for prompt in prompts]
    assert set(driver.history.started) == set(uids)
    driver.assert_empty()


def test_effects_are_handed_out_once(driver: Driver) -> None:
    driver.add()
    driver.manager.abort(["a"])
    driver.manager.drain()
    assert len(driver.manager.take_effects().ended) == 1
    assert driver.manager.take_effects() == Effects()


def test_all_names_are_covered() -> None:
    assert ALL == ("v0", "v1", "v2")


def test_make_request_checks_and_hands_nothing_in(driver: Driver) -> None:
    make_request(driver.manager, "a", [1, 2], SamplingParams())
    assert driver.manager.num_free_slots() == 4
    with pytest.raises(RequestError, match="token id 32000; ids are integers from 0 to 31999"):
        make_request(driver.manager, "a", [32000], SamplingParams())
