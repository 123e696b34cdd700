"""EncoderCache: what the device keeps, what it is told, and for whom."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headway.request import Span
from headway.scheduler.state.encoder_cache import EncoderCache
from tests.examples import examples

A, B, C, D = (bytes([i]) * 32 for i in range(4))


def span(digest: bytes, size: int = 4, start: int = 0) -> Span:
    return Span(start, size, digest, size)


def encoded(cache: EncoderCache, uid: int, *digests: bytes) -> None:
    """A request has these encoded, by a batch that went out."""
    for digest in digests:
        assert cache.need(uid, span(digest))
    cache.take_changes()


def test_what_is_needed_is_encoded_by_the_next_batch_and_by_no_other() -> None:
    cache = EncoderCache(8)
    assert cache.need(1, span(A))
    assert cache.take_changes() == ([(1, span(A))], [])
    assert cache.need(1, span(A)) and cache.used == 4
    assert cache.take_changes() == ([], [])


def test_equal_contents_are_encoded_once_for_all_who_need_them() -> None:
    cache = EncoderCache(4)
    assert cache.need(1, span(A)) and cache.need(2, span(A, start=7))
    assert cache.take_changes()[0] == [(1, span(A))]
    assert cache.need(3, span(A)) and cache.take_changes() == ([], [])


def test_an_item_that_is_needed_makes_room_for_no_other() -> None:
    cache = EncoderCache(8)
    encoded(cache, 1, A, B)
    assert not cache.need(2, span(C))
    cache.done(1, A)
    assert cache.need(2, span(C))
    assert cache.take_changes() == ([(2, span(C))], [A])


def test_a_refusal_changes_nothing() -> None:
    cache = EncoderCache(8)
    encoded(cache, 1, A, B)
    cache.done(1, A)
    assert not cache.need(2, span(C, size=5))
    assert cache.take_changes() == ([], []) and cache.used == 8
    cache.audit([1])
    assert cache.need(3, span(A))


def test_an_item_that_is_not_needed_is_kept_while_there_is_room() -> None:
    cache = EncoderCache(8)
    encoded(cache, 1, A)
    cache.release(1)
    assert cache.used == 4 and cache.room == 8
    encoded(cache, 2, B)
    assert cache.need(3, span(A)) and cache.take_changes() == ([], [])


def test_the_least_recently_needed_goes_first_and_no_more_than_must() -> None:
    cache = EncoderCache(12)
    encoded(cache, 1, A, B, C)
    for digest in (B, A, C):
        cache.done(1, digest)
    encoded(cache, 2, B)
    cache.release(2)  # the order is A, C, B now
    assert cache.need(3, span(D))
    assert cache.take_changes() == ([(3, span(D))], [A])
    assert cache.need(3, span(A, size=5))
    assert cache.take_changes()[1] == [C, B]


def test_an_output_is_needed_until_the_last_request_is_done_with_it() -> None:
    cache = EncoderCache(4)
    encoded(cache, 1, A)
    encoded(cache, 2, A)
    cache.done(1, A)
    cache.done(1, A)
    cache.release(1)
    assert not cache.need(3, span(B))
    cache.done(2, A)
    assert cache.need(3, span(B))


def test_what_unknown_requests_let_go_of_is_nothing() -> None:
    cache = EncoderCache(4)
    encoded(cache, 1, A)
    cache.done(2, A)
    cache.done(1, B)
    cache.release(2)
    cache.audit([1])
    assert not cache.need(3, span(B))


def test_a_request_that_ends_before_the_batch_has_nothing_encoded() -> None:
    cache = EncoderCache(4)
    cache.need(1, span(A))
    cache.release(1)
    assert cache.used == 0 and cache.take_changes() == ([], [])
    assert cache.need(2, span(A)) and cache.take_changes()[0] == [(2, span(A))]


def test_if_the_first_to_need_it_ends_before_the_batch_another_lends_its_span() -> None:
    cache = EncoderCache(4)
    cache.need(1, span(A))
    cache.need(2, span(A, start=9))
    cache.done(1, A)
    assert cache.take_changes()[0] == [(2, span(A, start=9))]


def test_dropped_and_wanted_again_within_a_pass_it_is_told_as_both() -> None:
    cache = EncoderCache(4)
    encoded(cache, 1, A)
    cache.done(1, A)
    cache.need(2, span(B))
    cache.release(2)
    cache.need(3, span(A))
    assert cache.take_changes() == ([(3, span(A))], [A])  # the device drops first, encodes then


def test_how_many_spans_fit_together_counts_each_output_once_and_held_ones_not_at_all() -> None:
    cache = EncoderCache(10)
    encoded(cache, 1, A, B)
    cache.done(1, B)
    assert cache.room == 6
    assert cache.count_fitting([span(A), span(C), span(C), span(B)], cache.room) == 3
    assert cache.count_fitting([span(A), span(C)], 0) == 1
    assert cache.count_fitting([span(B), span(C, size=2)], cache.room) == 2
    assert cache.take_changes() == ([], []) and cache.used == 8


def test_what_a_failed_step_was_to_encode_is_not_kept_even_if_another_request_counts_on_it() -> None:
    cache = EncoderCache(8)
    encoded(cache, 1, A, B)
    encoded(cache, 2, A)
    cache.done(1, B)
    cache.forget_encoded([A, B, C])
    assert cache.used == 0 and cache.room == 8
    cache.audit([])
    assert cache.need(2, span(A))
    assert cache.take_changes() == ([(2, span(A))], [A, B])


def test_what_the_next_batch_encodes_anew_outlives_the_failure_of_the_step_before() -> None:
    cache = EncoderCache(4)
    encoded(cache, 1, A)
    cache.release(1)
    encoded(cache, 2, B)
    cache.release(2)
    cache.need(3, span(A))
    cache.forget_encoded([A])
    assert cache.take_changes() == ([(3, span(A))], [B])


def test_clear_forgets_all_and_tells_of_all_that_was_ever_told() -> None:
    cache = EncoderCache(12)
    encoded(cache, 1, A, B)
    cache.done(1, A)
    cache.need(2, span(C))
    cache.clear()
    cache.audit([])
    assert cache.used == 0 and cache.room == 12
    assert cache.take_changes() == ([], [A, B])
    cache.done(1, B)
    cache.release(2)
    assert cache.room == 12


def test_without_a_budget_nothing_is_kept() -> None:
    assert not EncoderCache(0).need(1, span(A))


def test_the_audit_finds_a_request_that_is_gone() -> None:
    cache = EncoderCache(8)
    encoded(cache, 7, A)
    cache.audit([7])
    with pytest.raises(AssertionError, match=r"gone hold encoder outputs: \[7\]"):
        cache.audit([8])


class EncoderMachine(RuleBasedStateMachine):
    """Against sets: who needs what, and a device that only does as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = EncoderCache(10)
        self.needs: set[tuple[int, bytes]] = set()
        self.device: set[bytes] = set()
        self.sizes = {bytes([i]): i % 4 + 1 for i in range(8)}

    uids = st.integers(1, 4)
    digests = st.integers(0, 7).map(lambda i: bytes([i]))

    def held(self) -> set[bytes]:
        return {digest for _, digest in self.needs}

    @rule(uid=uids, digest=digests)
    def need(self, uid: int, digest: bytes) -> None:
        wanted = self.held() | {digest}
        fits = sum(self.sizes[d] for d in wanted) <= 10
        assert self.cache.need(uid, Span(0, 1, digest, self.sizes[digest])) == fits
        if fits:
            self.needs.add((uid, digest))

    @rule(uid=uids, digest=digests)
    def done(self, uid: int, digest: bytes) -> None:
        self.cache.done(uid, digest)
        self.needs.discard((uid, digest))

    @rule(uid=uids)
    def release(self, uid: int) -> None:
        self.cache.release(uid)
        self.needs = {need for need in self.needs if need[0] != uid}

    @rule()
    def step(self) -> None:
        encode, evicted = self.cache.take_changes()
        self.device -= set(evicted)
        for uid, span in encode:
            assert (uid, span.digest) in self.needs and span.digest not in self.device
            self.device.add(span.digest)
        assert self.held() <= self.device
        assert sum(self.sizes[d] for d in self.device) == self.cache.used

    @rule(digests=st.sets(digests, max_size=3))
    def fail(self, digests: set[bytes]) -> None:
        self.step()
        self.cache.forget_encoded(sorted(digests))
        self.needs = {need for need in self.needs if need[1] not in digests}

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.needs = set()

    @invariant()
    def books_agree(self) -> None:
        self.cache.audit({uid for uid, _ in self.needs})
        assert self.cache.room == 10 - sum(self.sizes[d] for d in self.held())


TestEncoderMachine = EncoderMachine.TestCase
TestEncoderMachine.settings = settings(examples(0.6), stateful_step_count=40)
