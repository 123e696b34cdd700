"""What V1 of the original did, and should not have done: each of it in the core, and where callers see it.

A driver checks by itself, after every message: who owns which slot and block, that every request ends once, and (when
asked) that each answer is the very one that the request would have got alone.
"""

from __future__ import annotations

import itertools
import threading

import pytest

from headway.config import Role
from headway.request import FinishReason, Request, RequestStatus
from headway.sampling import SamplingParams
from headway.scheduler import PreprocessDone
from tests.findings.original import make, running
from tests.findings.witness import SOON, Asked, comes
from tests.managers.driving import Driver as ManagerDriver
from tests.managers.driving import answer_to, make_request, prompt_of
from tests.scheduler.driver import Driver, config

# -- aborts were honoured at a decode visit alone ----------------------------------------------------------------


def waiting() -> tuple[Driver, Request]:
    driver = Driver(config(max_num_seqs=1))
    driver.add(range(40, 46), max_tokens=12)
    driver.step()
    return driver, driver.add(range(9))


def preparing() -> tuple[Driver, Request]:
    driver = Driver(config())
    return driver, driver.add(range(9), preprocess=b"image")


def prefilling() -> tuple[Driver, Request]:
    driver = Driver(config(max_num_batched_tokens=8))
    request = driver.add(range(20))
    driver.step()
    return driver, request


def on_a_prefill_instance() -> tuple[Driver, Request]:
    driver = Driver(config(role=Role.PREFILL, max_num_batched_tokens=8))
    request = driver.add(range(20), max_tokens=1)
    driver.step()
    return driver, request


def reserved_on_p() -> tuple[Driver, Request]:
    driver = Driver(config(role=Role.PREFILL))
    request = driver.make(range(9), max_tokens=1)
    driver.reserve(request)
    return driver, request


def reserved_on_d() -> tuple[Driver, Request]:
    driver = Driver(config(role=Role.DECODE))
    request = driver.make(range(9))
    driver.reserve(request)
    return driver, request


def preempted() -> tuple[Driver, Request]:
    driver = Driver(config(max_num_seqs=1))
    request = driver.add(range(9), max_tokens=12, priority=1)
    driver.step()
    driver.add(range(40, 46), max_tokens=12)
    driver.step()
    return driver, request


def decoding() -> tuple[Driver, Request]:
    driver = Driver(config())
    request = driver.add(range(9), max_tokens=12)
    driver.step()
    return driver, request


PLACES = {
    waiting: RequestStatus.WAITING,
    preparing: RequestStatus.PREPARING,
    prefilling: RequestStatus.RUNNING_PREFILL,
    on_a_prefill_instance: RequestStatus.RUNNING_PREFILL,
    reserved_on_p: RequestStatus.RESERVED,
    reserved_on_d: RequestStatus.RESERVED,
    preempted: RequestStatus.PREEMPTED,
    decoding: RequestStatus.RUNNING_DECODE,
}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_v1_abort_takes_effect_at_once_in_every_state(place: type) -> None:
    """Who waited or prefilled went on regardless, and so did all on P."""
    driver, request = place()
    progress = driver.progress(request)
    assert progress is not None and progress.status is PLACES[place]
    assert [(end.uid, end.reason) for end in driver.abort(request.uid).ended] == [(request.uid, FinishReason.ABORT)]
    assert driver.progress(request) is None
    assert not driver.abort(request.uid).ended, "the second time nothing happens"
    driver.run()
    for other in driver.requests.values():
        if other is not request:
            driver.assert_answered(other)
    driver.assert_empty()


# -- abort markers for unknown ids stayed ------------------------------------------------------------------------


def test_v1_stale_abort_of_an_unknown_id_does_not_hit_a_later_request(name: str) -> None:
    """The marker stayed, and killed it."""
    driver = ManagerDriver(make(name))
    driver.manager.add_abort_req_ids(["a"])
    driver.manager.drain()
    driver.manager.recycle_abort_task(["a"])
    uid = driver.add("a", max_tokens=4)
    driver.run()
    assert driver.history.tokens[uid] == answer_to([1, 2, 3], 4)
    assert driver.history.reasons([uid]) == [FinishReason.LENGTH]


def test_v1_stale_abort_of_an_ended_request_does_not_hit_the_next_of_its_id(name: str) -> None:
    driver = ManagerDriver(make(name))
    first = driver.add("a", max_tokens=1)
    driver.run()
    driver.manager.add_abort_req_ids(["a", first])
    second = driver.add("a", max_tokens=4)
    driver.manager.add_abort_req_ids([first])
    driver.run()
    assert driver.history.reasons([first, second]) == [FinishReason.LENGTH] * 2


# -- unfinished preprocessing sent a request to the tail ---------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_v1_preprocessing_that_is_not_done_costs_no_place_in_the_queue(order: tuple[int, ...]) -> None:
    """Prepared requests are served in the order in which they came, whichever preparation ends first."""
    driver = Driver(config(max_num_seqs=1))
    driver.add(range(40, 46), max_tokens=6)
    driver.step()
    images = [driver.add(range(10 * i, 10 * i + 6), max_tokens=2, preprocess=b"image") for i in range(3)]
    last = driver.add(range(50, 56), max_tokens=2)
    for i in order:
        driver.step()
        driver.prepared(images[i])
    driver.run()
    assert driver.admissions()[1:] == [*(image.uid for image in images), last.uid]
    driver.assert_answered()
    driver.assert_empty()


def test_v1_preprocessing_that_is_not_done_holds_up_no_other_request(name: str) -> None:
    driver = ManagerDriver(make(name, max_num_seqs=1))
    image = make_request(driver.manager, "image", [1, 2], SamplingParams(max_tokens=2), preprocess=b"png")
    driver.manager.add_request(image)
    later = driver.add("later")
    for _ in range(6):
        driver.step()
    driver.settle()
    assert list(driver.history.ends) == [later]
    driver.manager.post_result(PreprocessDone(image.uid))
    driver.run()
    assert driver.history.tokens[image.uid] == answer_to([1, 2], 2)


@pytest.mark.parametrize("how", ["failure", "timeout", "abort"])
def test_v1_preprocessing_that_fails_ends_the_request_with_the_reason(how: str) -> None:
    driver = Driver(config(preprocess_timeout=7.0))
    request = driver.add(range(9), preprocess=b"image")
    match how:
        case "failure":
            driver.tell(PreprocessDone(request.uid, error="no such image"))
            assert driver.ended(request) == "error: its preparation failed: no such image"
        case "timeout":
            driver.wait(7.0)
            assert driver.ended(request) == "error: its preparation took longer than preprocess_timeout"
        case "abort":
            driver.abort(request.uid)
            assert driver.ended(request) == "abort"
    assert not driver.prepared(request), "what comes late is ignored"
    driver.assert_empty()


# -- head-of-line blocking ---------------------------------------------------------------------------------------


def test_v1_head_of_line_a_request_that_fits_passes_one_that_does_not() -> None:
    """Any shortage ended the phase for all requests."""
    driver = Driver(config(num_blocks=9, reserve="none"))
    running_one = driver.add(range(16), max_tokens=4)
    driver.step()
    big, small = driver.add(range(30, 50), max_tokens=2), driver.add(range(60, 64), max_tokens=2)
    driver.step()
    assert driver.admissions() == [running_one.uid, small.uid]
    driver.run()
    assert driver.admissions() == [running_one.uid, small.uid, big.uid]
    driver.assert_answered()
    driver.assert_empty()


def test_v1_head_of_line_who_is_passed_is_passed_a_bounded_number_of_times() -> None:
    """And then served before all who come later, however many small ones there are."""
    driver = Driver(config(num_blocks=9, max_num_seqs=2, reserve="none", max_bypass=3))
    driver.add(range(16), max_tokens=16)
    driver.step()
    big = driver.add(range(30, 50), max_tokens=2)
    small = [driver.add(range(60 + i, 64 + i), max_tokens=2).uid for i in range(12)]
    driver.run()
    admitted = driver.admissions()
    assert admitted.index(big.uid) - 1 == 3
    assert admitted[1:4] == small[:3]
    driver.assert_answered()
    driver.assert_empty()


# -- who was preempted kept its slot -----------------------------------------------------------------------------


def test_v1_preempted_requests_give_up_their_slot_so_that_priorities_can_displace() -> None:
    """All slots are taken: only who gives up its slot makes room."""
    driver = Driver(config(max_num_seqs=2))
    low = [driver.add(range(i, i + 6), max_tokens=12, priority=5) for i in range(2)]
    driver.step()
    urgent = driver.add(range(40, 46), max_tokens=12, priority=0)
    batch = driver.step()
    assert batch is not None and [admission.request.uid for admission in batch.admissions] == [urgent.uid]
    displaced = [driver.progress(request) for request in low]
    (victim,) = [progress for progress in displaced if progress and progress.status is RequestStatus.PREEMPTED]
    assert victim.num_blocks == 0
    driver.run()
    driver.assert_answered()
    driver.assert_empty()


def test_v1_preempted_requests_keep_their_place_in_the_queue() -> None:
    driver = Driver(config(max_num_seqs=1))
    low = driver.add(range(6), max_tokens=12, priority=5)
    driver.step()
    late = driver.add(range(20, 26), max_tokens=4, priority=5)
    urgent = driver.add(range(40, 46), max_tokens=4, priority=0)
    driver.run()
    assert driver.admissions() == [low.uid, urgent.uid, low.uid, late.uid]
    driver.assert_answered()


def test_v1_preempted_requests_do_not_wait_for_the_device_to_say_that_it_stopped(name: str) -> None:
    """`reschedule_preempt_task` is not needed, and a late call disturbs no request."""
    driver = ManagerDriver(make(name))
    uid = driver.add("a", prompt_of(1, 5), max_tokens=9)
    driver.step()
    batch = driver.launch()
    assert batch is not None
    driver.manager.preempted_all()
    driver.settle()
    assert driver.manager.get_real_bsz() == 0
    again = driver.launch()
    assert again is not None and [admission.request.uid for admission in again.admissions] == [uid]
    driver.manager.reschedule_preempt_task(["a"])
    driver.settle()
    driver.complete(batch)
    driver.complete(again)
    driver.run()
    assert driver.history.tokens[uid] == answer_to(prompt_of(1, 5), 9)


# -- a victim on D was thrown out with an error ------------------------------------------------------------------


def test_v1_victim_on_d_a_request_is_computed_again_and_answered() -> None:
    """It was error 502."""
    driver = Driver(config(role=Role.DECODE, num_blocks=9, reserve="none"))
    requests = [driver.make(range(10 * i, 10 * i + 8), max_tokens=16) for i in range(2)]
    for request in requests:
        assert driver.reserve(request) is not None
        driver.start_decode(request)
    driver.run()
    assert driver.core.snapshot().num_preemptions > 0
    driver.assert_answered(*requests)
    driver.assert_empty()


# -- deterministic mode waited for ever --------------------------------------------------------------------------


def test_v1_deterministic_a_configuration_in_which_a_request_could_wait_for_ever_is_refused() -> None:
    """With all other slots decoding there must be budget for one whole chunk."""
    limits = {"max_num_seqs": 8, "max_num_batched_tokens": 16, "deterministic": True}
    with pytest.raises(ValueError, match=r"leaves a prefill 9 tokens.*deterministic_chunk_size \(16\).*for ever"):
        config(**limits)
    config(**{**limits, "deterministic_chunk_size": 9})


@pytest.mark.parametrize("num_others", range(4))
def test_v1_deterministic_a_prompt_gets_on_and_is_cut_in_the_same_places_whatever_else_runs(num_others: int) -> None:
    """Its chunks end at multiples of 8, or with it, also where 3 others leave it 13 of 16 tokens."""
    limits = {"max_num_batched_tokens": 16, "num_blocks": 80, "max_model_len": 64, "reserve": "none"}
    driver = Driver(config(deterministic=True, deterministic_chunk_size=8, **limits))
    for i in range(num_others):
        driver.add(range(10 * i, 10 * i + 3), max_tokens=50)
    driver.step()
    driver.step()
    request = driver.add(range(60, 90), max_tokens=2)
    driver.run()
    driver.assert_answered()
    ends = [
        int(batch.positions[row] + batch.num_new_tokens[row])
        for batch in driver.batches
        for row in range(batch.num_decodes, len(batch))
        if batch.slots[row] == num_others
    ]
    assert request.uid in driver.admissions() and ends[-1] == 30
    assert len(ends) > 1 and not any(end % 8 for end in ends[:-1])


# -- a reservation of D had no timeout ---------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_v1_reservation_that_is_not_taken_up_lapses(role: Role) -> None:
    """Its P had died. Slot and blocks come back by the clock alone."""
    driver = Driver(config(role=role, reservation_timeout=10.0))
    request = driver.make(range(9), max_tokens=1)
    assert driver.reserve(request, timeout=10.0) is not None
    assert driver.core.next_deadline == 10.0
    assert not driver.wait(9.9).ended
    driver.wait(0.1)
    assert driver.ended(request) == "error: its reservation was not taken up in time"
    driver.assert_empty()


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_v1_reservation_lapses_while_nothing_else_happens(name: str, role: Role) -> None:
    """The loop itself sees to it: no new work has to come, and no caller has to ask."""
    with running(name, role=role, reservation_timeout=0.05) as it:
        request = make_request(it.manager, "a", [1, 2, 3], SamplingParams())
        if role is Role.PREFILL:
            assert it.manager.preallocate_resource_in_p(request, timeout=SOON) is not None
        else:
            assert it.manager.preallocate_resource_in_d(request, timeout=SOON) is not None
        assert comes(lambda: request.uid in it.history.ends)
        assert it.history.ends[request.uid].reason is FinishReason.ERROR
        assert comes(lambda: it.manager.snapshot().num_reserved == 0)
        assert it.manager.door.num_inside == 0


def test_v1_reservation_that_is_taken_up_does_not_lapse() -> None:
    driver = Driver(config(role=Role.DECODE))
    request = driver.make(range(9))
    driver.reserve(request, timeout=10.0)
    driver.start_decode(request)
    assert driver.core.next_deadline is None
    driver.wait(100)
    driver.run()
    driver.assert_answered()


# -- has_resource was a look, and another caller acted on it -----------------------------------------------------


def test_v1_has_resource_holds_what_it_promises(name: str) -> None:
    """Two look, there is room for one: one yes. And its caller gets the room, whichever request comes between."""
    with running(name, role=Role.DECODE, max_num_seqs=1, hold_timeout=SOON) as it:
        first, second = (make_request(it.manager, request_id, [1, 2, 3], SamplingParams()) for request_id in "ab")
        assert it.manager.has_resource_for_prefilled_req(first, timeout=SOON)
        assert not it.manager.has_resource_for_prefilled_req(second, timeout=SOON)
        between = it.add("between")
        assert it.manager.snapshot().num_reserved == 1
        it.manager.add_prefilled_request("a", answer_to([1, 2, 3], 1)[0])
        it.history.wait_for([first.uid, between])
        assert it.history.reasons([first.uid]) == [FinishReason.LENGTH]


def test_v1_has_resource_holds_it_for_a_short_time() -> None:
    manager = make("v2", role=Role.DECODE, hold_timeout=0.01, reservation_timeout=3600.0)
    request = make_request(manager, "a", [1, 2, 3], SamplingParams())
    asked = Asked(lambda: manager.has_resource_for_prefilled_req(request, timeout=SOON))
    assert asked.outcome(manager.drain) is True

    def lapsed() -> bool:
        manager.drain()
        return manager.snapshot().num_reserved == 0

    assert comes(lapsed)
    assert [end.reason for end in manager.take_effects().ended] == [FinishReason.ERROR]


# -- D took one request a step, as each question cost one --------------------------------------------------------


def test_v1_d_queries_are_answered_in_one_turn_however_many() -> None:
    """Eight P ask at once; the loop looks once."""
    manager = make("v2", role=Role.DECODE, max_num_seqs=8)
    barrier = threading.Barrier(8)

    def ask(i: int) -> object:
        request = make_request(manager, f"r{i}", prompt_of(i, 5), SamplingParams())
        barrier.wait(SOON)
        return manager.preallocate_resource_in_d(request, timeout=SOON)

    questions = [Asked(lambda i=i: ask(i)) for i in range(8)]  # type: ignore[misc]
    assert comes(lambda: len(manager._mailbox) == 8)  # type: ignore[attr-defined]
    manager.drain()
    reservations = [question.outcome() for question in questions]
    assert sorted(reservation.slot for reservation in reservations) == list(range(8))
    assert manager.snapshot().num_reserved == 8
