"""The thread that runs steps: in order, each reported once, failures included; silent once it is stopped."""

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
    found = [results.get(timeout=10) for _ in range(3)]
    assert [(r.step_id, r.error) for r in found] == [(1, None), (2, "IndexError: no such row"), (3, None)]
    assert thread.stop(10)


def test_after_a_stop_nothing_is_reported():
    started, release, reported = threading.Event(), threading.Event(), []

    def run(step):
        started.set()
        release.wait(10)
        return done(step)

    thread = DeviceThread(run, reported.append)
    thread.launch(batch(1))
    thread.launch(batch(2))
    assert started.wait(10)
    assert thread.stop(0.01) is False  # still in its step
    release.set()
    assert thread.stop(10) and thread.stop(10)
    assert reported == []


def test_it_may_be_stopped_from_its_own_report():
    stopped: SimpleQueue[bool] = SimpleQueue()
    box: list[DeviceThread] = []
    box.append(DeviceThread(done, lambda result: stopped.put(box[0].stop(10))))
    box[0].launch(batch(1))
    assert stopped.get(timeout=10) is False
    assert box[0].stop(10)
