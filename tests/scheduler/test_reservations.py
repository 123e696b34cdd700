"""Room held for the other side, on P and on D: until it is taken up, dropped, or its time is over."""

import pytest

from headway.config import Role
from headway.errors import QueryError
from headway.request import FinishReason
from headway.scheduler import (
    AddRequest,
    DropReservations,
    Pause,
    PreemptAll,
    ReceiveDone,
    Reservation,
    ReserveDecode,
    ReservePrefill,
    ResetPrefixCache,
    Resume,
    StartDecode,
    StaticAllocation,
)
from headway.simulation.digests import answer_of
from tests.scheduler.driver import Driver, config


def p_of(depth: int = 1, **changes: object) -> Driver:
    return Driver(config(role=Role.PREFILL, **changes), depth=depth)


def d_of(depth: int = 1, **changes: object) -> Driver:
    return Driver(config(role=Role.DECODE, **changes), depth=depth)


class TestReservationsOfP:
    def test_hold_a_slot_and_blocks_for_the_prompt_and_compute_nothing(self) -> None:
        driver = p_of()
        request = driver.make(range(9), max_tokens=1)
        reservation = driver.reserve(request)
        assert reservation is not None and len(set(reservation.blocks.tolist())) == 3
        assert reservation == Reservation(request.uid, 0, reservation.blocks, num_cached_tokens=0, after_step=0)
        snapshot = driver.core.snapshot()
        assert (snapshot.num_reserved, snapshot.num_running, snapshot.num_blocks_free) == (1, 0, 39 - 3)
        assert driver.launch() is None and not snapshot.has_work

    @pytest.mark.parametrize("allocation", [None, StaticAllocation()])
    def test_hold_no_blocks_for_tokens_that_p_will_not_compute(self, allocation: StaticAllocation | None) -> None:
        driver = Driver(config(role=Role.PREFILL, num_speculative_tokens=3), allocation)
        request = driver.make(range(8), max_tokens=20)
        reservation = driver.reserve(request)
        assert reservation is not None and len(reservation.blocks) == 2
        driver.start_prefill(request.uid)
        driver.run()
        sending = driver.history.sent[request.uid]
        assert sending.blocks.tolist() == reservation.blocks.tolist()

    def test_find_what_the_prefix_cache_has(self) -> None:
        driver = p_of()
        driver.add(range(10), max_tokens=1)
        driver.run()
        request = driver.make(range(12), max_tokens=1)
        reservation = driver.reserve(request)
        assert reservation is not None and reservation.num_cached_tokens == 8
        driver.start_prefill(request.uid)
        driver.run()
        assert driver.history.started[request.uid] == 8
        assert driver.batches[-1].positions.tolist() == [8]

    @pytest.mark.parametrize("depth", [1, 2])
    def test_that_were_shown_keep_their_blocks_when_others_compute_the_same(self, depth: int) -> None:
        driver = p_of(depth, max_num_batched_tokens=8)
        requests = [driver.make(range(12), max_tokens=1) for _ in range(3)]
        shown = [driver.reserve(request, shows_blocks=True) for request in requests]
        driver.start_prefill(*(request.uid for request in requests))
        driver.run()
        for request, reservation in zip(requests, shown, strict=True):
            assert reservation is not None
            assert driver.history.sent[request.uid].blocks.tolist() == reservation.blocks.tolist()

    def test_that_were_not_shown_take_what_others_have_computed(self) -> None:
        driver = p_of(max_num_batched_tokens=8)
        requests = [driver.make(range(12), max_tokens=1) for _ in range(3)]
        first, *later = [driver.reserve(request) for request in requests]
        driver.start_prefill(*(request.uid for request in requests))
        driver.run()
        assert first is not None
        for request, reservation in zip(requests[1:], later, strict=True):
            assert reservation is not None
            blocks = driver.history.sent[request.uid].blocks.tolist()
            assert blocks[:2] == first.blocks.tolist()[:2] and blocks != reservation.blocks.tolist()

    def test_are_copies_that_their_holder_may_keep(self) -> None:
        driver = p_of()
        request = driver.make(range(9), max_tokens=1)
        reservation = driver.reserve(request)
        assert reservation is not None
        reservation.blocks[:] = 0
        driver.start_prefill(request.uid)
        driver.run()
        driver.sent(request.uid)
        driver.assert_answered()

    def test_a_yes_counts_as_a_request_and_a_no_does_not(self) -> None:
        driver = p_of(max_num_seqs=1)
        driver.reserve(driver.make([1, 2]))
        before = driver.core.snapshot()
        assert before.num_requests_added == 1
        assert driver.reserve(driver.make([1, 2])) is None
        assert driver.core.snapshot() == before

    def test_are_refused_without_blocks(self) -> None:
        driver = p_of(num_blocks=9)
        driver.reserve(driver.make(range(20), max_tokens=1))
        assert driver.reserve(driver.make(range(20), max_tokens=1)) is None
        assert driver.reserve(driver.make(range(12), max_tokens=1)) is not None

    def test_are_refused_while_a_request_waits(self) -> None:
        driver = p_of(num_blocks=9)
        driver.add(range(20), max_tokens=1)
        waits = driver.add(range(20), max_tokens=1)
        assert driver.reserve(driver.make([1], max_tokens=1)) is None  # though there is a slot, and a block
        driver.abort(waits.uid)
        assert driver.reserve(driver.make([1], max_tokens=1)) is not None

    def test_a_second_word_to_start_changes_nothing(self) -> None:
        driver = p_of()
        request = driver.make(range(9), max_tokens=1)
        driver.reserve(request)
        driver.start_prefill(request.uid, request.uid)
        driver.start_prefill(request.uid)
        driver.run()
        driver.sent(request.uid)
        assert driver.admissions() == [request.uid]
        driver.assert_empty()

    @pytest.mark.parametrize("depth", [1, 2])
    def test_once_started_survive_a_preemption(self, depth: int) -> None:
        driver = p_of(depth, max_num_batched_tokens=4)
        request = driver.make(range(14), max_tokens=1)
        driver.reserve(request)
        driver.start_prefill(request.uid)
        driver.step()
        driver.tell(PreemptAll())
        driver.run()
        driver.sent(request.uid)
        assert driver.admissions() == [request.uid] * 2
        driver.assert_answered()
        driver.assert_empty()


class TestReservationsOfD:
    def test_hold_blocks_for_the_prompt_and_the_first_token(self) -> None:
        driver = d_of()
        reservation = driver.reserve(driver.make(range(8)))
        assert reservation is not None and len(reservation.blocks) == 3
        assert driver.core.snapshot().num_reserved == 1
        assert driver.launch() is None

    def test_go_by_the_reserve_rule(self) -> None:
        """11 blocks; the request that decodes holds 2, and may take 6 more, and one is kept for safety: 2 are left."""
        driver = d_of(num_blocks=12)
        driver.add(range(8), max_tokens=24)
        driver.step()
        assert driver.core.snapshot().num_blocks_free == 9
        assert driver.reserve(driver.make(range(20, 28))) is None
        assert driver.reserve(driver.make(range(20, 27))) is not None

    def test_take_static_blocks_for_the_whole_answer_and_reserve_nothing(self) -> None:
        driver = Driver(config(role=Role.DECODE, num_blocks=17), StaticAllocation())
        first = driver.make(range(8), max_tokens=24)
        assert driver.reserve(first) is not None
        driver.start_decode(first)
        driver.step()
        second = driver.make(range(10, 18), max_tokens=24)
        assert driver.reserve(second) is not None
        assert driver.core.snapshot().num_blocks_free == 0
        driver.start_decode(second)
        driver.run()
        driver.assert_answered()

    def test_keep_what_is_cached_here_and_are_not_computed(self) -> None:
        driver = d_of()
        driver.add(range(10), max_tokens=1)
        driver.run()
        request = driver.make(range(12), max_tokens=4)
        reservation = driver.reserve(request)
        assert reservation is not None and reservation.num_cached_tokens == 8
        driver.start_decode(request)
        assert driver.history.started[request.uid] == 8
        batch = driver.launch()
        assert batch is not None and (batch.positions.tolist(), batch.num_new_tokens.tolist()) == ([12], [1])
        driver.run()
        driver.assert_answered()

    def test_let_others_find_the_kv_that_came(self) -> None:
        driver = d_of()
        request = driver.make(range(9), max_tokens=4)
        driver.reserve(request)
        driver.start_decode(request)
        second = driver.add([*range(8), 30], max_tokens=2)
        driver.run()
        assert driver.history.started[second.uid] == 8
        driver.assert_answered()

    def test_do_not_let_others_find_kv_that_has_not_come(self) -> None:
        driver = d_of()
        driver.reserve(driver.make(range(9)))
        second = driver.add(range(9), max_tokens=2)
        driver.run()
        assert driver.history.started[second.uid] == 0
        driver.assert_answered(second)

    def test_are_over_at_once_when_the_first_token_ends_them(self) -> None:
        driver = d_of()
        first = answer_of(driver.make(range(9)))[0][0]
        for options, reason in (({"max_tokens": 1}, "length"), ({"stop_token_ids": (first,)}, "stop")):
            request = driver.make(range(9), **options)  # type: ignore[arg-type]
            driver.reserve(request)
            effects = driver.start_decode(request)
            assert [str(end.reason) for end in effects.ended] == [reason]
            assert driver.history.tokens[request.uid] == [first]
        assert driver.launch() is None
        driver.assert_answered()
        driver.assert_empty()

    def test_may_not_be_stopped_by_the_first_token_before_min_tokens(self) -> None:
        driver = d_of()
        first = answer_of(driver.make(range(9)))[0][0]
        request = driver.make(range(9), min_tokens=2, stop_token_ids=(first,))
        driver.reserve(request)
        driver.start_decode(request)
        driver.run()
        assert len(driver.history.tokens[request.uid]) > 1
        driver.assert_answered()

    @pytest.mark.parametrize("steps", range(5))
    @pytest.mark.parametrize("depth", [1, 2])
    def test_once_started_a_preempted_one_is_computed_here(self, steps: int, depth: int) -> None:
        driver = d_of(depth)
        request = driver.make(range(7), max_tokens=9)
        driver.reserve(request)
        driver.start_decode(request)
        for _ in range(steps):
            driver.step()
        driver.tell(PreemptAll())
        driver.run()
        assert request.uid in driver.history.ends and driver.core.snapshot().num_preemptions == 1
        driver.assert_answered()
        driver.assert_empty()

    def test_are_refused_while_a_request_waits(self) -> None:
        driver = d_of(max_num_seqs=2, num_blocks=9)
        driver.add(range(20), max_tokens=3)
        driver.step()
        driver.add(range(20, 40), max_tokens=3)
        assert driver.reserve(driver.make([1])) is None
        driver.run()
        assert driver.reserve(driver.make([1])) is not None

    def test_lapse_if_they_are_not_taken_up(self) -> None:
        driver = d_of()
        request = driver.make(range(9))
        driver.reserve(request, timeout=2.5)
        assert driver.core.next_deadline == 2.5
        assert not driver.wait(2.4).ended
        driver.wait(0.1)
        assert driver.ended(request) == "error: its reservation was not taken up in time"
        assert not driver.tell(StartDecode(request.uid, 3))
        driver.assert_empty()

    def test_lapse_by_the_clock_while_nothing_else_happens(self) -> None:
        """Not when new work comes: there may be none. What they held is there for those who wait."""
        driver = d_of(max_num_seqs=1)
        driver.reserve(driver.make(range(9)), timeout=2.0)
        waits = driver.add(range(9), max_tokens=3)
        assert driver.launch() is None
        driver.wait(2.0)
        driver.run()
        driver.assert_answered(waits)

    def test_whose_blocks_were_told_keep_them_after_their_end_until_the_connector_has_stopped(self) -> None:
        driver = d_of()
        request = driver.make(range(9))
        driver.reserve(request, timeout=1.0)
        driver.wait(1.0)
        snapshot = driver.core.snapshot()
        assert (snapshot.num_blocks_quarantined, snapshot.num_blocks_free) == (3, 36)
        assert driver.core.slots.num_free_slots() == 4
        assert [(owner.name, owner.kind) for owner in driver.core.audit_report().owners] == [("uid 1", "receiver")]
        driver.device.scribble(driver.reservations[request.uid].blocks, 0)  # late, and harmless
        driver.receive_done(request, error="too late")
        assert driver.core.snapshot().num_blocks_free == 39

    def test_whose_blocks_no_connector_was_told_give_them_back_at_once(self) -> None:
        driver = d_of()
        request = driver.make(range(9))
        driver.requests[request.uid] = request
        assert driver.ask(lambda reply: ReserveDecode(reply, request, 1.0, shows_blocks=False))
        before = driver.core.snapshot()
        assert not driver.receive_done(request, 3)  # of no connector: nothing has come
        assert driver.core.snapshot() == before
        driver.wait(1.0)
        assert driver.stopped == [] and driver.core.snapshot().num_blocks_free == 39
        driver.assert_empty()

    def test_may_be_started_by_the_connector_which_knows_that_all_is_there(self) -> None:
        for token in (True, False):
            driver = d_of()
            request = driver.make(range(9), max_tokens=4)
            reservation = driver.reserve(request)
            assert reservation is not None
            driver.device.receive(request, reservation.blocks, 0)
            driver.receive_done(request, answer_of(request)[0][0] if token else None)
            assert driver.history.started == {request.uid: 0}
            driver.run()
            driver.assert_answered()
            driver.assert_empty()

    def test_end_with_what_their_connector_says_went_wrong(self) -> None:
        driver = d_of()
        request = driver.make(range(9))
        driver.reserve(request)
        driver.receive_done(request, error="P is gone")
        assert driver.ended(request) == "error: the KV of its prompt has not come: P is gone"
        assert driver.stopped == [] and driver.core.snapshot().num_blocks_free == 39
        driver.assert_empty()

    def test_a_short_hold_lapses_before_a_long_one(self) -> None:
        driver = d_of()
        long, short = driver.make(range(5)), driver.make(range(6))
        driver.reserve(long, timeout=60.0)
        driver.reserve(short, timeout=1.0)
        driver.wait(1.0)
        assert driver.ended(short) and not driver.ended(long)
        driver.start_decode(long)
        driver.wait(100.0)
        assert not driver.ended(long)  # it is taken up, no time runs any more
        driver.run()
        driver.assert_answered(long)

    def test_hold_room_that_is_there_until_it_is_used(self) -> None:
        """A yes is a promise: neither a later request nor a decode that grows gets the room."""
        driver = d_of(max_num_seqs=3, num_blocks=9, reserve="none")
        grows = driver.add(range(7), max_tokens=20)
        driver.step()
        request = driver.make(range(20, 36), max_tokens=8)
        assert driver.reserve(request) is not None  # 5 blocks of 8, 2 are held
        for _ in range(10):
            driver.step()
        driver.start_decode(request)
        driver.run()
        driver.assert_answered(grows, request)

    def test_a_lone_decode_that_cannot_grow_waits_for_the_room_that_is_only_held(self) -> None:
        """It is not ended for want of blocks: reservations are taken up and finish, or lapse."""
        driver = d_of(num_blocks=9, reserve="none")
        grows = driver.add(range(8), max_tokens=20)
        driver.step()
        held = driver.make(range(20, 40))
        assert driver.reserve(held, timeout=5.0) is not None  # the other 6 blocks
        for _ in range(6):
            driver.step()
        assert driver.ended(grows) is None
        driver.wait(5.0)
        assert driver.ended(held)
        assert driver.launch() is None  # a connector may still write to the 6 blocks
        driver.connectors_stop()
        driver.run()
        driver.assert_answered(grows)
        driver.assert_empty()


class TestDropped:
    @pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
    def test_reservations_give_everything_back_and_say_why(self, role: Role) -> None:
        driver = Driver(config(role=role))
        request = driver.make(range(9))
        driver.reserve(request)
        driver.tell(DropReservations((request.uid, 77)))
        assert driver.ended(request) == "abort: the reservation was dropped"
        driver.start_prefill(request.uid)
        assert not driver.tell(StartDecode(request.uid, 3)) and driver.launch() is None
        driver.assert_empty()

    def test_are_only_reservations(self) -> None:
        driver = d_of()
        request = driver.make(range(9))
        driver.reserve(request)
        driver.start_decode(request)
        assert not driver.tell(DropReservations((request.uid,)))
        driver.run()
        driver.assert_answered()


class TestRoles:
    @pytest.mark.parametrize("role", list(Role))
    @pytest.mark.parametrize("kind", [ReservePrefill, ReserveDecode])
    def test_an_engine_of_another_role_says_so_and_nothing_has_changed(self, role: Role, kind: type) -> None:
        driver = Driver(config(role=role))
        asked = Role.PREFILL if kind is ReservePrefill else Role.DECODE
        if asked is role:
            return
        query = kind(1, driver.make([1, 2]), *([5.0] if asked is Role.DECODE else []))
        before = driver.core.snapshot()
        message = f"a reservation for the {asked} phase was asked of an engine whose role is {role}"
        with pytest.raises(QueryError, match=message):
            driver.core.ask(query)
        assert driver.core.snapshot() == before
        driver.core.audit()

    def test_a_request_that_can_never_fit_is_an_error_not_a_no(self) -> None:
        driver = d_of()
        with pytest.raises(QueryError, match=r"prompt \(30 tokens\) \+ max_tokens \(8\) exceed max_model_len \(32\)"):
            driver.reserve(driver.make(range(30), max_tokens=8))

    def test_a_uid_in_use_is_an_error(self) -> None:
        driver = d_of()
        request = driver.make([1, 2])
        driver.reserve(request)
        with pytest.raises(QueryError, match="uid 1 of request 'r1' is in use"):
            driver.core.ask(ReserveDecode(9, request, 1.0))
        assert driver.core.snapshot().num_reserved == 1

    def test_a_uid_whose_former_blocks_have_not_come_back_is_an_error(self) -> None:
        driver = d_of()
        request = driver.make([1, 2])
        driver.reserve(request)
        driver.abort(request.uid)
        message = "the blocks of a former request of uid 1 have not come back"
        with pytest.raises(QueryError, match=message):
            driver.core.ask(ReserveDecode(9, request, 1.0))
        again = driver.core.apply(AddRequest(request))
        assert [(end.reason, end.error) for end in again.ended] == [(FinishReason.ERROR, message)]
        driver.core.audit()

    def test_d_never_starts_a_prefill_nor_p_a_decode(self) -> None:
        p, d = p_of(), d_of()
        for driver in (p, d):
            driver.reserve(driver.make(range(9), max_tokens=1))
        d.start_prefill(1)
        assert not p.tell(StartDecode(1, 3))
        assert not p.tell(ReceiveDone(1, 3)) and not p.tell(ReceiveDone(1, error="broken"))
        assert p.launch() is None and d.launch() is None
        assert p.core.snapshot().num_reserved == d.core.snapshot().num_reserved == 1


class TestAPausedEngine:
    @pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
    def test_takes_no_reservations(self, role: Role) -> None:
        driver = Driver(config(role=role))
        driver.tell(Pause(abort=False, reset_prefix_cache=False))
        assert driver.reserve(driver.make(range(9), max_tokens=1)) is None
        driver.tell(Resume())
        assert driver.reserve(driver.make(range(9), max_tokens=1)) is not None

    def test_has_forgotten_what_it_was_told_to(self) -> None:
        driver = d_of()
        driver.add(range(10), max_tokens=1)
        driver.run()
        driver.add(range(20, 30), max_tokens=1)
        driver.launch()  # will fill two blocks
        driver.tell(Pause(abort=False, reset_prefix_cache=True))
        driver.answer()
        driver.tell(Resume())
        for prompt in (range(12), range(20, 32)):
            reservation = driver.reserve(driver.make(prompt))
            assert reservation is not None and reservation.num_cached_tokens == 0

    def test_goes_on_later_with_what_was_started_meanwhile(self) -> None:
        driver = d_of()
        request = driver.make(range(9), max_tokens=4)
        driver.reserve(request)
        driver.tell(Pause(abort=False, reset_prefix_cache=False))
        driver.start_decode(request)
        assert driver.launch() is None
        driver.tell(Resume())
        driver.run()
        driver.assert_answered()


def test_a_reset_of_the_cache_leaves_reservations_alone() -> None:
    driver = d_of()
    request = driver.make(range(9), max_tokens=4)
    driver.reserve(request)
    assert driver.ask(ResetPrefixCache) == 0
    driver.start_decode(request)
    late = driver.add(range(9), max_tokens=2)
    driver.run()
    assert driver.history.started[late.uid] == 0  # what came in over the reset is not found
    driver.assert_answered()
