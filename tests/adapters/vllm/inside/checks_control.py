"""Pauses, resets, aborts."""

from __future__ import annotations

from engine_core import EngineCore
from engines import Shape, make_request, make_scheduler
from vllm.v1.core.sched.interface import PauseState

PROMPT = [3 + i % 60 for i in range(40)]


def _core(**shape: object) -> EngineCore:
    made = Shape(**shape)  # type: ignore[arg-type]
    return EngineCore(make_scheduler(made), made)


def check_a_pause_of_new_requests_lets_running_ones_go_on() -> None:
    core = _core()
    core.add(make_request("runs", PROMPT, max_tokens=20, ignore_eos=True))
    core.step()
    core.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    core.add(make_request("waits", PROMPT, max_tokens=2, ignore_eos=True))
    core.run()
    assert (core.answers["runs"].reason, core.answers["waits"].tokens) == ("length", []), core.answers
    assert core.scheduler.get_num_unfinished_requests() == 0, "the engine would step for requests that must wait"
    core.scheduler.set_pause_state(PauseState.UNPAUSED)
    core.run()
    assert core.answers["waits"].reason == "length", core.answers


def check_a_pause_of_all_requests_computes_nothing_and_ends_nothing() -> None:
    for asynchronous in (False, True):
        core = _core(asynchronous=asynchronous)
        core.add(make_request("runs", PROMPT, max_tokens=20, ignore_eos=True))
        core.add(make_request("gone", PROMPT, max_tokens=20, ignore_eos=True))
        for _ in range(4):
            core.step()
        core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
        core.run()
        computed = core.worker.num_computed_tokens
        core.abort(["gone"])
        core.run()  # the worker is told of the abort
        assert core.worker.num_computed_tokens == computed, "something was computed"
        core.scheduler.set_pause_state(PauseState.UNPAUSED)
        core.run()
        assert (core.answers["runs"].reason, len(core.answers["runs"].tokens)) == ("length", 20), core.answers


def check_a_refused_request_is_answered_in_a_pause() -> None:
    core = _core()
    core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    core.add(make_request("bad", [], max_tokens=1))
    core.run()
    assert core.answers["bad"].reason == "error", core.answers


def check_after_a_reset_nothing_is_found_not_even_what_runs() -> None:
    for preempts in (False, True):
        core = _core()
        core.add(make_request("runs", PROMPT, max_tokens=30, ignore_eos=True))
        core.step()
        assert core.scheduler.reset_prefix_cache(reset_running_requests=preempts) is True
        core.add(make_request("later", PROMPT, max_tokens=1, ignore_eos=True))
        core.run()
        hits = core.answers["later"].prefill.num_cached_tokens
        assert preempts or hits == 0, f"{hits} tokens of before the reset were found"
        assert len(core.answers["runs"].tokens) == 30, core.answers["runs"]


def check_all_requests_can_be_aborted_at_once() -> None:
    core = _core(asynchronous=True)
    for i in range(20):
        core.add(make_request(f"r{i}", PROMPT, max_tokens=20))
    core.step()
    from vllm.v1.request import RequestStatus

    aborted = core.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    assert len(aborted) == 20 and all(request.is_finished() for request in aborted)
    core.run()
    assert core.worker.num_known == 0 and core.scheduler.get_kv_cache_usage() == 0
