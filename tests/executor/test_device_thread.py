"""The threads that run steps: in order, each reported once, failures included; silent once they are stopped."""

import threading
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np

from headway.executor.device_thread import DeviceThread
from headway.scheduler.batch import StepResult


def batch(step_id: int) -> SimpleNamespace:
    return SimpleNamespace(step_id=step_id)


def done(step: SimpleNamespace) -> StepResult:
    return StepResult(step_id=step.step_id, tokens=np.empty(0, np.int32))


def test_steps_are_reported_in_order_and_a_failure_is_one_of_the_reports():
    def run(step):
        if step.step_id == 2:
            raise IndexError("no such row")
        return done(step)

    results: SimpleQueue[StepResult] = SimpleQueue()
    thread = DeviceThread(run, results.put)
    for step_id in (1, 2, 3):
        thread.launch(batch(step_id))
    found = [results.get(timeout=60) for _ in range(3)]
    assert [(r.step_id, r.error) for r in found] == [(1, None), (2, "IndexError: no such row"), (3, None)]
    assert thread.stop(10)


def test_after_a_stop_nothing_is_reported():
    started, release, reported = threading.Event(), threading.Event(), []

    def run(step):
        started.set()
        release.wait(60)
        return done(step)

    thread = DeviceThread(run, reported.append)
    thread.launch(batch(1))
    thread.launch(batch(2))
    assert started.wait(60)
    assert thread.stop(0.01) is False  # still in its step
    release.set()
    assert thread.stop(10) and thread.stop(10)
    assert reported == []


def test_it_may_be_stopped_from_its_own_report():
    stopped: SimpleQueue[bool] = SimpleQueue()
    box: list[DeviceThread] = []
    box.append(DeviceThread(done, lambda result: stopped.put(box[0].stop(10))))
    box[0].launch(batch(1))
    assert stopped.get(timeout=60) is False
    assert box[0].stop(10)


class Device:
    """Works by itself: what was enqueued is done when `finish` says so."""

    def __init__(self):
        self.enqueued: SimpleQueue[int] = SimpleQueue()
        self.awaited: SimpleQueue[int] = SimpleQueue()
        self.results: SimpleQueue[StepResult] = SimpleQueue()
        self.finished = {step_id: threading.Event() for step_id in range(1, 10)}
        self.thread = DeviceThread(self.enqueue, self.results.put, fetch=self.fetch)

    def launch(self, *step_ids: int) -> None:
        for step_id in step_ids:
            self.thread.launch(batch(step_id))

    def enqueue(self, step):
        self.enqueued.put(step.step_id)
        if step.step_id % 4 == 0:
            raise MemoryError("no room")
        return step

    def fetch(self, step) -> StepResult:
        self.awaited.put(step.step_id)
        assert self.finished[step.step_id].wait(60)
        if step.step_id % 3 == 0:
            raise RuntimeError("an illegal memory access")
        return done(step)


def test_a_step_is_enqueued_while_the_one_before_computes():
    device = Device()
    device.launch(1, 2)
    assert [device.enqueued.get(timeout=60) for _ in range(2)] == [1, 2]
    assert device.results.empty()
    device.finished[2].set()  # first enqueued, first reported
    device.finished[1].set()
    assert [device.results.get(timeout=60).step_id for _ in range(2)] == [1, 2]
    assert device.thread.stop(10)


def test_failures_to_enqueue_and_to_fetch_are_reported_in_their_turn():
    device = Device()
    for event in list(device.finished.values())[1:]:
        event.set()
    device.launch(1, 2, 3, 4, 5)
    assert [device.enqueued.get(timeout=60) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert device.results.empty()  # 4 has failed, and waits for its turn
    device.finished[1].set()
    found = [device.results.get(timeout=60) for _ in range(5)]
    assert [(r.step_id, r.error) for r in found] == [
        (1, None),
        (2, None),
        (3, "RuntimeError: an illegal memory access"),
        (4, "MemoryError: no room"),
        (5, None),
    ]
    assert device.thread.stop(10)


def test_a_device_that_hangs_is_left_behind_and_never_reported():
    device = Device()
    device.launch(1, 2)
    assert device.awaited.get(timeout=60) == 1
    assert device.thread.stop(0.01) is False
    for event in device.finished.values():
        event.set()
    assert device.thread.stop(10)
    assert device.results.empty()


def test_with_two_threads_too_it_may_be_stopped_from_its_own_report():
    stopped: SimpleQueue[bool] = SimpleQueue()
    box: list[DeviceThread] = []
    box.append(DeviceThread(lambda step: step, lambda result: stopped.put(box[0].stop(10)), fetch=done))
    box[0].launch(batch(1))
    assert stopped.get(timeout=60) is False
    assert box[0].stop(10)
