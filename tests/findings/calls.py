"""Everything that a caller can do, one way of doing it each: on behalf of request "a", whether it is there or not."""

from __future__ import annotations

from collections.abc import Callable

from headway.config import Role
from headway.managers import Manager
from headway.request import Request
from headway.sampling import SamplingParams
from tests.managers.driving import make_request


def a_request(manager: Manager, request_id: str = "new") -> Request:
    """A small one that is not handed in."""
    return make_request(manager, request_id, [1, 2, 3], SamplingParams(max_tokens=4))


COMMANDS: dict[str, Callable[[Manager], object]] = {
    "add_request": lambda manager: manager.add_request(a_request(manager)),
    "finish_requests": lambda manager: manager.finish_requests(["a"]),
    "finish_requests_async": lambda manager: manager.finish_requests_async(["a"]),
    "add_abort_req_ids": lambda manager: manager.add_abort_req_ids(["a"]),
    "reschedule_preempt_task": lambda manager: manager.reschedule_preempt_task(["a"]),
    "recycle_abort_task": lambda manager: manager.recycle_abort_task(["a"]),
    "cache_output_tokens": lambda manager: manager.cache_output_tokens(["a"]),
    "add_request_in_p": lambda manager: manager.add_request_in_p(["a"]),
    "add_prefilled_request": lambda manager: manager.add_prefilled_request("a", 7),
    "pre_recycle_resource": lambda manager: manager.pre_recycle_resource(["a"]),
    "preempted_all": lambda manager: manager.preempted_all(),
    "clear_data": lambda manager: manager.clear_data(),
    "resume": lambda manager: manager.resume(),
}

# Calls for which nothing is to be done. They reach no mailbox.
IDLE = {"reschedule_preempt_task", "recycle_abort_task"}

# What the original's calls are made of, one plain verb per deed; tested in tests/managers.
PLAIN_VERBS = {
    "add",
    "finish",
    "abort",
    "publish_output",
    "reserve_prefill",
    "start_prefill",
    "reserve_decode",
    "start_decode",
    "drop_reservations",
    "preempt_all",
    "hold_admissions",
    "lift_hold",
    "clear",
    "await_steps",
    "num_free_slots",
}

# Whatever waits for an answer; the second argument is the timeout.
QUERIES: dict[str, Callable[[Manager, float], object]] = {
    "preallocate_resource_in_p": lambda manager, timeout: manager.preallocate_resource_in_p(
        a_request(manager), timeout
    ),
    "preallocate_resource_in_d": lambda manager, timeout: manager.preallocate_resource_in_d(
        a_request(manager), timeout
    ),
    "has_resource_for_prefilled_req": lambda manager, timeout: manager.has_resource_for_prefilled_req(
        a_request(manager), timeout
    ),
    "consume_lease": lambda manager, timeout: manager.consume_lease(1, 0, timeout),
    "progress": lambda manager, timeout: manager.progress("a", timeout),
    "audit": lambda manager, timeout: manager.audit(timeout),
    "wait_worker_inflight_requests_finish": lambda manager, timeout: manager.wait_worker_inflight_requests_finish(
        timeout
    ),
    "reset_prefix_cache": lambda manager, timeout: manager.reset_prefix_cache(timeout),
    "pause": lambda manager, timeout: manager.pause(timeout=timeout),
}

READS: dict[str, Callable[[Manager], object]] = {
    "available_batch": lambda manager: manager.available_batch(),
    "get_real_bsz": lambda manager: manager.get_real_bsz(),
    "info": lambda manager: manager.info(),
    "snapshot": lambda manager: manager.snapshot(),
}


def role_for(query: str) -> Role:
    """An engine that does not refuse this query because of its role."""
    return Role.PREFILL if query == "preallocate_resource_in_p" else Role.DECODE
