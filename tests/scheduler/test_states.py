"""Whatever state a request is in, and whatever befalls it: it ends at once or goes on, once, and nothing late hurts.

Each scene brings a request into a state, with a step in flight. Then the deed; then a newcomer, which gets what the
deed set free; then all that can come too late. In the end every request that the deed did not hit has the very answer
that it would have got alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from headway.config import Role
from headway.request import FinishReason, Request, RequestStatus
from headway.scheduler import (
    AbortRequests,
    Clear,
    DropReservations,
    Effects,
    FinishRequests,
    LeasesEnded,
    LeasesRenewed,
    Pause,
    PreprocessDone,
    PublishOutput,
    ReceiveDone,
    Resume,
    SendDone,
    StartDecode,
    StartPrefill,
    StepResult,
)
from tests.scheduler.driver import Driver, config

ABORT, ERROR, STOP = FinishReason.ABORT, FinishReason.ERROR, FinishReason.STOP
OTHER = range(40, 46)  # what the bystander asks


class Scene(NamedTuple):
    driver: Driver
    request: Request


def waiting() -> Scene:
    driver = Driver(config(max_num_seqs=1), depth=2)
    driver.add(OTHER, max_tokens=12)
    driver.launch()
    return Scene(driver, driver.add(range(9), max_tokens=12))


def preparing() -> Scene:
    driver = Driver(config(), depth=2)
    driver.add(OTHER, max_tokens=12)
    driver.launch()
    return Scene(driver, driver.add(range(9), max_tokens=12, preprocess=b"image"))


def prefill() -> Scene:
    """Half of the prompt is computed, more is on the device."""
    driver = Driver(config(max_num_batched_tokens=8), depth=2)
    request = driver.add(range(20), max_tokens=12)
    driver.add(OTHER, max_tokens=12)
    driver.launch()
    driver.answer()
    driver.launch()
    return Scene(driver, request)


def first_token() -> Scene:
    """The whole prompt is on the device; nothing is confirmed."""
    driver = Driver(config(), depth=2)
    request = driver.add(range(9), max_tokens=12)
    driver.add(OTHER, max_tokens=12)
    driver.launch()
    return Scene(driver, request)


def decode() -> Scene:
    driver = Driver(config(), depth=2)
    request = driver.add(range(6), max_tokens=12)
    driver.add(OTHER, max_tokens=12)
    for _ in range(3):
        driver.launch()
        driver.answer()
    driver.launch()  # fills a block
    return Scene(driver, request)


def last_step() -> Scene:
    """The step of its last token is launched: it holds its slot for the result alone."""
    driver = Driver(config(), depth=2)
    request = driver.add(range(9), max_tokens=2)
    driver.add(OTHER, max_tokens=12)
    driver.launch()
    driver.answer()
    driver.launch()
    return Scene(driver, request)


def only_step() -> Scene:
    """The same, of an answer of one token."""
    driver = Driver(config(), depth=2)
    request = driver.add(range(9), max_tokens=1)
    driver.add(OTHER, max_tokens=12)
    driver.launch()
    return Scene(driver, request)


def preempted() -> Scene:
    """Displaced while its step is on the device."""
    driver = Driver(config(max_num_seqs=1), depth=2)
    request = driver.add(range(9), max_tokens=12, priority=1)
    driver.launch()
    driver.answer()
    driver.launch()
    driver.add(OTHER, max_tokens=12)
    driver.launch()
    return Scene(driver, request)


def reserved_in_p() -> Scene:
    driver = Driver(config(role=Role.PREFILL), depth=2)
    driver.add(OTHER, max_tokens=1)
    request = driver.make(range(9), max_tokens=1)
    driver.reserve(request)
    driver.launch()
    return Scene(driver, request)


def reserved_in_d() -> Scene:
    driver = Driver(config(role=Role.DECODE), depth=2)
    request = driver.make(range(9), max_tokens=12)
    driver.reserve(request)
    driver.add(OTHER, max_tokens=12)
    driver.launch()
    return Scene(driver, request)


def sending() -> Scene:
    driver = Driver(config(role=Role.PREFILL), depth=2)
    request = driver.make(range(9), max_tokens=1)
    driver.reserve(request)
    driver.start_prefill(request.uid)
    driver.launch()
    driver.answer()
    driver.add(OTHER, max_tokens=1)
    driver.launch()
    return Scene(driver, request)


def receiving() -> Scene:
    """Its KV is on the way."""
    driver = Driver(config(role=Role.DECODE), depth=2)
    driver.add(OTHER, max_tokens=12)
    driver.launch()
    driver.answer()
    request = driver.pull(range(9), max_tokens=12)
    driver.launch()
    assert request.uid in driver.pulls
    return Scene(driver, request)


SCENES: dict[Callable[[], Scene], RequestStatus] = {
    waiting: RequestStatus.WAITING,
    preparing: RequestStatus.PREPARING,
    prefill: RequestStatus.RUNNING_PREFILL,
    first_token: RequestStatus.RUNNING_DECODE,
    decode: RequestStatus.RUNNING_DECODE,
    last_step: RequestStatus.RUNNING_DECODE,
    only_step: RequestStatus.RUNNING_DECODE,
    preempted: RequestStatus.PREEMPTED,
    reserved_in_p: RequestStatus.RESERVED,
    reserved_in_d: RequestStatus.RESERVED,
    sending: RequestStatus.SENDING,
    receiving: RequestStatus.RECEIVING,
}
RUNNING = {prefill, first_token, decode, last_step, only_step}
RESERVED = {reserved_in_p, reserved_in_d}


class Deed(NamedTuple):
    """What befalls a request. ends: in which scenes it ends the request, and how. twice: whether it can be repeated."""

    do: Callable[[Driver, Request], Effects]
    reason: FinishReason
    ends: set[Callable[[], Scene]]
    twice: bool = True


EVERYWHERE = set(SCENES)
DEEDS = {
    "finish": Deed(lambda d, r: d.finish(r.uid), STOP, EVERYWHERE),
    "abort": Deed(lambda d, r: d.abort(r.uid), ABORT, EVERYWHERE),
    "clear": Deed(lambda d, r: d.tell(Clear()), ABORT, EVERYWHERE),
    "pause, abort": Deed(lambda d, r: d.tell(Pause(abort=True, reset_prefix_cache=False)), ABORT, EVERYWHERE),
    "pause, preempt": Deed(lambda d, r: d.tell(Pause(abort=False, reset_prefix_cache=False)), ABORT, set()),
    "pause, reset": Deed(lambda d, r: d.tell(Pause(abort=False, reset_prefix_cache=True)), ABORT, RESERVED),
    "time": Deed(lambda d, r: d.wait(100), ERROR, {preparing, sending, *RESERVED}),
    "drop": Deed(lambda d, r: d.tell(DropReservations((r.uid,))), ABORT, RESERVED),
    "failed step": Deed(lambda d, r: d.answer(error="boom"), ERROR, RUNNING, twice=False),
    "lost device": Deed(lambda d, r: d.lose_device(), ERROR, {sending, *RUNNING, *RESERVED}),
}


def cases() -> list[object]:
    return [
        pytest.param(scene, deed, id=f"{scene.__name__}-{name}") for scene in SCENES for name, deed in DEEDS.items()
    ]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_the_scenes_are_what_they_say(scene: Callable[[], Scene]) -> None:
    driver, request = scene()
    progress = driver.progress(request)
    assert progress is not None and progress.status is SCENES[scene]
    assert driver.in_flight


@pytest.mark.parametrize(("scene", "deed"), cases())
def test_it_ends_at_once_or_goes_on(scene: Callable[[], Scene], deed: Deed) -> None:
    driver, request = scene()
    flying = list(driver.in_flight)
    effects = deed.do(driver, request)
    hit = {end.uid for end in effects.ended}
    if scene in deed.ends:
        assert [end.reason for end in effects.ended if end.uid == request.uid] == [deed.reason]
    else:
        assert request.uid not in hit
    if deed.twice:
        assert not deed.do(driver, request).ended
    newcomer_gets_what_is_free(driver)
    everything_comes_late(driver, request, flying, over=request.uid in hit)
    go_on_to_the_end(driver)
    driver.assert_answered(*(other for uid, other in driver.requests.items() if uid not in hit))
    driver.assert_empty()


def newcomer_gets_what_is_free(driver: Driver) -> None:
    """Another request moves into the slot and the blocks, and computes there."""
    driver.tell(Resume())
    driver.add(range(20, 33), max_tokens=1 if driver.config.role is Role.PREFILL else 9)
    driver.launch()


def everything_comes_late(driver: Driver, request: Request, flying: list[StepResult], over: bool) -> None:
    """What was in flight, and all that others may still say of a request that is over; first for a wrong one."""
    uid = request.uid
    for result in flying:
        if result in driver.in_flight:
            driver.answer()
        else:  # given up, or failed: said for the second time
            assert not driver.tell(result)
    if not over:
        return
    if uid in driver.stopped:
        assert not driver.receive_done(request, error="too late")  # which frees the blocks, and nothing else
    if uid in driver.history.sent:
        assert not driver.sent(uid)  # which frees the blocks, and nothing else
    for message in (
        PreprocessDone(uid),
        PreprocessDone(uid, error="too late"),
        StartPrefill((uid,)),
        StartDecode(uid, 3),
        DropReservations((uid,)),
        SendDone(uid),
        ReceiveDone(uid, 3),
        ReceiveDone(uid, error="too late"),
        LeasesRenewed((uid, uid)),
        LeasesEnded((uid,)),
        FinishRequests((uid, uid)),
        AbortRequests((uid,)),
        PublishOutput((uid,)),
    ):
        before = driver.core.snapshot()
        assert not driver.tell(message)
        assert driver.core.snapshot() == before
    assert driver.progress(request) is None


def go_on_to_the_end(driver: Driver) -> None:
    """The requests that are prepared, reserved, receiving or sending get on; the steps succeed."""
    driver.connectors_stop()
    for request in list(driver.requests.values()):
        progress = driver.progress(request)
        if progress is None:
            continue
        if progress.status is RequestStatus.PREPARING:
            driver.prepared(request)
        elif progress.status is RequestStatus.RECEIVING:
            driver.received(request)
        elif progress.status is RequestStatus.RESERVED:
            if driver.config.role is Role.PREFILL:
                driver.start_prefill(request.uid)
            else:
                while driver.in_flight:  # its KV comes from outside the stream of steps
                    driver.answer()
                driver.start_decode(request)
    driver.run()
    for uid in driver.history.sent.keys() - driver.history.ends.keys():
        driver.sent(uid)


def test_what_is_said_of_a_request_that_still_runs_but_means_another_state_changes_nothing() -> None:
    driver, request = decode()
    before = driver.progress(request)
    for message in (
        PreprocessDone(request.uid, error="of another life"),
        StartPrefill((request.uid,)),
        StartDecode(request.uid, 3),
        DropReservations((request.uid,)),
        SendDone(request.uid),
    ):
        assert not driver.tell(message)
        assert driver.progress(request) == before
    driver.run()
    driver.assert_answered()


def test_an_abort_behind_its_own_add_in_one_go_leaves_nothing_for_the_device() -> None:
    driver = Driver(config())
    for options in ({}, {"preprocess": b"image"}):
        driver.abort(driver.add([1, 2], **options).uid)
    assert driver.launch() is None
    driver.assert_empty()


def test_one_message_may_name_many_some_of_them_twice_and_some_unknown() -> None:
    driver = Driver(config(max_num_seqs=1))
    one, two, three = (driver.add([i, i + 1], max_tokens=9) for i in range(3))
    driver.step()
    effects = driver.abort(99, three.uid, one.uid, three.uid, 98)
    assert [end.uid for end in effects.ended] == [three.uid, one.uid]
    driver.run()
    driver.assert_answered(two)
    driver.assert_empty()


def test_a_result_of_a_step_that_was_not_launched_changes_nothing() -> None:
    driver, _ = decode()
    before = driver.core.snapshot()
    assert not driver.tell(StepResult(before.step_id + 1, np.zeros(5, dtype=np.int32)))
    assert driver.core.snapshot() == before
    driver.run()
    driver.assert_answered()
