"""Requests that pull the KV of their prompt, or lend it; what a connector may still write to, and what D may read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headway.config import Role
from headway.request import Request
from headway.scheduler import (
    Clear,
    ConsumeLease,
    LeasesEnded,
    LeasesRenewed,
    PreemptAll,
    ReceiveDone,
    ResetPrefixCache,
    Resume,
    StartDecode,
    StaticAllocation,
)
from headway.scheduler.effects import Lending
from headway.simulation.digests import answer_of
from tests.scheduler.driver import Driver, config


def d_of(depth: int = 1, **changes: object) -> Driver:
    return Driver(config(role=Role.DECODE, **changes), depth=depth)


def p_of(depth: int = 1, **changes: object) -> Driver:
    return Driver(config(role=Role.PREFILL, **changes), depth=depth)


def pulling(driver: Driver, length: int = 9, **options: object) -> Request:
    """A request whose pull is handed out."""
    request = driver.pull(range(length), **options)  # type: ignore[arg-type]
    driver.launch()
    assert request.uid in driver.pulls
    return request


def num_quarantined(driver: Driver) -> int:
    return driver.core.snapshot().num_blocks_quarantined


def states(driver: Driver) -> tuple[int, int]:
    """Leases of borrowers: unclaimed, claimed."""
    snapshot = driver.core.snapshot()
    return snapshot.num_leases_unclaimed, snapshot.num_leases_claimed


def ends(driver: Driver) -> tuple[int, ...]:
    """Leases of borrowers that were consumed, released, expired, revoked."""
    return driver.core.snapshot()[-4:]


def num_lent(driver: Driver) -> int:
    return driver.core.snapshot().num_blocks_lent


class TestAPulledPrompt:
    @pytest.mark.parametrize("role", [Role.DECODE, Role.MIXED])
    @pytest.mark.parametrize("allocation", [None, StaticAllocation()])
    def test_is_not_computed_and_its_request_decodes_from_the_token_of_p(
        self, role: Role, allocation: StaticAllocation | None
    ) -> None:
        driver = Driver(config(role=role), allocation)
        request = pulling(driver)
        pull = driver.pulls[request.uid]
        assert (pull.request, len(pull.blocks), pull.num_cached_tokens) == (request, 3, 0)
        snapshot = driver.core.snapshot()
        assert (snapshot.num_receiving, snapshot.num_waiting, snapshot.num_running) == (1, 0, 0)
        assert not snapshot.has_work and driver.launch() is None
        effects = driver.received(request)
        assert effects.started == [(request.uid, 0)]
        assert driver.history.tokens[request.uid] == answer_of(request)[0][:1]
        batch = driver.launch()
        assert batch is not None and (batch.positions.tolist(), batch.num_new_tokens.tolist()) == ([9], [1])
        driver.run()
        driver.assert_answered()
        driver.assert_empty()

    def test_without_a_token_of_p_has_its_last_position_computed_here(self) -> None:
        driver = d_of()
        request = pulling(driver)
        driver.received(request, with_token=False)
        assert driver.history.tokens[request.uid] == []
        batch = driver.launch()
        assert batch is not None and (batch.positions.tolist(), batch.num_new_tokens.tolist()) == ([8], [1])
        driver.run()
        driver.assert_answered()
        driver.assert_empty()

    def test_is_found_by_others_as_soon_as_it_is_there(self) -> None:
        driver = d_of()
        driver.received(pulling(driver, 8))
        late = driver.add([*range(8), 30], max_tokens=2)
        driver.run()
        assert driver.history.started[late.uid] == 8
        driver.assert_answered()

    def test_is_not_found_before_it_is_there(self) -> None:
        driver = d_of()
        request = pulling(driver)
        other = driver.add(range(9), max_tokens=2)
        driver.step()
        assert driver.history.started[other.uid] == 0
        driver.received(request)
        driver.run()
        driver.assert_answered()
        driver.assert_empty()

    def test_has_a_full_last_block_that_is_found_only_after_the_step_that_computes_its_last_position(self) -> None:
        driver = d_of()
        driver.received(pulling(driver, 8), with_token=False)
        assert len(driver.state.prefix) == 1
        driver.launch()
        driver.answer(error="boom")
        assert len(driver.state.prefix) == 1
        late = driver.add([*range(8), 30], max_tokens=2)
        driver.run()
        assert driver.history.started[late.uid] == 4
        driver.assert_answered(late)

    def test_keeps_the_blocks_that_are_cached_here_and_pulls_the_rest(self) -> None:
        driver = d_of(num_blocks=9)
        driver.add(range(10), max_tokens=1)
        driver.run()
        request = pulling(driver, 14, max_tokens=4)
        pull = driver.pulls[request.uid]
        assert (len(pull.blocks), pull.num_cached_tokens) == (4, 8)
        driver.add(range(40, 48), max_tokens=9)  # wants blocks: the cached ones are not evicted for it
        for _ in range(4):
            driver.step()
        driver.received(request)
        assert driver.history.started[request.uid] == 8
        driver.run()
        driver.assert_answered()
        driver.assert_empty()

    def test_whose_blocks_are_all_here_but_the_one_of_the_last_token_is_not_pulled(self) -> None:
        driver = d_of()
        driver.add(range(10), max_tokens=1)
        driver.run()
        request = driver.pull(range(10), max_tokens=4)
        driver.run()
        assert driver.pulls == {} and driver.history.started[request.uid] == 8
        driver.assert_answered()

    def test_of_one_token_is_not_pulled(self) -> None:
        driver = d_of()
        driver.pull([3], max_tokens=4)
        driver.run()
        assert driver.pulls == {}
        driver.assert_answered()

    @pytest.mark.parametrize("num_cached", [0, 8])
    def test_that_does_not_come_is_computed_here(self, num_cached: int) -> None:
        driver = d_of()
        if num_cached:
            driver.add(range(9), max_tokens=1)
            driver.run()
        request = pulling(driver, 14)
        driver.device.scribble(driver.pulls[request.uid].blocks, num_cached)
        assert not driver.receive_done(request, error="P is gone").ended
        driver.run()
        assert driver.history.started[request.uid] == num_cached
        driver.assert_answered()
        driver.assert_empty()

    def test_may_be_over_with_its_first_token(self) -> None:
        first = answer_of(d_of().make(range(9)))[0][0]
        for options, reason in (({"max_tokens": 1}, "length"), ({"stop_token_ids": (first,)}, "stop")):
            driver = d_of()
            effects = driver.received(pulling(driver, **options))
            assert [str(end.reason) for end in effects.ended] == [reason]
            assert driver.launch() is None
            driver.assert_answered()
            driver.assert_empty()

    @pytest.mark.parametrize("steps", range(4))
    @pytest.mark.parametrize("with_token", [True, False])
    def test_is_computed_here_after_a_preemption(self, steps: int, with_token: bool) -> None:
        driver = d_of(depth=2)
        request = pulling(driver, max_tokens=9)
        driver.received(request, with_token=with_token)
        for _ in range(steps):
            driver.step()
        driver.tell(PreemptAll())
        driver.run()
        assert driver.pulls == {}
        driver.assert_answered()
        driver.assert_empty()

    def test_is_pulled_only_once_no_step_in_flight_may_write_to_its_blocks(self) -> None:
        driver = d_of(depth=2, max_num_seqs=1, num_blocks=9)
        former = driver.add(range(40, 58), max_tokens=4)  # 5 blocks of 8
        driver.launch()
        driver.abort(former.uid)  # its step is in flight, and writes to these blocks
        request = driver.pull(range(20), max_tokens=4)
        assert driver.launch() is None
        assert driver.core.snapshot().num_receiving == 1 and driver.pulls == {}
        driver.answer()
        assert list(driver.pulls) == [request.uid]
        driver.received(request)
        driver.run()
        driver.assert_answered(request)
        driver.assert_empty()

    def test_is_started_by_its_connector_alone(self) -> None:
        driver = d_of()
        request = pulling(driver)
        assert not driver.tell(StartDecode(request.uid, 3))
        assert driver.core.snapshot().num_receiving == 1


def given_up(driver: Driver, request: Request) -> None:
    assert driver.ended(request) is None
    assert driver.core.snapshot().num_receiving == 0


def aborted(driver: Driver, request: Request) -> None:
    assert str(driver.ended(request)).startswith("abort")


# What befalls a request whose KV is on the way, and what is true of it then.
DEEDS: dict[str, tuple[Callable[[Driver, Request], object], Callable[[Driver, Request], None]]] = {
    "time": (lambda driver, _: driver.wait(60.0), given_up),
    "pause, reset": (lambda driver, _: driver.pause(reset=True), given_up),
    "lost device": (lambda driver, _: driver.lose_device(), given_up),
    "abort": (lambda driver, request: driver.abort(request.uid), aborted),
    "clear": (lambda driver, _: driver.tell(Clear()), aborted),
    "pause, abort": (lambda driver, _: driver.pause("abort"), aborted),
}


@pytest.mark.parametrize("deed", DEEDS)
class TestAPullThatIsNotWantedAnyMore:
    def test_keeps_its_blocks_until_its_connector_has_stopped(self, deed: str) -> None:
        driver = d_of(num_blocks=9)
        request = pulling(driver)
        blocks = driver.pulls[request.uid].blocks
        befalls, is_true = DEEDS[deed]
        befalls(driver, request)
        is_true(driver, request)
        assert driver.stopped == [request.uid] and num_quarantined(driver) == 3
        assert driver.core.slots.num_free_slots() == 4
        assert [(owner.kind, owner.num_blocks) for owner in driver.core.audit_report().owners] == [("receiver", 3)]
        driver.tell(Resume())
        newcomer = driver.add(range(40, 50), max_tokens=3)
        for _ in range(3):
            driver.step()
            driver.device.scribble(blocks, 0)  # the connector writes on, into blocks of no request
        driver.run()
        driver.assert_answered(newcomer)
        before = driver.core.snapshot()
        effects = driver.receive_done(request, error="stopped")
        assert not effects and num_quarantined(driver) == 0
        assert driver.core.snapshot().num_blocks_free == before.num_blocks_free + 3
        if is_true is given_up:
            driver.assert_answered(request)
        driver.assert_empty()

    def test_gives_its_blocks_back_at_once_if_no_connector_has_heard_of_it(self, deed: str) -> None:
        driver = d_of(depth=2)
        driver.add(range(40, 46), max_tokens=12)
        driver.launch()
        request = driver.pull(range(9))
        driver.launch()
        assert driver.core.snapshot().num_receiving == 1 and driver.pulls == {}
        befalls, is_true = DEEDS[deed]
        befalls(driver, request)
        is_true(driver, request)
        driver.tell(Resume())
        driver.run()
        assert driver.pulls == {} and driver.stopped == [] and num_quarantined(driver) == 0
        driver.assert_empty()

    def test_keeps_blocks_that_others_share_readable(self, deed: str) -> None:
        driver = d_of()
        driver.add(range(9), max_tokens=1)
        driver.run()
        request = pulling(driver, 14)
        sharing = driver.add([*range(8), 30], max_tokens=6)
        driver.step()
        befalls, _ = DEEDS[deed]
        befalls(driver, request)
        driver.device.scribble(driver.pulls[request.uid].blocks, 8)
        driver.tell(Resume())
        driver.run()
        if deed in ("time", "abort", "pause, reset"):
            driver.assert_answered(sharing)
        driver.assert_empty()


def test_a_pull_goes_on_while_the_engine_is_paused_without_a_reset() -> None:
    driver = d_of()
    request = pulling(driver)
    driver.pause()
    driver.received(request)
    assert driver.launch() is None
    driver.tell(Resume())
    driver.run()
    driver.assert_answered()


def test_a_reset_of_the_cache_leaves_pulls_alone_and_hides_what_they_bring() -> None:
    driver = d_of()
    request = pulling(driver)
    driver.ask(ResetPrefixCache)
    driver.received(request)
    late = driver.add(range(9), max_tokens=2)
    driver.run()
    assert driver.history.started[late.uid] == 0
    driver.assert_answered()


class TestTheLimitOfBlocksThatReceive:
    def test_makes_further_pulls_wait_and_no_other_request(self) -> None:
        driver = d_of(max_receiving_blocks=5)
        first = pulling(driver)
        second = driver.pull(range(20, 29))
        other = driver.add(range(40, 46), max_tokens=3)
        for _ in range(4):
            driver.step()
        driver.assert_answered(other)
        assert list(driver.pulls) == [first.uid] and driver.core.snapshot().num_waiting == 1
        driver.received(first)
        driver.step()
        assert list(driver.pulls) == [second.uid]
        driver.received(second)
        driver.run()
        driver.assert_answered()
        driver.assert_empty()

    def test_is_granted_in_the_order_of_the_line(self) -> None:
        driver = d_of(max_receiving_blocks=8)
        first = pulling(driver)  # 3 blocks
        large = driver.pull(range(40, 63), max_tokens=2)  # 6 blocks: not beside the first
        small = driver.pull(range(80, 89), max_tokens=2)  # 3 blocks: it would have a place, and others after it
        driver.launch()
        assert list(driver.pulls) == [first.uid]
        driver.received(first)
        driver.step()
        assert list(driver.pulls) == [large.uid]
        driver.received(large)
        driver.step()
        assert list(driver.pulls) == [small.uid]
        driver.received(small)
        driver.run()
        driver.assert_answered()

    def test_counts_what_a_connector_may_still_write_to(self) -> None:
        driver = d_of(max_receiving_blocks=5)
        first = pulling(driver)
        driver.abort(first.uid)
        second = driver.pull(range(20, 29))
        driver.launch()
        assert second.uid not in driver.pulls and driver.core.snapshot().num_waiting == 1
        driver.receive_done(first, error="stopped")
        driver.launch()
        assert list(driver.pulls) == [second.uid]

    def test_never_shuts_out_a_prompt_that_is_longer_than_it(self) -> None:
        driver = d_of(max_receiving_blocks=0)
        for start in (0, 20):
            request = driver.pull(range(start, start + 9))
            driver.launch()
            driver.received(request)
        driver.run()
        driver.assert_answered()


class TestALentPrompt:
    def test_is_lent_chunk_by_chunk_each_after_its_step_has_succeeded(self) -> None:
        driver = p_of(depth=2, max_num_batched_tokens=4)
        request = driver.lend(range(10))
        driver.launch()
        driver.launch()
        assert driver.lending == []
        blocks = driver.state.table.blocks_of(0).tolist()
        driver.answer()
        (first,) = driver.lending
        assert first == Lending(request.uid, "r1", first.blocks, num_tokens=4, generation=0)
        assert first.blocks.tolist() == blocks[:1], "the others may still be exchanged for computed ones"
        driver.run()
        assert [(one.num_tokens, one.token) for one in driver.lending] == [
            (4, None),
            (8, None),
            (10, answer_of(request)[0][0]),
        ]

    def test_shows_only_blocks_that_are_not_exchanged_any_more(self) -> None:
        """A prompt skips blocks that another request has computed meanwhile: its block table changes behind them."""
        driver = Driver(config(max_num_batched_tokens=4, num_blocks=64), depth=1)
        other = driver.pull(range(17))
        driver.launch()
        request = driver.lend(range(17))
        driver.step()
        driver.step()
        driver.received(other)
        driver.run()
        mine = [one for one in driver.lending if one.uid == request.uid]
        assert mine[-1].token is not None
        for one in mine:
            assert mine[-1].blocks.tolist()[: len(one.blocks)] == one.blocks.tolist()
            assert one.num_tokens <= len(one.blocks) * 4

    def test_begins_no_lease_if_d_has_let_go_of_it_before(self) -> None:
        driver = p_of(max_num_batched_tokens=4)
        request = driver.lend(range(10))
        driver.step()
        driver.tell(LeasesEnded((request.uid,)))
        driver.run()
        assert driver.ended(request) == "length" and [one.num_tokens for one in driver.lending] == [4]
        driver.assert_empty()

    def test_is_not_lent_if_its_step_fails(self) -> None:
        driver = p_of(max_num_batched_tokens=4)
        request = driver.lend(range(10))
        driver.step()
        driver.launch()
        driver.answer(error="boom")
        assert [one.num_tokens for one in driver.lending] == [4]
        assert driver.ended(request) == "error: boom"
        driver.assert_empty()

    @pytest.mark.parametrize("role", [Role.PREFILL, Role.MIXED])
    def test_ends_its_request_with_the_first_token_and_leaves_its_blocks_readable(self, role: Role) -> None:
        driver = Driver(config(role=role))
        request = driver.lend(range(9))
        driver.run()
        driver.assert_answered()
        assert driver.lending[-1].token == answer_of(request)[0][0]
        assert num_lent(driver) == 3 and driver.core.slots.num_free_slots() == 4
        assert [(owner.name, owner.kind) for owner in driver.core.audit_report().owners] == [("uid 1", "borrower")]
        for i in range(3):
            driver.add(range(40 + i, 60 + i), max_tokens=1)
        driver.run()
        driver.device.prompt_at(request, driver.lending[-1].blocks, 9)

    def test_whose_lease_is_consumed_was_lent_all_the_time_once(self) -> None:
        driver = p_of()
        request = driver.lend(range(9))
        driver.run()
        assert consumed(driver, request) is True
        assert consumed(driver, request) is False
        assert num_lent(driver) == 0
        driver.assert_empty()

    def test_has_another_generation_after_a_preemption(self) -> None:
        driver = Driver(config(max_num_batched_tokens=4))
        request = driver.lend(range(10))
        driver.step()
        driver.tell(PreemptAll())
        driver.run()
        assert {one.generation for one in driver.lending} == {0, 1}
        assert driver.lending[-1].generation == 1
        assert consumed(driver, request, generation=0) is False
        assert num_lent(driver) == 3  # it is not D's lease that this names
        assert consumed(driver, request, generation=1) is True
        driver.assert_empty()

    def test_of_an_unknown_request_is_not_there(self) -> None:
        driver = p_of()
        assert driver.ask(lambda reply: ConsumeLease(reply, 7, 0)) is False

    def test_is_not_lent_any_more_once_its_request_was_aborted(self) -> None:
        driver = p_of(depth=2, max_num_batched_tokens=4)
        request = driver.lend(range(10))
        driver.launch()
        driver.answer()
        driver.launch()
        driver.abort(request.uid)
        driver.run()
        assert [one.num_tokens for one in driver.lending] == [4] and num_lent(driver) == 0
        assert consumed(driver, request) is False
        driver.assert_empty()


def consumed(driver: Driver, request: Request, generation: int = 0) -> object:
    return driver.ask(lambda reply: ConsumeLease(reply, request.uid, generation))


class TestALease:
    def lent(self, driver: Driver, *starts: int) -> list[Request]:
        """Prompts of 3 blocks whose leases have begun, one after the other."""
        requests = []
        for start in starts:
            requests.append(driver.lend(range(start, start + 9)))
            driver.run()
        return requests

    def test_ends_by_the_clock_and_is_void_then(self) -> None:
        driver = p_of(lend_timeout=5.0)
        (request,) = self.lent(driver, 0)
        assert driver.core.next_deadline == 5.0
        assert driver.wait(4.9).revoked == []
        assert driver.wait(0.1).revoked == [request.uid]
        assert consumed(driver, request) is False
        driver.assert_empty()

    def test_lasts_longer_each_time_it_is_renewed(self) -> None:
        driver = p_of(lend_timeout=5.0)
        (request,) = self.lent(driver, 0)
        for _ in range(3):
            driver.wait(4.0)
            assert not driver.tell(LeasesRenewed((77, request.uid)))
            assert driver.core.next_deadline == driver.now + 5.0
        assert driver.wait(5.0).revoked == [request.uid]

    def test_ends_when_d_does_not_want_it_any_more(self) -> None:
        driver = p_of()
        (request,) = self.lent(driver, 0)
        assert not driver.tell(LeasesEnded((77, request.uid, request.uid)))
        assert consumed(driver, request) is False
        driver.assert_empty()

    def test_is_counted_by_its_state_and_then_by_its_end(self) -> None:
        driver = p_of(lend_timeout=5.0, max_lent_blocks=12)
        consumed_one, released, expired, revoked = self.lent(driver, 0, 10, 20, 30)
        renewed = LeasesRenewed((consumed_one.uid, released.uid, 77))
        for _ in range(2):  # a claim counts once
            driver.tell(renewed)
        assert states(driver) == (2, 2)
        assert consumed(driver, consumed_one) is True and ends(driver) == (1, 0, 0, 0)
        driver.tell(LeasesEnded((released.uid, released.uid, 77)))
        assert states(driver) == (2, 0) and ends(driver) == (1, 1, 0, 0)
        driver.wait(4.0)
        driver.tell(LeasesRenewed((revoked.uid,)))
        driver.wait(1.0)
        assert driver.revoked == [expired.uid]
        assert states(driver) == (0, 1) and ends(driver) == (1, 1, 1, 0)
        driver.tell(Clear())
        assert states(driver) == (0, 0) and ends(driver) == (1, 1, 1, 1)
        assert consumed(driver, revoked) is False and ends(driver) == (1, 1, 1, 1)

    def test_above_the_cap_the_oldest_one_that_no_d_has_claimed_is_revoked(self) -> None:
        driver = p_of(max_lent_blocks=6)
        claimed, oldest = self.lent(driver, 0, 10)
        driver.tell(LeasesRenewed((claimed.uid,)))
        self.lent(driver, 20)
        assert driver.revoked == [oldest.uid] and num_lent(driver) == 6
        assert consumed(driver, oldest) is False and consumed(driver, claimed) is True

    def test_above_the_cap_claimed_ones_stay(self) -> None:
        driver = p_of(max_lent_blocks=6)
        claimed = self.lent(driver, 0, 10)
        driver.tell(LeasesRenewed(tuple(request.uid for request in claimed)))
        (newest,) = self.lent(driver, 20)
        assert driver.revoked == [newest.uid]
        assert [consumed(driver, request) for request in claimed] == [True, True]

    @pytest.mark.parametrize(
        "deed",
        [
            lambda driver: driver.tell(Clear()),
            lambda driver: driver.pause(reset=True),
            lambda driver: driver.lose_device(),
        ],
    )
    def test_is_revoked_where_its_kv_is_gone_or_out_of_date(self, deed: Callable[[Driver], object]) -> None:
        driver = p_of()
        request, other = self.lent(driver, 0, 10)
        deed(driver)
        assert driver.revoked == [request.uid, other.uid]
        assert consumed(driver, request) is False and num_lent(driver) == 0
        driver.assert_empty()

    @pytest.mark.parametrize(
        "deed",
        [
            lambda driver, uid: driver.pause(),
            lambda driver, uid: driver.pause("abort"),
            lambda driver, uid: driver.abort(uid),
            lambda driver, uid: driver.tell(ReceiveDone(uid, error="of another role")),
            lambda driver, uid: driver.tell(PreemptAll()),
        ],
    )
    def test_outlives_everything_else(self, deed: Callable[[Driver, int], object]) -> None:
        driver = p_of()
        (request,) = self.lent(driver, 0)
        deed(driver, request.uid)
        assert driver.revoked == [] and num_lent(driver) == 3
        assert consumed(driver, request) is True

    def test_of_a_sender_is_ended_by_the_sender_alone(self) -> None:
        driver = p_of()
        request = driver.make(range(9), max_tokens=1)
        driver.reserve(request)
        driver.start_prefill(request.uid)
        driver.run()
        assert consumed(driver, request) is False
        for message in (LeasesEnded((request.uid,)), ReceiveDone(request.uid), LeasesRenewed((request.uid,))):
            assert not driver.tell(message)
        assert driver.core.next_deadline == 60.0
        driver.sent(request.uid)
        driver.assert_answered()
        driver.assert_empty()
