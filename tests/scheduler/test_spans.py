"""Images and videos in a prompt: never cut, encoded once and in time, and part of what their KV is found by.

The oracle device looks at every chunk: whether it cuts a span, whether all that it needs is encoded and kept, whether
that fits into the encoder cache, and whose KV is read.
"""

import pytest

from headway.config import Role
from headway.request import Span
from headway.scheduler import Batch, PreemptAll
from tests.scheduler.driver import Driver, config

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def image(start: int, length: int, digest: bytes = A, size: int | None = None) -> Span:
    return Span(start, length, digest, length if size is None else size)


def of(depth: int = 1, **changes: object) -> Driver:
    return Driver(
        config(**{"max_num_batched_tokens": 12, "max_model_len": 64, "num_blocks": 80, **changes}), depth=depth
    )


def chunks(driver: Driver) -> list[tuple[int, int]]:
    """(start, end) of each chunk, in order."""
    return [
        (int(batch.positions[row]), int(batch.positions[row] + batch.num_new_tokens[row]))
        for batch in driver.batches
        for row in range(batch.num_decodes, len(batch))
    ]


def encoded(batch: Batch | None) -> list[tuple[int, bytes]]:
    assert batch is not None
    return [(uid, span.digest) for uid, span in batch.encode]


class TestChunks:
    def test_end_before_a_span_that_would_be_cut(self) -> None:
        driver = of()
        driver.add(range(20), max_tokens=2, spans=[image(8, 6)])
        driver.run()
        assert chunks(driver)[:2] == [(0, 8), (8, 20)]
        driver.assert_answered()

    @pytest.mark.parametrize("depth", [1, 2])
    @pytest.mark.parametrize("deterministic", [False, True])
    @pytest.mark.parametrize("start", range(0, 24, 3))
    def test_never_cut_one_wherever_it_lies_and_whatever_else_runs(
        self, start: int, deterministic: bool, depth: int
    ) -> None:
        driver = of(depth, deterministic=deterministic, deterministic_chunk_size=4)
        for i in range(3):
            driver.add([i], max_tokens=9)
        driver.add(range(40), max_tokens=3, spans=[image(start, 7), image(start + 9, 3, B), image(start + 12, 2, C)])
        driver.run()
        driver.assert_answered()
        driver.assert_empty()

    def test_of_a_span_that_can_never_fit_is_refused_at_once(self) -> None:
        driver = of()
        request = driver.add(range(20), max_tokens=2, spans=[image(2, 10)])
        assert "span 0 has 10 tokens and must fit in one step" in (driver.ended(request) or "")
        too_big = driver.add(range(20), max_tokens=2, spans=[image(2, 9, size=13)])
        assert "span 0 takes 13 tokens of the encoder cache, which holds 0 to 12" in (driver.ended(too_big) or "")

    def test_continue_within_a_span_that_the_cache_has_the_beginning_of(self) -> None:
        driver = of()
        for tail in (40, 41):
            request = driver.add([*range(11), tail], max_tokens=2, spans=[image(6, 5)])
            driver.run()
        assert driver.history.started[request.uid] == 8
        driver.assert_answered()


class TestEncoderOutputs:
    def test_are_asked_for_in_the_batch_that_needs_them(self) -> None:
        driver = of()
        request = driver.add(range(24), max_tokens=2, spans=[image(0, 4), image(14, 4, B)])
        assert encoded(driver.step()) == [(request.uid, A)]
        assert encoded(driver.step()) == [(request.uid, B)]
        driver.run()
        driver.assert_answered()

    def test_are_shared_by_all_who_show_the_same(self) -> None:
        driver = of(enable_prefix_caching=False)
        for start in range(3):
            driver.add(range(start, start + 4), max_tokens=2, spans=[image(0, 3)])
        assert encoded(driver.step()) == [(1, A)]
        driver.run()
        driver.add(range(9), max_tokens=2, spans=[image(4, 3)])
        assert encoded(driver.step()) == []  # still kept
        driver.run()
        driver.assert_answered()

    def test_are_given_up_for_others_and_the_device_is_told(self) -> None:
        driver = of(encoder_cache_size=4, enable_prefix_caching=False)
        batches = []
        for digest in (A, B, A):
            driver.add(range(5), max_tokens=1, spans=[image(0, 4, digest)])
            batches.append(driver.step())
        assert [encoded(batch)[0][1] for batch in batches] == [A, B, A]
        assert [batch.encoder_evicted for batch in batches if batch is not None] == [(), (A,), (B,)]
        driver.assert_answered()

    def test_make_a_prompt_wait_while_others_need_the_room(self) -> None:
        driver = of(encoder_cache_size=4, enable_prefix_caching=False)
        driver.add(range(5), max_tokens=2, spans=[image(0, 4, A)])
        driver.add(range(5), max_tokens=2, spans=[image(0, 4, B)])
        assert encoded(driver.step()) == [(1, A)]
        assert encoded(driver.step()) == [(2, B)]
        driver.run()
        driver.assert_answered()

    def test_are_gone_with_the_device_that_kept_them(self) -> None:
        driver = of()
        driver.add(range(5), max_tokens=1, spans=[image(0, 4)])
        driver.run()
        driver.lose_device()
        again = driver.add(range(5), max_tokens=1, spans=[image(0, 4)])
        assert encoded(driver.step()) == [(again.uid, A)]
        driver.assert_answered()

    def test_are_not_needed_for_what_the_cache_has(self) -> None:
        driver = of()
        driver.add(range(10), max_tokens=1, spans=[image(0, 4)])
        driver.run()
        driver.state.encoder.clear()
        driver.add(range(10), max_tokens=1, spans=[image(0, 4)])
        assert encoded(driver.step()) == []

    def test_some_spans_need_none(self) -> None:
        driver = of()
        driver.add(range(10), max_tokens=2, spans=[image(0, 4, size=0)])
        assert encoded(driver.step()) == []
        driver.run()
        driver.assert_answered()

    def test_of_a_request_that_is_gone_are_no_longer_held(self) -> None:
        for leave in (lambda d: d.abort(1), lambda d: d.tell(PreemptAll()), lambda d: d.lose_device()):
            driver = of(encoder_cache_size=4, enable_prefix_caching=False)
            driver.add(range(30), max_tokens=2, spans=[image(0, 4)])
            driver.launch()
            leave(driver)
            assert driver.state.encoder.room == 4
            driver.add(range(6), max_tokens=2, spans=[image(0, 4, B)], priority=-1)
            driver.run()
            driver.assert_answered(driver.requests[2])

    def test_on_p_too(self) -> None:
        driver = of(role=Role.PREFILL)
        request = driver.add(range(20), max_tokens=1, spans=[image(10, 6)])
        driver.run()
        assert [encoded(batch) for batch in driver.batches] == [[], [(request.uid, A)]]
        driver.assert_answered()


class TestAFailedEncodeStep:
    def test_ends_its_requests_and_the_next_request_has_it_encoded_anew(self) -> None:
        driver = of()
        first = driver.add(range(6), max_tokens=2, spans=[image(0, 4)])
        driver.launch()
        driver.answer(error="out of memory")
        assert driver.ended(first) == "error: out of memory"
        again = driver.add(range(6), max_tokens=2, spans=[image(0, 4)])
        batch = driver.step()
        assert encoded(batch) == [(again.uid, A)]
        assert batch is not None and batch.encoder_evicted == (A,)  # whatever there may be of it
        driver.run()
        driver.assert_answered(again)

    def test_gives_up_what_it_encoded_in_the_order_of_its_batch_whatever_the_hashes(self) -> None:
        driver = of()
        digests = [bytes([i]) * 32 for i in (5, 3, 8, 1, 7, 2, 6, 4)]
        driver.add(range(10), max_tokens=2, spans=[image(i, 1, digest) for i, digest in enumerate(digests)])
        batch = driver.launch()
        assert [digest for _, digest in encoded(batch)] == digests
        driver.answer(error="out of memory")
        driver.add(range(3))
        batch = driver.launch()
        assert batch is not None and batch.encoder_evicted == tuple(digests)

    @pytest.mark.parametrize("resets", [False, True])
    @pytest.mark.parametrize("max_tokens", [1, 6])
    def test_sends_back_those_that_relied_on_it_in_a_step_behind(self, max_tokens: int, resets: bool) -> None:
        """They had no part in the failed step: they are computed again, and get their answers. It does not matter that
        the cache of what was encoded has been reset meanwhile."""
        driver = of(2, enable_prefix_caching=False)
        first = driver.add(range(6), max_tokens=6, spans=[image(0, 4)])
        driver.launch()
        second = driver.add(range(9), max_tokens=max_tokens, spans=[image(2, 4)])
        driver.launch()
        if resets:
            driver.state.encoder.clear()  # as a reset does, but with weights that stay the same
        driver.answer(error="out of memory")
        assert driver.ended(first) and not driver.ended(second)
        assert driver.core.snapshot().num_preemptions == 1
        driver.run()
        driver.assert_answered(second)
        driver.assert_empty()

    def test_leaves_alone_what_was_encoded_before_it(self) -> None:
        driver = of(enable_prefix_caching=False)
        driver.add(range(6), max_tokens=1, spans=[image(0, 4)])
        driver.step()
        driver.add(range(20, 26), max_tokens=9, spans=[image(0, 4, B)])
        driver.launch()
        driver.answer(error="boom")
        for digest, is_encoded in ((A, False), (B, True)):
            again = driver.add(range(6), max_tokens=1, spans=[image(0, 4, digest)])
            assert encoded(driver.step()) == [(again.uid, digest)] * is_encoded


class TestWhatTheCacheKnows:
    """Tokens of images are placeholders, equal for all images: what is shown must tell them apart."""

    def cached(self, *ways: tuple[str | None, list[Span]]) -> list[int | None]:
        driver = of()
        requests = []
        for salt, spans in ways:
            requests.append(driver.add([7] * 9, max_tokens=5, spans=spans, cache_salt=salt))
            driver.run()
        driver.assert_answered()
        return [driver.history.started[request.uid] for request in requests]

    def test_two_images_never_share_kv_though_their_tokens_are_equal(self) -> None:
        assert self.cached((None, [image(0, 4, A)]), (None, [image(0, 4, B)]), (None, [])) == [0, 0, 0]

    def test_what_lies_before_the_image_is_shared(self) -> None:
        assert self.cached((None, [image(4, 4, A)]), (None, [image(4, 4, B)]), (None, [])) == [0, 4, 4]

    def test_equal_images_at_equal_places_share(self) -> None:
        assert self.cached((None, [image(1, 4, A)]), (None, [image(1, 4, A)])) == [0, 8]

    def test_equal_images_elsewhere_or_longer_do_not(self) -> None:
        assert self.cached((None, [image(1, 4)]), (None, [image(2, 4)]), (None, [image(1, 5)])) == [0, 0, 0]

    def test_tenants_share_nothing(self) -> None:
        ways = [(salt, [image(0, 4, digest)]) for salt in ("x", "y", None) for digest in (A, B)]
        assert self.cached(*ways) == [0] * 6

    def test_an_image_in_the_last_part_of_a_prompt_tells_apart_the_output_behind_it(self) -> None:
        driver = of()
        first = driver.add([7] * 6, max_tokens=8, spans=[image(4, 2, A)])
        driver.run()
        output = driver.history.tokens[first.uid]
        for digest, cached in ((A, 12), (B, 4)):
            more = driver.add([7] * 6 + [*output, 3], max_tokens=1, spans=[image(4, 2, digest)])
            driver.run()
            assert driver.history.started[more.uid] == cached
        driver.assert_answered()

    @pytest.mark.parametrize("steps", range(1, 7))
    def test_a_preempted_request_with_images_is_exact(self, steps: int) -> None:
        driver = of(2)
        for digest in (A, B, A):
            driver.add([7] * 14, max_tokens=9, spans=[image(1, 3, digest), image(10, 4, C)])
        for _ in range(steps):
            driver.step()
        driver.tell(PreemptAll())
        driver.run()
        driver.assert_answered()
        driver.assert_empty()
