"""Preparing requests behind the writer: the pool by itself, and an engine that has a preprocessor."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from headway.engine import writer
from headway.engine.preprocess import Prepared, PreprocessPool
from headway.errors import RequestError
from headway.request import FinishReason, Request, Span
from headway.sampling import SamplingParams
from headway.scheduler import PreprocessDone
from tests.engine.running import eventually, running
from tests.managers.driving import PATIENCE, VOCAB, answer_to, assert_nothing_held, hand_made, make_request

SPAN = Span(1, 2, b"cat", 2)


def request(uid: int) -> Request:
    return hand_made(uid, f"r{uid}")


class Pool:
    """A running pool whose answers are kept; a uid answered twice is an error."""

    def __init__(self, prepare: Callable[[Request], Any], num_threads: int) -> None:
        self.done: dict[int, PreprocessDone] = {}
        self.threads: set[str] = set()
        self.pool = PreprocessPool(prepare, num_threads, self._post)

    def _post(self, done: PreprocessDone) -> None:
        self.threads.add(threading.current_thread().name)
        assert self.done.setdefault(done.uid, done) is done, f"uid {done.uid} was answered twice"

    def answer_to(self, uid: int) -> PreprocessDone:
        """What comes of a request of this uid, submitted now."""
        self.pool.submit(request(uid))
        assert eventually(lambda: uid in self.done)
        return self.done[uid]


@contextmanager
def pool_of(prepare: Callable[[Request], Any], num_threads: int = 2) -> Iterator[Pool]:
    before = set(threading.enumerate())
    pool = Pool(prepare, num_threads)
    pool.pool.start()
    try:
        yield pool
    finally:
        pool.pool.shutdown(timeout=PATIENCE)
    assert set(threading.enumerate()) <= before


class Gate:
    """A preparation that waits until it is let go."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.let_go = threading.Event()

    def __call__(self, request: Request) -> Prepared:
        self.begun.append(request.uid)
        assert self.let_go.wait(PATIENCE)
        return Prepared()


# -- the pool ----------------------------------------------------------------------------------------------------


def test_a_prompt_arrives_packed_from_a_thread_of_the_pool() -> None:
    with pool_of(lambda request: Prepared([request.uid, 5, 6], (SPAN,))) as pool:
        done = pool.answer_to(7)
    assert done.prompt is not None and done.prompt.dtype == np.int32 and not done.prompt.flags.writeable
    assert (done.prompt.tolist(), done.spans, done.error) == ([7, 5, 6], (SPAN,), None)
    assert all(name.startswith("headway-preprocess") for name in pool.threads)


def test_what_the_preprocessor_does_to_its_array_afterwards_changes_nothing() -> None:
    own = np.array([1, 2, 3], np.int32)
    with pool_of(lambda request: Prepared(own)) as pool:
        done = pool.answer_to(1)
        own[:] = 9
    assert done.prompt is not None and done.prompt.tolist() == [1, 2, 3]


def test_without_a_new_prompt_the_old_one_stays_and_spans_are_of_it() -> None:
    answers = iter([Prepared(), Prepared(spans=(SPAN,))])
    with pool_of(lambda request: next(answers)) as pool:
        assert pool.answer_to(1) == PreprocessDone(1)
        spanned = pool.answer_to(2)
    assert spanned.prompt is not None and spanned.prompt.tolist() == [1, 2, 3]
    assert spanned.spans == (SPAN,)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("the image is 0 pixels wide"), "the image is 0 pixels wide"),
        (ValueError(), "ValueError"),
        (RuntimeError("no route to host"), "RuntimeError: no route to host"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
    ],
    ids=repr,
)
def test_whatever_it_raises_is_the_answer_and_the_thread_goes_on(error: BaseException, text: str) -> None:
    def prepare(request: Request) -> Prepared:
        if request.uid == 1:
            raise error
        return Prepared()

    with pool_of(prepare, num_threads=1) as pool:
        assert pool.answer_to(1) == PreprocessDone(1, error=text)
        assert pool.answer_to(2).error is None


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, "TypeError: the preprocessor must return Prepared, got NoneType"),
        ([1, 2], "TypeError: the preprocessor must return Prepared, got list"),
        (Prepared([1], (5,)), "TypeError: the preprocessor's spans must be Span, got int"),  # type: ignore[arg-type]
        (Prepared([1], 5), "TypeError: 'int' object is not iterable"),  # type: ignore[arg-type]
        (Prepared([]), "the preprocessor's prompt is empty; at least 1 token is needed"),
        (Prepared([[1, 2]]), "the preprocessor's prompt must be a flat list of integers, got 2-d"),  # type: ignore[list-item]
        (Prepared([1.5]), "float64"),  # type: ignore[list-item]
        (Prepared("text"), "got 0-d"),  # type: ignore[arg-type]
        (Prepared([1, -2]), "token id -2"),
        (Prepared([2**31, 1]), f"token id {2**31}"),
        (Prepared([2**70]), "got 1-d object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_result_that_is_none_is_an_error_that_says_so(result: Any, text: str) -> None:
    with pool_of(lambda request: result) as pool:
        done = pool.answer_to(1)
    assert done.error is not None and text in done.error
    assert done.prompt is None


def test_submitting_does_not_wait_and_what_is_cancelled_in_time_is_not_begun() -> None:
    gate = Gate()
    with pool_of(gate, num_threads=1) as pool:
        for uid in range(1, 6):
            pool.pool.submit(request(uid))  # the first one holds the only thread
        assert eventually(lambda: gate.begun)
        for uid in (1, 2, 4, 99):  # running, queued, queued, unknown
            pool.pool.cancel(uid)
        gate.let_go.set()
        assert eventually(lambda: 5 in pool.done)
    assert gate.begun == [1, 3, 5]
    assert set(pool.done) == {1, 3, 5}


def test_every_job_is_answered_once_or_was_cancelled() -> None:
    rng = random.Random(1)
    cancelled = set()
    with pool_of(lambda request: Prepared([request.uid]), num_threads=4) as pool:
        for uid in range(1, 500):
            pool.pool.submit(request(uid))
            if rng.random() < 0.3:
                cancelled.add(late := rng.randint(max(1, uid - 5), uid))
                pool.pool.cancel(late)
        assert eventually(lambda: set(range(1, 500)) - cancelled <= set(pool.done))
    for uid, done in pool.done.items():
        assert done.prompt is not None and done.prompt.tolist() == [uid]


def test_a_shutdown_drops_what_is_queued_and_what_still_runs() -> None:
    gate = Gate()
    with pool_of(gate, num_threads=1) as pool:
        for uid in (1, 2):
            pool.pool.submit(request(uid))
        assert eventually(lambda: gate.begun)
        pool.pool.shutdown(timeout=0.0)  # the job hangs: no thread waits for it
        pool.pool.submit(request(3))
        gate.let_go.set()
    assert gate.begun == [1] and pool.done == {}


def test_a_shutdown_waits_a_while_for_what_runs() -> None:
    gate = Gate()
    with pool_of(gate, num_threads=2) as pool:
        pool.pool.submit(request(1))
        assert eventually(lambda: gate.begun)
        threading.Timer(0.05, gate.let_go.set).start()
        pool.pool.shutdown(timeout=PATIENCE)
        assert not any(thread.is_alive() for thread in pool.pool._threads)


def test_a_pool_that_never_started_can_be_shut_down() -> None:
    pool = Pool(lambda request: Prepared(), 2)
    pool.pool.submit(request(1))
    pool.pool.shutdown()
    assert pool.done == {}


def test_a_pool_without_threads_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        PreprocessPool(lambda request: Prepared(), 0, lambda done: None)


# -- an engine that has one --------------------------------------------------------------------------------------


def spell(request: Request) -> Prepared:
    """One token for each byte."""
    assert request.preprocess is not None
    return Prepared(list(request.preprocess))


def test_a_request_is_answered_as_its_prepared_prompt_asks(name: str) -> None:
    with running(name, preprocess=spell) as it:
        made = it.add("made", (), preprocess=b"hello")
        plain = it.add("plain", (1, 2, 3))
        it.history.wait_for([made, plain])
        assert it.history.tokens == {made: answer_to(list(b"hello"), 4), plain: answer_to([1, 2, 3], 4)}
        assert it.history.threads == {"headway-writer"}
    assert_nothing_held(it.manager)


def test_without_a_preprocessor_such_a_request_is_refused_at_the_door(name: str) -> None:
    with running(name, has_preprocessor=False) as it:
        with pytest.raises(RequestError, match=r"no preprocessor: .*'made'"):
            it.add("made", preprocess=b"hello")
        assert it.manager.door.num_inside == 0
    with running(name) as it:  # whose door does not know
        past = make_request(it.manager, "past", [], SamplingParams(), preprocess=b"hello")
        it.manager.add(past)
        it.history.wait_for([past.uid])
        assert it.history.ends[past.uid].reason is FinishReason.ERROR
        assert "this engine has no preprocessor" in str(it.history.ends[past.uid].error)


@pytest.mark.parametrize(
    ("prepared", "why"),
    [
        (RuntimeError("no such image"), "RuntimeError: no such image"),
        (Prepared([1, VOCAB]), f"token id {VOCAB}; ids are integers from 0 to {VOCAB - 1}"),
        (Prepared([1] * 64), "maximum context length is 64 tokens. However, the prompt is too long: it has 64 tokens"),
        (Prepared(), "the prompt is empty"),
        (Prepared([1, 2], (Span(0, 3, b"x"),)), "span"),
        ("no such thing", "must return Prepared, got str"),
    ],
    ids=["raises", "token", "length", "empty", "span", "type"],
)
def test_what_the_door_would_refuse_ends_the_request_and_no_other(name: str, prepared: Any, why: str) -> None:
    def prepare(request: Request) -> Any:
        if isinstance(prepared, Exception):
            raise prepared
        return prepared

    with running(name, preprocess=prepare) as it:
        good, bad = it.add("good"), it.add("bad", (), preprocess=b"")
        it.history.wait_for([good, bad])
        assert it.history.reasons([good, bad]) == [FinishReason.LENGTH, FinishReason.ERROR]
        assert why in str(it.history.ends[bad].error)
        assert it.history.tokens.keys() == {good}
        assert it.engine.failure() is None
    assert_nothing_held(it.manager)


def test_a_request_can_be_aborted_while_it_is_prepared_and_while_it_waits_for_that(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.engine.engine.PREPROCESS_THREADS", 1)
    gate = Gate()
    with running(name, preprocess=gate) as it:
        first, second, third = (it.add(request_id, preprocess=b"") for request_id in "abc")
        assert eventually(lambda: gate.begun == [first])
        it.manager.abort([first, second])
        it.history.wait_for([first, second])
        gate.let_go.set()
        it.history.wait_for([third])
        assert it.history.reasons([first, second, third]) == [
            FinishReason.ABORT,
            FinishReason.ABORT,
            FinishReason.LENGTH,
        ]
    assert gate.begun == [first, third]
    assert_nothing_held(it.manager)


def test_the_writer_sleeps_no_longer_than_until_the_next_deadline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_LONGEST_SLEEP", 10 * PATIENCE)
    gate = Gate()
    with running(name, preprocess=gate, preprocess_timeout=0.1) as it:
        uid = it.add("a", preprocess=b"")
        it.history.wait_for([uid])
        assert it.history.reasons([uid]) == [FinishReason.ERROR]
        assert "preprocess_timeout" in str(it.history.ends[uid].error)
        gate.let_go.set()
    assert_nothing_held(it.manager)


def test_when_the_engine_dies_nothing_more_is_prepared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.engine.engine.PREPROCESS_THREADS", 1)
    gate = Gate()
    with running(name, preprocess=gate) as it:
        uids = [it.add(request_id, preprocess=b"") for request_id in "abc"]
        assert eventually(lambda: gate.begun)

        def dies() -> None:
            raise RuntimeError("broken")

        it.manager.drain = dies  # type: ignore[method-assign]
        it.manager.wake()
        it.history.wait_for(uids)
        assert eventually(lambda: not it.engine._loop._thread.is_alive())
        gate.let_go.set()
        assert eventually(lambda: not any(t.name.startswith("headway-preprocess") for t in threading.enumerate()))
    assert gate.begun == uids[:1]


def test_what_an_engine_that_never_started_was_to_prepare_ends_too(name: str) -> None:
    with running(name, preprocess=spell, start=False) as it:
        uid = it.add("a", preprocess=b"x")
        it.engine.shutdown()
        assert it.history.reasons([uid]) == [FinishReason.ABORT]


def test_a_preparation_that_hangs_does_not_hold_up_the_stop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreprocessPool.shutdown, "__defaults__", (0.05,))
    gate = Gate()
    with running(name, preprocess=gate) as it:
        uid = it.add("a", preprocess=b"")
        assert eventually(lambda: gate.begun)
        it.engine.shutdown()
        assert it.history.reasons([uid]) == [FinishReason.ABORT]
        gate.let_go.set()
