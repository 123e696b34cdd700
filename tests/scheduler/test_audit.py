"""Ownership of slots and blocks: the sums at once, every block and slot within one round of steps, all on demand.

Faults are planted behind the core's back. Whatever it notices it must name, with the owners.
"""

import re
from collections.abc import Callable

import numpy as np
import pytest

from headway.config import Role
from headway.kvcache import OwnershipError
from headway.request import RequestStatus
from headway.scheduler import Audit, AuditReport, LeasesRenewed, Owner
from headway.scheduler.audit import BLOCKS_PER_LOOK, SLOTS_PER_LOOK, STEPS_PER_LOOK
from headway.scheduler.state.leases import Holder, Lease
from headway.scheduler.state.slot_table import EMPTY
from headway.scheduler.state.state import State
from tests.scheduler.driver import Driver, config

ROUND = -(-39 // BLOCKS_PER_LOOK) * STEPS_PER_LOOK  # steps in which every block of the small pool is looked at
SLOT_ROUND = -(-4 // SLOTS_PER_LOOK) * STEPS_PER_LOOK


def set_status(slot: int, status: int) -> Callable[[State], None]:
    def fault(state: State) -> None:
        state.table.status[slot] = status

    return fault


def busy() -> Driver:
    """Two that decode for long: "r1" in slot 0, "r2" in slot 1."""
    driver = Driver(config(max_model_len=100, num_blocks=40))
    for start in (0, 20):
        driver.add(range(start, start + 7), max_tokens=60)
    for _ in range(3):
        driver.step()
    return driver


def noticed(driver: Driver, at_most: int) -> str:
    """What is said of it, by the result of one of so many steps. The driver's own full audit is left out."""
    for _ in range(at_most):
        batch = driver.core.schedule()
        assert batch is not None
        try:
            driver.core.apply(driver.device.run(batch))
        except OwnershipError as error:
            return str(error)
        driver.device.done(batch.step_id)
    raise AssertionError(f"not noticed in {at_most} steps")


class TestTheSums:
    def test_a_reference_without_an_owner_is_noticed_at_once(self) -> None:
        driver = busy()
        driver.state.pool.take(1)
        message = noticed(driver, 1)
        assert "7 references counted, 6 held by their owners" in message
        assert "request 'r1' (slot 0): 3, request 'r2' (slot 1): 3" in message

    def test_a_block_released_twice_is_noticed_at_once_and_its_owner_named(self) -> None:
        driver = busy()
        block = driver.state.table.blocks_of(0)[-1:].copy()
        driver.state.pool.release(block)
        message = noticed(driver, 1)
        assert f"block {block[0]} has 0 references, its owners hold 1; held by request 'r1' (slot 0)" in message

    def test_a_block_that_is_nowhere_is_noticed_at_once(self) -> None:
        driver = busy()
        driver.state.pool._num_free -= 1
        message = noticed(driver, 1)
        assert "is in 0 states instead of one" in message

    def test_a_failed_step_is_looked_at_too(self) -> None:
        driver = busy()
        driver.launch()
        driver.state.pool.take(1)
        with pytest.raises(OwnershipError, match="1 references counted, 0 held by their owners"):
            driver.answer(error="boom")


class TestTheRound:
    """Faults that leave the sums as they are."""

    def test_two_requests_with_one_block_are_noticed_and_named(self) -> None:
        driver = busy()
        table = driver.state.table
        table.block_tables[0, 0] = table.block_tables[1, 0]
        message = noticed(driver, ROUND)
        assert f"block {table.block_tables[1, 0]} has 1 references, its owners hold 2" in message
        assert "held by request 'r1' (slot 0), request 'r2' (slot 1)" in message

    def test_so_it_is_wherever_the_round_stands(self) -> None:
        for steps in range(0, ROUND, 3):
            driver = busy()
            for _ in range(steps):
                driver.step()
            table = driver.state.table
            table.block_tables[1, 1] = table.block_tables[0, 1]
            noticed(driver, ROUND)

    def test_a_block_that_is_evictable_and_referred_to(self) -> None:
        driver = busy()
        pool = driver.state.pool
        block = driver.state.table.blocks_of(0)[:1].copy()  # full, hence cached
        pool._evictable.push(block)
        pool._num_free -= 1  # so that the sum is right
        message = noticed(driver, ROUND)
        assert f"block {block[0]} is evictable and has 1 references" in message

    def test_a_block_with_fewer_than_no_references(self) -> None:
        driver = busy()
        pool = driver.state.pool
        pool._references[39] -= 1
        pool._references[driver.state.table.blocks_of(0)[0]] += 1
        message = noticed(driver, ROUND)
        assert "block 39 was released 1 times too often" in message

    def test_a_block_that_is_evictable_without_being_cached(self) -> None:
        driver = busy()
        pool = driver.state.pool
        pool._num_free -= 1
        pool._evictable.push(pool._free[pool._num_free : pool._num_free + 1].copy())
        message = noticed(driver, ROUND)
        assert "is evictable and not cached" in message

    def test_a_free_slot_that_holds_blocks(self) -> None:
        driver = busy()
        driver.state.table.num_blocks[3] = 1
        message = noticed(driver, SLOT_ROUND)
        assert message.startswith("slot 3 is free and holds 1 blocks")
        assert "request '(no request)' (slot 3): 1" in message

    def test_a_request_whose_handle_is_void(self) -> None:
        driver = busy()
        driver.state.table.generation[1] += 1
        driver.state.table.epoch += 1
        message = noticed(driver, SLOT_ROUND)
        assert "slot 1: the handle of request 'r2' is void" in message

    def test_nothing_is_noticed_where_nothing_is_wrong(self) -> None:
        driver = busy()
        for _ in range(2 * ROUND):
            driver.step()
        driver.run()
        driver.assert_answered()

    def test_a_block_whose_first_owner_has_left_belongs_to_those_who_share_it(self) -> None:
        driver = Driver(config(max_model_len=100, num_blocks=40))
        first = driver.add(range(9), max_tokens=3)
        driver.step()
        driver.add(range(9), max_tokens=60)
        driver.step()
        driver.abort(first.uid)
        driver.add(range(30, 40), max_tokens=60)  # moves into its slot
        for _ in range(ROUND):
            driver.step()
        driver.run()
        driver.assert_answered(driver.requests[2])


class TestOnDemand:
    def test_a_report_names_every_owner(self) -> None:
        driver = Driver(config(role=Role.PREFILL))
        sent, aborted, reserved = (driver.make(range(i, i + 9), max_tokens=1) for i in (0, 10, 20))
        for request in (sent, aborted):
            driver.reserve(request)
            driver.start_prefill(request.uid)
        driver.run()
        driver.abort(aborted.uid)
        driver.reserve(reserved)
        added = driver.add(range(30, 34), max_tokens=1)
        driver.add([1], max_tokens=1, preprocess=b"image")
        report = driver.ask(Audit)
        assert isinstance(report, AuditReport) and report.ok and not report.problems
        assert report.owners == (
            Owner("r3", "slot", 0, 3, reserved.uid),
            Owner("r4", "slot", 1, 1, added.uid),
            Owner("r1", "sender", None, 3, sent.uid, 0.0),
            Owner(f"uid {aborted.uid}", "sender", None, 3, aborted.uid, 0.0),
        )
        assert (report.num_requests, report.num_slots_used, report.num_leases) == (4, 2, 2)
        assert (report.num_blocks_referenced, report.num_blocks_free, report.num_blocks_evictable) == (10, 29, 0)

    def test_a_report_says_how_long_a_lease_has_lasted(self) -> None:
        driver = Driver(config(role=Role.PREFILL, lend_timeout=60.0))
        driver.wait(100.0)
        request = driver.lend(range(9))
        driver.run()
        driver.wait(2.5)
        driver.tell(LeasesRenewed((request.uid,)))
        driver.wait(4.0)
        (owner,) = driver.ask(Audit).owners
        assert owner == Owner(f"uid {request.uid}", "borrower", None, 3, request.uid, 6.5)

    def test_of_an_empty_engine_there_is_nothing_to_name(self) -> None:
        report = Driver(config()).ask(Audit)
        assert report.ok and report.owners == () and report.num_blocks_free == 39

    def test_is_a_query_and_does_not_stop_the_engine_that_is_asked(self) -> None:
        driver = busy()
        lost = driver.state.pool.take(1)
        report = driver.core.ask(Audit(1))
        assert isinstance(report, AuditReport) and not report.ok
        assert report.problems[0] == f"block {lost[0]} has 1 references, its owners hold 0; held by no owner"

    @pytest.mark.parametrize(
        ("plant", "problem"),
        [
            (set_status(0, EMPTY), "slot 0 has status EMPTY, but its occupant is Entry"),
            (
                lambda s: s.table.status.__setitem__(3, RequestStatus.WAITING),
                "slot 3 has status WAITING, but its occupant is None",
            ),
            (
                lambda s: s.table.status.__setitem__(0, RequestStatus.WAITING),
                "slot 0 has status WAITING, but its occupant is Entry",
            ),
            (lambda s: s.slots._free.pop(), "2 slots have an occupant, 0 are in quarantine and 1 are free, of 4"),
            (lambda s: s.entries.pop(2), "2 requests in slots + 0 without one are not 1"),
            (lambda s: s.population.__setitem__(0, 5), "are not 2 in all"),
            (
                lambda s: s.leases.begin(1, Lease(Holder.SENDER, np.zeros(0, np.int32))),
                "a request that has a slot has lent its blocks",
            ),
            (lambda s: s.table.generation.__setitem__(0, 9), "slot 0: the handle of request 'r1' is void"),
        ],
    )
    def test_says_what_is_wrong_with_slots_and_requests(self, plant: object, problem: str) -> None:
        driver = busy()
        plant(driver.state)  # type: ignore[operator]
        with pytest.raises(OwnershipError, match=re.escape(problem)):
            driver.core.audit()

    def test_a_lent_block_that_others_hold_too_is_named_with_both(self) -> None:
        driver = Driver(config(role=Role.PREFILL))
        request = driver.make(range(9), max_tokens=1)
        driver.reserve(request)
        driver.start_prefill(request.uid)
        driver.run()
        other = driver.make(range(20, 29), max_tokens=1)
        driver.reserve(other)
        table = driver.state.table
        lease = driver.state.leases.of(request.uid, Holder.SENDER)
        assert lease is not None
        table.block_tables[0, 0] = lease.blocks[0]
        with pytest.raises(OwnershipError, match=r"held by request 'r2' \(slot 0\), sender of request 'r1'"):
            driver.core.audit()

    def test_a_long_list_of_owners_is_cut(self) -> None:
        driver = Driver(config(max_num_seqs=40, max_num_batched_tokens=64, num_blocks=60))
        for i in range(35):
            driver.add([i], max_tokens=9)
        driver.step()
        driver.state.pool.take(1)
        with pytest.raises(OwnershipError, match=r"request 'r32' \(slot 31\): 1 and 3 more"):
            driver.core.audit()
