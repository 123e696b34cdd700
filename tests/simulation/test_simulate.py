"""Deterministic simulation: runs that hold, runs that repeat, and a simulator that notices when the core is broken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headway.cli import main
from headway.config import Role
from headway.kvcache import BlockPool, PrefixCache
from headway.request import FinishReason
from headway.scheduler import Batch, ConsumeLease, Effects, Scheduler
from headway.scheduler.batch import IntArray
from headway.scheduler.handlers.clock import Clock
from headway.scheduler.handlers.drafts import Drafts
from headway.scheduler.handlers.requests import Requests
from headway.scheduler.handlers.results import Results
from headway.scheduler.handlers.transfers import Transfers
from headway.scheduler.passes.admissions import Admissions
from headway.scheduler.passes.decode_rows import DecodeRows
from headway.scheduler.passes.steps import Chunk, LaunchedStep
from headway.scheduler.state.deadlines import Deadlines
from headway.scheduler.state.encoder_cache import EncoderCache
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.leases import Holder
from headway.scheduler.state.moves import Moves
from headway.scheduler.state.slot_pool import SlotPool
from headway.scheduler.state.state import State
from headway.scheduler.state.waiting_queue import WaitingQueue
from headway.simulation.events import EVENTS, Event, EventTrace, read_events
from headway.simulation.minimise import minimise
from headway.simulation.setting import Setting
from headway.simulation.simulate import Run, run_seed, run_trace
from headway.simulation.simulation import OF_THE_CONNECTOR


class TestTheCore:
    @pytest.mark.parametrize("first", range(0, 30, 5))
    def test_keeps_its_promises_whatever_happens(self, first: int) -> None:
        for seed in range(first, first + 5):
            run = run_seed(seed, 600)
            assert run.violation is None, f"seed {seed}: {run.violation}"

    @pytest.mark.parametrize("first", range(1000, 1010, 5))
    def test_brings_everything_to_an_end_once_the_faults_stop(self, first: int) -> None:
        for seed in range(first, first + 5):
            run = run_seed(seed, 500, "liveness")
            assert run.violation is None, f"seed {seed}: {run.violation}"
            assert run.trace.events[-1] == Event("calm")

    @pytest.mark.parametrize("first", range(0, 20, 5))
    def test_keeps_its_promises_to_equal_prompts_while_the_first_of_them_is_computed(self, first: int) -> None:
        counts: Counter[str] = Counter()
        for seed in range(first, first + 5):
            run = run_seed(seed, 400, traffic="siblings")
            assert run.violation is None, f"seed {seed}: {run.violation}"
            counts += Counter(run.counts)
        assert counts["tokens found in the prefix cache"] > counts["tokens generated"]
        assert counts["sent back by a failed step"] and counts["preemptions"] and counts["reset_cache"]

    @pytest.mark.parametrize("first", range(0, 12, 6))
    def test_reports_every_position_of_a_prompt_once_and_in_order(self, first: int) -> None:
        counts: Counter[str] = Counter()
        for seed in range(first, first + 6):
            run = run_seed(seed, 400, traffic="judged")
            assert run.violation is None, f"seed {seed}: {run.violation}"
            counts += Counter(run.counts)
        assert counts["preemptions"] and counts["sent back by a failed step"]

    @pytest.mark.parametrize("first", range(0, 24, 6))
    def test_keeps_its_promises_while_kv_moves_between_engines(self, first: int) -> None:
        for seed in range(first, first + 6):
            run = run_seed(seed, 600, traffic="transfers")
            assert run.violation is None, f"seed {seed}: {run.violation}"


class TestRuns:
    def test_are_not_dull(self) -> None:
        moves = set(OF_THE_CONNECTOR) - {"received"}
        counts = dict.fromkeys(EVENTS.keys() - moves, 0)
        for seed in range(10):
            for name, count in run_seed(seed, 600).counts.items():
                counts[name] = counts.get(name, 0) + count
        assert min(counts[name] for name in EVENTS.keys() - moves) > 0, counts
        assert counts["reservations stopped"] > 3
        assert counts["requests completed"] > 300 and counts["tokens found in the prefix cache"] > 300
        for kind in ("preemptions", "failed steps", "wrong token counts", "lost steps", "slow steps", "timeouts"):
            assert counts[kind] > 3, counts

    def test_of_transfers_are_not_dull(self) -> None:
        counts: Counter[str] = Counter()
        for seed in range(20):
            counts += Counter(run_seed(seed, 600, "liveness", traffic="transfers").counts)
        assert min(counts[name] for name in EVENTS) > 0, counts
        for kind in ("pulls ok", "pulls ok, and P's token", "pulls failed", "pulls stopped", "reservations stopped"):
            assert counts[kind] > 10, counts
        for kind in ("chunks lent", "leases consumed", "leases found void", "leases revoked", "timeouts"):
            assert counts[kind] > 10, counts

    def test_of_one_seed_are_the_same_bit_for_bit(self) -> None:
        one, again, other = run_seed(7, 600), run_seed(7, 600), run_seed(8, 600)
        assert (one.trace, one.decisions, one.counts) == (again.trace, again.decisions, again.counts)
        assert one.decisions != other.decisions

    def test_do_not_depend_on_the_hashes_of_the_process(self) -> None:
        rows = []
        for hash_seed in ("1", "2"):
            command = [sys.executable, "-m", "headway.cli", "simtest", "--seeds", "3..6", "--steps", "400", "--json"]
            env = {**os.environ, "PYTHONHASHSEED": hash_seed}
            rows.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
        assert len(rows[0].splitlines()) == 4
        assert rows[0] == rows[1]

    def test_are_run_again_from_their_traces(self, tmp_path: Path) -> None:
        run = run_seed(5, 500)
        (tmp_path / "trace").write_text(f"# a comment\n\n{run.trace}\n")
        again = run_trace(read_events(tmp_path / "trace"))
        assert (again.trace, again.decisions) == (run.trace, run.decisions)

    def test_any_part_of_a_trace_is_a_trace(self) -> None:
        run = run_seed(11, 400)
        for start in range(8):
            part = EventTrace(run.trace.setting, (*run.trace.events[start::3], Event("calm")))
            assert run_trace(part).violation is None
        backwards = EventTrace(run.trace.setting, run.trace.events[::-1])
        assert run_trace(backwards).violation is None

    def test_are_set_up_in_every_way_there_is(self) -> None:
        settings = [Setting.of_seed(seed) for seed in range(200)]
        assert {setting.config.role for setting in settings} == set(Role)
        assert {(setting.static, setting.depth) for setting in settings} == {(s, d) for s in (0, 1) for d in (1, 2)}
        for name in ("enable_prefix_caching", "enable_output_caching", "deterministic", "enable_priority_preemption"):
            assert {getattr(setting.config, name) for setting in settings} == {False, True}
        assert {setting.config.reserve for setting in settings} == {"peak", "blocks", "none"}
        assert {setting.config.victim for setting in settings} == {"least-waste", "last-in-line"}
        assert any(setting.config.num_speculative_tokens for setting in settings)
        assert {setting.config.quarantine_slots for setting in settings} == {False, True}


# -- a broken core is found out --------------------------------------------------------------------------------------


def first_violation(rules: str, start: int = 0) -> Run:
    """The first run that breaks a rule, from this seed on; it must be one of these rules."""
    for seed in range(start, start + 60):
        run = run_seed(seed, 600)
        if run.violation is not None:
            assert re.fullmatch(rules, run.violation.rule), run.violation
            return run
    raise AssertionError("60 seeds, and it was not noticed")


Break = Callable[[pytest.MonkeyPatch], None]


def a_late_result_counts_for_the_next_owner_of_the_slot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DecodeRows, "still_owned", lambda self, table: None)


def a_chunk_counts_though_its_request_was_preempted_since(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chunk, "is_current", property(lambda self: self.entry.handle is not None))


def what_a_failed_step_computed_is_published(patch: pytest.MonkeyPatch) -> None:
    fail = Results._fail

    def publish_and_fail(self: Results, step: LaunchedStep, error: str, effects: Effects) -> None:
        for chunk in step.chunks:
            if chunk.is_current:
                self._state.store(chunk.entry, chunk.start + chunk.count)
        fail(self, step, error, effects)

    patch.setattr(Results, "_fail", publish_and_fail)


def a_block_is_not_released(patch: pytest.MonkeyPatch) -> None:
    release = BlockPool.release
    patch.setattr(BlockPool, "release", lambda self, blocks: release(self, blocks[:-1] if len(blocks) > 3 else blocks))


def a_request_ends_twice(patch: pytest.MonkeyPatch) -> None:
    end_all = Requests.end

    def end_twice(self: Requests, uids: Iterable[int], reason: FinishReason, effects: Effects) -> None:
        end_all(self, uids, reason, effects)
        effects.ended += effects.ended

    patch.setattr(Requests, "end", end_twice)


def an_abort_is_for_those_who_run(patch: pytest.MonkeyPatch) -> None:
    end_all = Requests.end

    def end_running(self: Requests, uids: Iterable[int], reason: FinishReason, effects: Effects) -> None:
        running = [uid for uid in uids if uid in self._state.entries and self._state.entries[uid].handle is not None]
        end_all(self, running, reason, effects)

    patch.setattr(Requests, "end", end_running)


def tenants_share_a_cache(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrefixCache, "root", staticmethod(lambda salt: bytes(9)))


def one_image_is_as_good_as_another(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Moves, "_media_keys", lambda self, request: {})


def a_reset_forgets_only_what_is_cached_by_then(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrefixCache, "orphan", lambda self: self.root(None))


def the_cache_outlives_its_device(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrefixCache, "clear", lambda self: 0)


def images_outlive_the_step_that_failed_to_encode_them(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EncoderCache, "forget_encoded", lambda self, digests: None)


def a_preempted_request_is_lost(patch: pytest.MonkeyPatch) -> None:
    push = WaitingQueue.push
    patch.setattr(WaitingQueue, "push", lambda self, e: None if e.num_preemptions else push(self, e))


def blocks_are_given_away_while_they_are_sent(patch: pytest.MonkeyPatch) -> None:
    lend = Moves.lend

    def lend_nothing(self: Moves, entry: Entry, outcome: FinishReason, until: float) -> IntArray:
        blocks = lend(self, entry, outcome, until)
        lease = self._state.leases.of(entry.uid, Holder.SENDER)
        assert lease is not None
        self.end_lease(entry.uid)
        self._state.leases.begin(entry.uid, lease._replace(blocks=blocks[:0]))
        return blocks

    patch.setattr(Moves, "lend", lend_nothing)


def no_deadline_ever_expires(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Deadlines, "expired", lambda self, now: [])


def who_waits_for_steps_is_answered_by_the_first(patch: pytest.MonkeyPatch) -> None:
    def answer_all(self: Results, effects: Effects) -> None:
        effects.awaited += [reply for _, reply in self._waiting]
        self._waiting = []

    patch.setattr(Results, "_answer_waiting", answer_all)


def who_waits_for_steps_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Results, "_answer_waiting", lambda self, effects: None)


def a_preempted_request_is_never_let_in_again(patch: pytest.MonkeyPatch) -> None:
    preempt = Moves.preempt

    def preempt_for_ever(self: Moves, entry: Entry) -> None:
        preempt(self, entry)
        entry.blocks_wanted = 1 << 30

    patch.setattr(Moves, "preempt", preempt_for_ever)


def a_computing_request_is_preempted_before_the_result_is_in(patch: pytest.MonkeyPatch) -> None:
    schedule = Scheduler.schedule

    def schedule_and_preempt(self: Scheduler) -> Batch | None:
        batch = schedule(self)
        self._control.preempt_all()
        return batch

    patch.setattr(Scheduler, "schedule", schedule_and_preempt)


def a_pass_computes_while_paused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "paused", property(lambda self: False, lambda self, paused: None), raising=False)


# What is broken, the rule that it breaks, and the seed from which on to look, so that it is found soon.
def no_batch_tells_who_was_preempted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "take_preempted", lambda self: ())


def decodes_are_the_same_if_as_many(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DecodeRows, "equals", lambda self, other: len(self) == len(other))


def the_device_need_not_let_go_of_a_slot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SlotPool, "quarantine", lambda self, handle, uid, now: self.release(handle))


def any_acknowledgement_ends_a_quarantine(patch: pytest.MonkeyPatch) -> None:
    def acknowledge(self: SlotPool, slot: int, generation: int) -> None:
        if any(waiting.slot == slot for waiting in self.quarantined):
            self._end_quarantine(slot)

    patch.setattr(SlotPool, "acknowledge", acknowledge)


def tokens_after_a_stop_token_are_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Drafts, "_first", staticmethod(lambda stops, row, nth, num_decodes: np.full(num_decodes, 99)))


def a_rejected_draft_counts_as_computed(patch: pytest.MonkeyPatch) -> None:
    confirm = Moves.confirm_accepted
    patch.setattr(
        Moves, "confirm_accepted", lambda self, rows, computed, tokens: confirm(self, rows, computed + 1, tokens)
    )


BROKEN: list[tuple[Break, str, int]] = [
    (
        a_late_result_counts_for_the_next_owner_of_the_slot,
        "wrong token|a token too many|after the end|foreign KV|AssertionError in .*",
        0,
    ),
    (a_chunk_counts_though_its_request_was_preempted_since, "foreign KV|wrong token|AssertionError in .*", 85),
    (what_a_failed_step_computed_is_published, "foreign KV", 23),
    (a_block_is_not_released, "OwnershipError in .*", 0),
    (a_request_ends_twice, "after the end", 0),
    (an_abort_is_for_those_who_run, "not ended at once", 0),
    (tenants_share_a_cache, "foreign KV", 1),
    (one_image_is_as_good_as_another, "foreign KV", 0),
    (a_reset_forgets_only_what_is_cached_by_then, "foreign KV", 12),
    (the_cache_outlives_its_device, "foreign KV", 1),
    (images_outlive_the_step_that_failed_to_encode_them, "wrong batch", 9),
    (a_preempted_request_is_lost, "OwnershipError in .*", 0),
    (blocks_are_given_away_while_they_are_sent, "lent and written to", 9),
    (no_deadline_ever_expires, "not ended at once", 0),
    (who_waits_for_steps_is_answered_by_the_first, "answered too early", 0),
    (who_waits_for_steps_is_forgotten, "not answered", 0),
    (a_preempted_request_is_never_let_in_again, "stuck", 0),
    (a_computing_request_is_preempted_before_the_result_is_in, "endless", 3),
    (a_pass_computes_while_paused, "miscounted", 0),
    (no_batch_tells_who_was_preempted, "preempted", 0),
    (decodes_are_the_same_if_as_many, "decode set", 0),
    (the_device_need_not_let_go_of_a_slot, "quarantine", 0),
    (any_acknowledgement_ends_a_quarantine, "something of nothing|miscounted", 0),
    (tokens_after_a_stop_token_are_kept, "a token too many|AssertionError in .*", 0),
    (a_rejected_draft_counts_as_computed, "wrong batch|AssertionError in .*", 0),
]


def who_relies_on_a_failed_step_goes_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Results, "_relying_on", lambda self, failed, digests: [])


def a_reset_forgets_who_relies_on_steps(patch: pytest.MonkeyPatch) -> None:
    drop_cached = BlockPool.drop_cached

    def forget(self: BlockPool) -> None:
        drop_cached(self)
        self.pending[:], self._num_unfilled = 0, 0

    patch.setattr(BlockPool, "drop_cached", forget)


@pytest.mark.parametrize(
    "broken",
    [
        who_relies_on_a_failed_step_goes_on,
        a_reset_forgets_who_relies_on_steps,
    ],
)
def test_siblings_show_when(broken: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    runs = (run_seed(seed, 600, traffic="siblings") for seed in range(60))
    violation = next(run.violation for run in runs if run.violation is not None)
    assert violation.rule in ("foreign KV", "wrong token", "wrong batch"), violation


def the_blocks_of_a_pull_that_is_not_wanted_are_free_at_once(patch: pytest.MonkeyPatch) -> None:
    def keep_none(self: Moves, entry: Entry, blocks: IntArray) -> IntArray:
        if entry.filled_from_outside:
            entry.filled_from_outside = False
            self._state.stopped_pulls.append(entry.uid)
        return blocks

    patch.setattr(Moves, "_kept_from_outside", keep_none)


def every_lease_is_said_to_be_valid(patch: pytest.MonkeyPatch) -> None:
    consume = Transfers.consume
    patch.setattr(Transfers, "consume", lambda self, query: consume(self, query) or True)


def no_lease_ends_by_the_clock(patch: pytest.MonkeyPatch) -> None:
    def tick(self: Clock, now: float, effects: Effects) -> None:
        leases = {uid for uid, lease in self._state.leases.items() if lease.holder is Holder.BORROWER}
        kept = [uid for uid in self._state.deadlines.expired(now) if uid not in leases]
        for uid in kept:
            self._state.deadlines.set(uid, now)
        tick_of_the_others(self, now, effects)

    tick_of_the_others = Clock.tick
    patch.setattr(Clock, "tick", tick)


def leases_outlive_their_device_and_a_reset(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Transfers, "revoke_all", lambda self, effects: None)


def kv_is_pulled_where_steps_still_write(patch: pytest.MonkeyPatch) -> None:
    take_pulls = Admissions.take_pulls
    patch.setattr(Admissions, "take_pulls", lambda self, oldest: take_pulls(self, 1 << 60))


def a_last_block_is_published_before_its_last_position_is_computed(patch: pytest.MonkeyPatch) -> None:
    store = State.store
    patch.setattr(State, "store", lambda self, entry, end: store(self, entry, len(entry.tokens)))


def a_chunk_is_lent_before_its_step_has_succeeded(patch: pytest.MonkeyPatch) -> None:
    chunk_done = Transfers.chunk_done

    def all_that_is_launched(
        self: Transfers, entry: Entry, num_tokens: int, token: int | None, now: float, effects: Effects
    ) -> None:
        chunk_done(self, entry, int(self._state.table.num_computed[entry.slot]), token, now, effects)

    patch.setattr(Transfers, "chunk_done", all_that_is_launched)


def a_wrong_generation_is_as_good_as_the_right_one(patch: pytest.MonkeyPatch) -> None:
    consume = Transfers.consume

    def consume_any(self: Transfers, query: ConsumeLease) -> bool:
        lease = self._state.leases.of(query.uid, Holder.BORROWER)
        return consume(self, query if lease is None else replace(query, generation=lease.generation))

    patch.setattr(Transfers, "consume", consume_any)


def no_prompt_whose_kv_is_late_is_computed_here(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Moves, "give_up", lambda self, entry: self._state.deadlines.clear(entry.uid))


BROKEN_TRANSFERS: list[tuple[Break, str, int]] = [
    (the_blocks_of_a_pull_that_is_not_wanted_are_free_at_once, "foreign KV|two writers|wrong token", 0),
    (every_lease_is_said_to_be_valid, "bad answer", 0),
    (no_lease_ends_by_the_clock, "outlives its deadline|wrong deadline", 0),
    (leases_outlive_their_device_and_a_reset, "not revoked|lent and written to", 0),
    (kv_is_pulled_where_steps_still_write, "two writers|foreign KV", 0),
    (a_last_block_is_published_before_its_last_position_is_computed, "foreign KV", 185),
    (a_chunk_is_lent_before_its_step_has_succeeded, "read too early", 0),
    (a_wrong_generation_is_as_good_as_the_right_one, "bad answer", 0),
    (
        no_prompt_whose_kv_is_late_is_computed_here,
        "outlives its deadline|not given up|endless|wrong deadline|ended .*",
        0,
    ),
]


@pytest.mark.parametrize(
    ("broken", "rules", "start"), [pytest.param(*case, id=case[0].__name__) for case in BROKEN_TRANSFERS]
)
def test_transfers_show_when(broken: Break, rules: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    runs = (run_seed(seed, 600, traffic="transfers") for seed in range(start, start + 60))
    violation = next((run.violation for run in runs if run.violation is not None), None)
    assert violation is not None, "60 seeds, and it was not noticed"
    assert re.fullmatch(rules, violation.rule), violation


@pytest.mark.parametrize(("broken", "rules", "start"), [pytest.param(*case, id=case[0].__name__) for case in BROKEN])
def test_the_simulator_notices_when(broken: Break, rules: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    first_violation(rules, start)


class TestAMinimalTrace:
    def test_is_short_breaks_the_same_rule_and_nothing_once_the_core_is_mended(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with monkeypatch.context() as patch:
            what_a_failed_step_computed_is_published(patch)
            run = first_violation("foreign KV", 23)
            shortest = minimise(run.trace, "foreign KV")
            assert len(shortest.events) <= 20 < len(run.trace.events)
            again = run_trace(shortest)
            assert again.violation is not None and again.violation.rule == "foreign KV"
            for i in range(len(shortest.events)):
                rest = EventTrace(shortest.setting, shortest.events[:i] + shortest.events[i + 1 :])
                assert run_trace(rest).violation is None, f"event {i} has no part in it"
            assert minimise(run.trace, "foreign KV") == shortest
        assert run_trace(shortest).violation is None

    def test_is_the_best_found_when_the_effort_is_spent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tenants_share_a_cache(monkeypatch)
        run = first_violation("foreign KV")
        some = minimise(run.trace, "foreign KV", budget=10 * len(run.trace.events))
        best = minimise(run.trace, "foreign KV")
        assert len(best.events) <= len(some.events) <= len(run.trace.events)
        assert minimise(run.trace, "foreign KV", budget=0) == run.trace


class TestTheCommand:
    def test_prints_seed_error_and_a_trace_that_runs_again(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        a_request_ends_twice(monkeypatch)
        assert main(["simtest", "--seeds", "0..2", "--steps", "200"]) == 1
        printed = capsys.readouterr().out
        found = re.search(r"^seed (\d+), step (\d+): after the end: ", printed)
        assert found is not None
        trace = printed[printed.index("\nsetting ") :].split("\n\n")[0]
        (tmp_path / "trace").write_text(trace)
        assert main(["simtest", "--trace", str(tmp_path / "trace")]) == 1
        assert "after the end" in capsys.readouterr().out
        monkeypatch.undo()
        assert main(["simtest", "--trace", str(tmp_path / "trace")]) == 0
        assert "no violation" in capsys.readouterr().out

    def test_adds_up_what_happened(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["simtest", "--seeds", "0..3", "--steps", "150"]) == 0
        alone = capsys.readouterr().out
        assert alone.startswith("4 seeds, 600 steps, ") and " 0 violations, " in alone
        for kind in (
            "requests completed",
            "batches",
            "tokens generated",
            "preemptions",
            "abort",
            "finish",
            "lose",
            "wait",
        ):
            assert re.search(rf"^  {kind} +\d+$", alone, re.MULTILINE), kind
        assert main(["simtest", "--seeds", "0..3", "--steps", "150", "--jobs", "2"]) == 0
        together = capsys.readouterr().out
        assert together.splitlines()[1:] == alone.splitlines()[1:]

    def test_says_so_when_a_process_dies(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        assert main(["simtest", "--seeds", "0..7", "--jobs", "2"]) == 2
        assert "ended (1) without a word on 1 of them" in capsys.readouterr().err

    def test_tells_of_each_seed_in_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["simtest", "--seeds", "5", "--steps", "50", "--json", "--mode", "safety"]) == 0
        row = json.loads(capsys.readouterr().out)
        assert (row["seed"], row["steps"], row["violation"]) == (5, 50, None)
        assert row["num_launch"] > 0 and "num_calm" not in row

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--seeds", "9..3"], "--seeds must not end before it begins, got '9..3'"),
            (["--seeds", "many"], "--seeds must be a number or a range such as 0..999, got 'many'"),
            (["--steps", "0"], "--steps must be at least 1, got 0"),
            (["--jobs", "0"], "--jobs must be at least 1, got 0"),
            (["--traffic", "dense"], "--traffic must be one of mixed, siblings, judged, transfers, pairs, got 'dense'"),
            (["--mode", "fast"], "--mode must be one of safety, liveness, both, got 'fast'"),
            (["--trace", "/nowhere"], "No such file or directory: '/nowhere'"),
        ],
    )
    def test_refuses_what_makes_no_sense(
        self, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["simtest", *arguments]) == 2
        assert complaint in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("", "is empty: a trace begins with a line `setting {...}`"),
            ("launch", "line 1: a trace begins with a line `setting {...}`, or `world {...}`, got 'launch'"),
            ("setting {", "line 1: "),
            ('setting {"speed": 3}', "line 1: there is no setting 'speed'"),
            ('setting {"depth": 0}', "line 1: depth must be at least 1, got 0"),
            ('setting {"block_size": 3}', "line 1: block_size must be a power of two, got 3"),
            ("setting {}\n\nfly", "line 3: there is no event 'fly'"),
            ("setting {}\nanswer", "line 2: answer takes outcome; got nothing"),
            ("setting {}\nanswer outcome=well", "line 2: invalid literal for int"),
            ("setting {}\nlaunch at=3", "line 2: launch takes nothing; got at"),
        ],
    )
    def test_refuses_a_trace_that_is_none(
        self, text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "trace").write_text(text)
        assert main(["simtest", "--trace", str(tmp_path / "trace")]) == 2
        assert complaint in capsys.readouterr().err
