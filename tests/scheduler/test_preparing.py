"""Requests that a preprocess job works on first: it may succeed, fail, take too long, or be overtaken by an end."""

import numpy as np
import pytest

from headway.config import Role
from headway.request import RequestStatus, Span
from headway.scheduler import PreprocessDone
from headway.simulation.digests import answer_of, prompt_of
from tests.scheduler.driver import Driver, config

IMAGE = b"an image"


def test_the_job_is_handed_out_once_and_nothing_is_computed_before_it_is_done() -> None:
    driver = Driver(config())
    request = driver.add([1, 2], preprocess=IMAGE)
    assert driver.jobs == [request]
    assert driver.launch() is None
    snapshot = driver.core.snapshot()
    assert (snapshot.num_preparing, snapshot.num_waiting, snapshot.has_work) == (1, 0, False)
    driver.prepared(request)
    driver.run()
    assert driver.jobs == [request]
    driver.assert_answered()
    driver.assert_empty()


def test_what_the_job_made_is_what_is_computed() -> None:
    driver = Driver(config())
    request = driver.add([], preprocess=IMAGE, max_tokens=5)
    image = Span(2, 4, b"digest", 4)
    driver.prepared(request, range(9), [image])
    batch = driver.launch()
    assert batch is not None and batch.encode == ((request.uid, image),)
    made = batch.admissions[0].request
    assert (made.prompt.tolist(), made.spans) == (list(range(9)), (image,))
    assert driver.core.requests() == [made]
    driver.answer()
    driver.run()
    assert driver.history.tokens[request.uid] == answer_of(made)[0]
    driver.assert_empty()


def test_images_that_the_job_found_tell_prompts_apart_whose_tokens_are_equal() -> None:
    driver = Driver(config())
    for digest, cached in ((b"a", 0), (b"b", 0), (b"a", 8)):
        request = driver.add([], preprocess=IMAGE, max_tokens=2)
        driver.prepared(request, [7] * 9, [Span(0, 4, digest, 4)])
        driver.run()
        assert driver.history.started[request.uid] == cached
    driver.assert_answered()


def test_max_tokens_shrinks_to_what_the_longer_prompt_leaves() -> None:
    driver = Driver(config(max_model_len=32))
    request = driver.add([1], preprocess=IMAGE, max_tokens=20)
    driver.prepared(request, range(28))
    driver.run()
    assert len(driver.history.tokens[request.uid]) == 4
    assert driver.ended(request) == "length"


@pytest.mark.parametrize(
    ("prompt", "spans", "message"),
    [
        ([], (), "the prompt has no tokens, it needs at least 1"),
        (range(32), (), "prompt (32 tokens) + max_tokens (1) exceed max_model_len (32)"),
        (range(40), (), "prompt (40 tokens) + max_tokens (1) exceed max_model_len (32)"),
        (range(5), (Span(3, 3, b"x"),), "span 0 ends at 6, past the prompt (5 tokens)"),
    ],
)
def test_a_result_that_can_never_be_served_ends_the_request_naming_value_and_limit(
    prompt: list[int], spans: tuple[Span, ...], message: str
) -> None:
    driver = Driver(config(max_model_len=32))
    request = driver.add([1], preprocess=IMAGE)
    driver.prepared(request, prompt, spans)
    assert driver.ended(request) == f"error: {message}"
    assert driver.launch() is None
    driver.assert_empty()


def test_a_job_that_changes_nothing_leaves_a_request_to_be_checked_all_the_same() -> None:
    driver = Driver(config())
    request = driver.add([], preprocess=IMAGE)
    driver.prepared(request)
    assert driver.ended(request) == "error: the prompt has no tokens, it needs at least 1"


def test_a_failed_job_ends_the_request_with_its_words() -> None:
    driver = Driver(config())
    request = driver.add([1], preprocess=IMAGE)
    driver.tell(PreprocessDone(request.uid, error="HTTP 404"))
    assert driver.ended(request) == "error: its preparation failed: HTTP 404"
    driver.assert_empty()


def test_the_place_in_the_queue_is_that_of_the_arrival() -> None:
    """It is passed while it is prepared, and by no request after that."""
    driver = Driver(config(max_num_seqs=1))
    driver.add([9], max_tokens=3)
    driver.step()
    early = driver.add([1, 2], preprocess=IMAGE)
    late = driver.add([3, 4])
    driver.prepared(early)
    driver.run()
    assert driver.admissions()[1:] == [early.uid, late.uid]


def test_a_request_that_is_ready_passes_it() -> None:
    driver = Driver(config(max_num_seqs=1))
    early = driver.add([1, 2], preprocess=IMAGE)
    late = driver.add([3, 4])
    driver.run()
    assert driver.admissions() == [late.uid]
    driver.prepared(early)
    driver.run()
    driver.assert_answered()


def test_it_has_preprocess_timeout_seconds_from_its_arrival() -> None:
    driver = Driver(config(preprocess_timeout=5.0))
    driver.now = 100.0
    slow, quick = (driver.add([i], preprocess=IMAGE) for i in (1, 2))
    assert driver.core.next_deadline == driver.core.snapshot().next_deadline == 105.0
    driver.wait(4.0)
    driver.prepared(quick)
    driver.wait(1.0)
    assert driver.ended(slow) == "error: its preparation took longer than preprocess_timeout"
    assert not driver.prepared(slow)  # too late
    driver.wait(100.0)
    driver.run()
    driver.assert_answered(quick)
    driver.assert_empty()


def test_a_result_told_twice_counts_once() -> None:
    driver = Driver(config())
    request = driver.add([1], preprocess=IMAGE)
    driver.prepared(request, range(6))
    assert not driver.prepared(request, range(9))
    assert not driver.tell(PreprocessDone(request.uid, error="again"))
    batch = driver.launch()
    assert batch is not None and batch.num_tokens == 6


def test_a_request_that_was_prepared_counts_among_those_that_wait() -> None:
    driver = Driver(config())
    request = driver.add([1], preprocess=IMAGE)
    driver.prepared(request)
    progress = driver.progress(request)
    assert progress is not None and progress.status is RequestStatus.WAITING
    assert driver.core.snapshot().num_waiting == 1


def test_on_p_too() -> None:
    driver = Driver(config(role=Role.PREFILL))
    request = driver.add([], preprocess=IMAGE, max_tokens=1)
    assert driver.launch() is None
    driver.prepared(request, range(6))
    driver.run()
    assert len(driver.history.tokens[request.uid]) == 1
    driver.assert_empty()


def test_a_preempted_one_is_not_prepared_again() -> None:
    driver = Driver(config(max_num_seqs=1))
    request = driver.add([1], preprocess=IMAGE, priority=1, max_tokens=6)
    driver.prepared(request)
    driver.step()
    driver.add([2], max_tokens=2)
    driver.run()
    assert driver.core.snapshot().num_preemptions == 1 and len(driver.jobs) == 1
    driver.assert_answered()


def test_the_array_of_the_result_is_taken_as_it_is() -> None:
    """Who made it has given it away, as the contract of messages says; nothing is copied on the writer."""
    driver = Driver(config())
    request = driver.add([], preprocess=IMAGE)
    tokens = prompt_of(range(5))
    driver.tell(PreprocessDone(request.uid, tokens))
    assert driver.core.requests()[0].prompt is tokens and tokens.dtype == np.int32
