"""Worlds of P and D engines: they keep their promises, repeat, and notice when a lender, a receiver or a core is broken."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from headway.config import Role
from headway.scheduler.batch import IntArray
from headway.scheduler.state.entry import Entry
from headway.scheduler.state.moves import Moves
from headway.simulation.events import WORLD_EVENTS, Event, EventTrace, read_events
from headway.simulation.link import Connection, Link
from headway.simulation.setting import WorldSetting
from headway.simulation.simulate import Run, run_seed, run_trace
from headway.simulation.world import Member, World
from headway.transfer.lender import Lender
from headway.transfer.messages import Progress, Renew
from headway.transfer.reader import Slice
from headway.transfer.receiver import Job, PeerSilentError, Receiver
from headway.transfer.reference import Reference, Seal

NUM_STEPS = 800


def run(seed: int, num_steps: int = NUM_STEPS) -> Run:
    """A world of a seed."""
    return run_seed(seed, num_steps, traffic="pairs")


class TestWorlds:
    @pytest.mark.parametrize("first", range(0, 16, 4))
    def test_keep_their_promises_whatever_happens(self, first: int) -> None:
        for seed in range(first, first + 4):
            violation = run(seed).violation
            assert violation is None, f"seed {seed}: {violation}"

    def test_are_not_dull(self) -> None:
        counts: Counter[str] = Counter()
        for seed in range(30, 50):
            counts += Counter(run_seed(seed, NUM_STEPS, "liveness", traffic="pairs").counts)
        assert min(counts[name] for name in WORLD_EVENTS) > 0, counts
        for kind in ("pulls ok, and P's token", "pulls failed", "pulls stopped", "leases renewed", "leases revoked"):
            assert counts[kind] > 10, (kind, counts)
        kinds = ["pulls ok", "consume answered with no", "places read late", "connections lost", "reads refused"]
        kinds += ["silent peers given up", "connections refused", "requests lost with their engine", "leases let go"]
        kinds += ["pulls lost: gone", "pulls lost: peer_down", "pulls lost: bad_params", "parameters refused"]
        for kind in kinds:
            assert counts[kind] > 0, (kind, counts)
        assert counts["new requests at the end that pulled"] > counts["new requests at the end"] / 3

    def test_of_one_seed_are_the_same_bit_for_bit_also_from_their_trace(self, tmp_path: Path) -> None:
        one, again, other = run(7), run(7), run(8)
        assert (one.trace, one.decisions, one.counts) == (again.trace, again.decisions, again.counts)
        assert one.decisions != other.decisions
        (tmp_path / "trace").write_text(f"{one.trace}\n")
        read = run_trace(read_events(tmp_path / "trace"))
        assert (read.trace, read.decisions) == (one.trace, one.decisions)

    def test_are_worlds_still_when_events_are_left_out(self) -> None:
        trace = run(11, 600).trace
        for start in range(3):
            part = EventTrace(trace.setting, (*trace.events[start::3], Event("calm")))
            assert run_trace(part).violation is None

    def test_are_set_up_in_every_way_there_is(self) -> None:
        settings = [WorldSetting.of_seed(seed) for seed in range(100)]
        sizes = {(one.num_prefill, len(one.engines) - one.num_prefill) for one in settings}
        assert sizes == {(1, 1), (1, 2), (2, 1), (2, 2)}
        assert {one.shares_memory for one in settings} == {False, True}
        assert {engine.config.role for one in settings for engine in one.engines} == set(Role)
        for one in settings:
            assert WorldSetting.parse(str(one)) == one


# -- a broken world is found out -------------------------------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch], None]


def d_decodes_without_the_word_of_p(patch: pytest.MonkeyPatch) -> None:
    consumed = Receiver._consumed
    patch.setattr(Receiver, "_consumed", lambda self, uid, valid: consumed(self, uid, True))


def a_receiver_says_that_it_has_stopped_while_a_reader_writes(patch: pytest.MonkeyPatch) -> None:
    advance, read_done = Receiver._advance, Receiver.read_done

    def at_once(self: Receiver, job: Job) -> None:
        in_flight, job.in_flight = job.in_flight, 0 if job.failure is not None else job.in_flight
        advance(self, job)
        job.in_flight = in_flight

    def of_what_is_left(self: Receiver, part: Slice, error: str | None) -> None:
        if part.uid in self._jobs:
            read_done(self, part, error)

    patch.setattr(Receiver, "_advance", at_once)
    patch.setattr(Receiver, "read_done", of_what_is_left)


def readers_go_on_after_a_cut(patch: pytest.MonkeyPatch) -> None:
    def last(self: Link) -> Connection | None:
        return self.connections[-1] if self.connections else None

    patch.setattr(Link, "reading", property(last))
    patch.setattr(Link, "_close", Link._lost)


def an_engine_that_is_started_again_keeps_its_seal(patch: pytest.MonkeyPatch) -> None:
    seal_of = World.seal_of
    patch.setattr(World, "seal_of", lambda self, member: seal_of(self, Member(member.number)))


def a_reference_needs_no_seal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Seal, "open", lambda self, text: Reference.parse(text))


def d_keeps_what_it_has_read_of_an_earlier_generation(patch: pytest.MonkeyPatch) -> None:
    progress = Receiver._progress

    def without_a_look(self: Receiver, message: Progress) -> None:
        for job in self._jobs.values():
            if job.reference.uid == message.uid and job.generation is not None:
                job.generation = message.generation
        progress(self, message)

    patch.setattr(Receiver, "_progress", without_a_look)


def d_asks_for_leases_that_it_does_not_want(patch: pytest.MonkeyPatch) -> None:
    tick = Receiver.tick

    def for_ever(self: Receiver, now: float) -> None:
        before = len(self.outbox)
        tick(self, now)
        self.outbox[before:] = [Renew(tuple(range(200))) for _ in self.outbox[before:]]

    patch.setattr(Receiver, "tick", for_ever)
    patch.setattr(Receiver, "_fail", lambda self, job, failure, text: setattr(job, "failure", (failure, text)))


def a_silent_peer_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    tick = Receiver.tick

    def patient(self: Receiver, now: float) -> None:
        try:
            tick(self, now)
        except PeerSilentError:
            self._asked_at = None

    patch.setattr(Receiver, "tick", patient)


def p_wakes_no_connection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lender, "_tell_borrowers", lambda self: None)


def the_lease_of_a_request_that_is_let_go_is_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lender, "revoked", lambda self, uid: None)


def the_blocks_of_a_pull_that_is_not_wanted_are_free_at_once(patch: pytest.MonkeyPatch) -> None:
    def keep_none(self: Moves, entry: Entry, blocks: IntArray) -> IntArray:
        if entry.filled_from_outside:
            entry.filled_from_outside = False
            self._state.stopped_pulls.append(entry.uid)
        return blocks

    patch.setattr(Moves, "_kept_from_outside", keep_none)


# What is broken, the rules that it may break, and the seed from which on to look, so that it is found soon.
BROKEN: list[tuple[Break, str, int]] = [
    (d_decodes_without_the_word_of_p, "foreign KV|wrong token", 0),
    (a_receiver_says_that_it_has_stopped_while_a_reader_writes, "written late", 0),
    (readers_go_on_after_a_cut, "written late", 0),
    (an_engine_that_is_started_again_keeps_its_seal, "foreign KV|wrong token", 0),
    (a_reference_needs_no_seal, "foreign KV|wrong token", 0),
    (d_keeps_what_it_has_read_of_an_earlier_generation, "foreign KV", 0),
    (d_asks_for_leases_that_it_does_not_want, "held too long|endless", 0),
    (a_silent_peer_is_waited_for, "held too long|endless|stuck", 0),
    (p_wakes_no_connection, "not woken", 0),
    (the_lease_of_a_request_that_is_let_go_is_kept, "held too long|endless|stuck", 0),
    (the_blocks_of_a_pull_that_is_not_wanted_are_free_at_once, "written late|two writers|foreign KV", 0),
]


@pytest.mark.parametrize(("broken", "rules", "start"), [pytest.param(*case, id=case[0].__name__) for case in BROKEN])
def test_a_world_shows_when(broken: Break, rules: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    violations = (run(seed).violation for seed in range(start, start + 30))
    violation = next((one for one in violations if one is not None), None)
    assert violation is not None, "30 seeds, and it was not noticed"
    assert re.fullmatch(rules, violation.rule), violation
