"""KV on its way from P to D: computed, lent, sent, received; and every way in which that goes wrong."""

import numpy as np
import pytest

from headway.config import Role
from headway.request import RequestStatus, Span
from headway.scheduler import SendDone, StartDecode
from headway.simulation.digests import answer_of
from tests.scheduler.driver import Driver, config


def p_of(depth: int = 1, **changes: object) -> Driver:
    return Driver(config(role=Role.PREFILL, **changes), depth=depth)


def d_of(depth: int = 1, **changes: object) -> Driver:
    return Driver(config(role=Role.DECODE, **changes), depth=depth)


def send(driver: Driver, prompt: range = range(9)) -> int:
    """A request of P whose KV is on its way."""
    request = driver.make(prompt, max_tokens=1)
    driver.reserve(request)
    driver.start_prefill(request.uid)
    driver.run()
    return request.uid


class TestBothSides:
    @pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 20])
    @pytest.mark.parametrize("depth", [1, 2])
    @pytest.mark.parametrize("num_speculative_tokens", [0, 2])
    def test_p_computes_the_prompt_and_d_the_rest(self, length: int, depth: int, num_speculative_tokens: int) -> None:
        changes = {"num_speculative_tokens": num_speculative_tokens}
        p, d = p_of(depth, **changes), d_of(depth, **changes)
        on_p, on_d = p.make(range(length), max_tokens=1), d.make(range(length), max_tokens=10)
        assert p.reserve(on_p) is not None and d.reserve(on_d) is not None
        p.start_prefill(on_p.uid)
        p.run()
        sending = p.history.sent[on_p.uid]
        assert sending.num_tokens == length
        assert sending.token == answer_of(on_d)[0][0]
        d.start_decode(on_d)  # which must be told that very token
        p.sent(on_p.uid)
        d.run()
        for driver in (p, d):
            driver.assert_answered()
            driver.assert_empty()

    def test_many_at_once_beside_others(self) -> None:
        p, d = p_of(2, max_num_batched_tokens=8), d_of(2)
        pairs = [(p.make(range(i, i + 7), max_tokens=1), d.make(range(i, i + 7), max_tokens=9)) for i in range(3)]
        for on_p, on_d in pairs:
            assert p.reserve(on_p) is not None and d.reserve(on_d) is not None
        p.start_prefill(*(on_p.uid for on_p, _ in pairs))
        p.add(range(30, 41), max_tokens=1)
        d.add(range(30, 41), max_tokens=9)
        p.run()
        while d.in_flight:
            d.answer()
        for on_p, on_d in reversed(pairs):
            p.sent(on_p.uid)
            d.start_decode(on_d)
        d.run()
        for driver in (p, d):
            driver.assert_answered()
            driver.assert_empty()


class TestSending:
    def test_frees_the_slot_and_lends_the_blocks_until_the_sender_is_done(self) -> None:
        driver = p_of()
        uid = send(driver)
        snapshot = driver.core.snapshot()
        assert (snapshot.num_sending, snapshot.num_slots_spanned) == (1, 0)
        assert snapshot.num_blocks_free == 39 - 3
        effects = driver.sent(uid)
        assert [(end.uid, str(end.reason)) for end in effects.ended] == [(uid, "length")]
        assert driver.core.snapshot().num_blocks_evictable == 2
        driver.assert_empty()

    def test_says_how_the_request_ended_when_the_first_token_was_the_last(self) -> None:
        driver = p_of()
        first = answer_of(driver.make(range(9)))[0][0]
        request = driver.make(range(9), max_tokens=1, stop_token_ids=(first,))
        driver.reserve(request)
        driver.start_prefill(request.uid)
        driver.run()
        driver.sent(request.uid)
        assert driver.ended(request) == "stop"

    def test_that_fails_is_an_error_with_the_senders_words(self) -> None:
        driver = p_of()
        uid = send(driver)
        driver.sent(uid, error="connection reset")
        assert driver.ended(driver.requests[uid]) == "error: the KV was not sent: connection reset"
        driver.assert_empty()

    @pytest.mark.parametrize("how", ["abort", "time"])
    def test_lends_the_blocks_on_when_the_request_has_ended_and_gives_them_to_no_other(self, how: str) -> None:
        driver = p_of(num_blocks=9)
        uid = send(driver, range(20))  # 5 of 8 blocks
        sending = driver.history.sent[uid]
        driver.abort(uid) if how == "abort" else driver.wait(61)
        assert uid in driver.history.ends
        snapshot = driver.core.snapshot()
        assert (snapshot.num_sending, snapshot.num_blocks_free, snapshot.next_deadline) == (0, 3, None)
        waits = driver.add(range(20, 40), max_tokens=1)
        other = driver.add(range(40, 49), max_tokens=1)
        driver.step()
        assert [entry.uid for entry in driver.state.waiting] == [waits.uid]
        driver.abort(waits.uid)
        assert not set(driver.batches[-1].table_blocks.tolist()) & set(sending.blocks.tolist())
        assert not driver.sent(uid)  # intact till the end, as the driver has looked
        driver.run()
        driver.assert_answered(other)
        driver.assert_empty()

    def test_names_the_time_it_has(self) -> None:
        driver = p_of(send_timeout=7.0)
        uid = send(driver)
        assert driver.core.next_deadline == 7.0
        assert not driver.wait(6.9).ended
        driver.wait(0.1)
        assert driver.ended(driver.requests[uid]) == "error: its KV was not sent within send_timeout"
        driver.sent(uid)
        driver.assert_empty()

    def test_said_to_be_done_twice_is_done_once(self) -> None:
        driver = p_of()
        uid = send(driver)
        driver.sent(uid)
        assert not driver.tell(SendDone(uid)) and not driver.tell(SendDone(uid, "late"))
        driver.assert_empty()

    def test_lets_others_find_the_prompt_meanwhile(self) -> None:
        driver = p_of()
        uid = send(driver)
        second = driver.add([*range(8), 30], max_tokens=1)
        driver.run()
        driver.sent(uid)
        assert driver.history.started[second.uid] == 8
        driver.assert_answered()
        driver.assert_empty()

    def test_lets_the_next_in_when_the_blocks_come_back(self) -> None:
        driver = p_of(num_blocks=9)
        uid = send(driver, range(20))
        waits = driver.add(range(30, 50), max_tokens=1)
        assert driver.core.snapshot().num_waiting == 1
        driver.sent(uid)
        assert driver.core.snapshot().num_waiting == 0
        driver.run()
        driver.assert_answered(waits)

    def test_progress_counts_the_prompt_and_its_token(self) -> None:
        driver = p_of()
        uid = send(driver)
        progress = driver.progress(driver.requests[uid])
        assert progress is not None and progress.status is RequestStatus.SENDING
        assert (progress.num_output_tokens, progress.num_computed_tokens, progress.num_blocks) == (1, 9, 3)


class TestKvThatComesFromOutside:
    """It is not written in the order of the steps: it has to wait for those that may still write to its blocks."""

    @pytest.mark.parametrize("num_steps", [0, 1, 2])
    def test_is_told_for_which_step(self, num_steps: int) -> None:
        driver = d_of(2)
        leaves = driver.add(range(20), max_tokens=5)
        for _ in range(num_steps):
            driver.launch()
        driver.abort(leaves.uid)
        request = driver.make(range(9), max_tokens=4)
        reservation = driver.reserve(request)
        assert reservation is not None and reservation.after_step == num_steps
        driver.start_decode(request)  # the driver waits so long, and the device looks where the KV goes
        assert len(driver.in_flight) == 0
        driver.run()
        driver.assert_answered(request)
        driver.assert_empty()


def test_images_come_with_their_kv_and_are_not_encoded_here() -> None:
    driver = d_of()
    image = Span(2, 4, b"a", 4)
    request = driver.make(range(9), max_tokens=4, spans=(image,))
    driver.reserve(request)
    driver.start_decode(request)
    driver.run()
    assert not any(batch.encode for batch in driver.batches)
    driver.assert_answered()
    twin = driver.add(range(9), max_tokens=2, spans=(Span(2, 4, b"b", 4),))
    driver.run()
    assert driver.history.started[twin.uid] == 0
    driver.assert_answered()


def test_a_first_token_is_what_p_says_whatever_it_is() -> None:
    driver = d_of()
    request = driver.make(range(9), max_tokens=3)
    driver.reserve(request)
    driver.device.receive(request, driver.reservations[request.uid].blocks, 0)
    effects = driver.tell(StartDecode(request.uid, 49))
    assert effects.tokens[0].tokens.tolist() == [49] and effects.tokens[0].tokens.dtype == np.int32
    batch = driver.launch()
    assert batch is not None and batch.admissions[0].tokens.tolist() == [*range(9), 49]
