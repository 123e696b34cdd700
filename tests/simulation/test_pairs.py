"""Worlds of P and D engines: they keep their promises, repeat, and notice a broken lender, receiver or core."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headway.cli import main
from headway.config import Role, SchedulerConfig
from headway.simulation.events import WORLD_EVENTS, Event, EventTrace, read_events
from headway.simulation.history import Violation
from headway.simulation.link import Connection, Link
from headway.simulation.minimise import minimise
from headway.simulation.setting import Setting, WorldSetting
from headway.simulation.shapes import Shape
from headway.simulation.simulate import Run, run_seed, run_trace
from headway.simulation.world import Member, World
from headway.transfer.lender import Lender
from headway.transfer.messages import Progress, Renew
from headway.transfer.reader import Slice
from headway.transfer.receiver import Job, PeerSilentError, Receiver
from headway.transfer.reference import Reference, Seal
from tests.simulation.test_simulate import the_blocks_of_a_pull_that_is_not_wanted_are_free_at_once

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
        for seed in range(40):
            counts += Counter(run_seed(seed, NUM_STEPS, "liveness", traffic="pairs").counts)
        assert min(counts[name] for name in WORLD_EVENTS) > 0, counts
        for kind in ("pulls ok, and P's token", "pulls failed", "pulls stopped", "leases renewed", "leases revoked"):
            assert counts[kind] > 10, (kind, counts)
        kinds = ["pulls ok", "consume answered with no", "places read late", "connections lost", "reads refused"]
        kinds += ["silent peers given up", "requests lost with their engine", "leases let go"]
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


def a_lease_that_has_ended_is_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lender, "revoked", lambda self, uid: None)


def found_by_chance(broken: Break, patch: pytest.MonkeyPatch, start: int) -> Violation:
    """The first violation of the worlds from this seed on."""
    broken(patch)
    violations = (run(seed).violation for seed in range(start, start + 20))
    violation = next((one for one in violations if one is not None), None)
    assert violation is not None, "20 worlds, and it was not noticed"
    return violation


@pytest.mark.parametrize(
    ("broken", "rules", "start"),
    [
        pytest.param(d_decodes_without_the_word_of_p, "foreign KV|wrong token", 42),
        pytest.param(a_receiver_says_that_it_has_stopped_while_a_reader_writes, "written late", 6),
        pytest.param(p_wakes_no_connection, "not woken", 0),
        pytest.param(
            the_blocks_of_a_pull_that_is_not_wanted_are_free_at_once, "written late|two writers|foreign KV", 0
        ),
    ],
)
def test_chance_shows_when(broken: Break, rules: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    violation = found_by_chance(broken, monkeypatch, start)
    assert re.fullmatch(rules, violation.rule), violation


# -- short courses of a world of one P and one D, numbered 0 and 1 ---------------------------------------------------

P, D = 0, 1
LENGTH = 24  # tokens of a prompt: six blocks, of seven that P has
ALL = 99
CALM = Event("calm")


def course(events: list[Event], shares_memory: bool = True) -> Violation | None:
    """What these events, and the calm after them, break in a world that has room for one prompt on P, and computes it
    in three chunks."""
    common: dict[str, Any] = {"max_num_seqs": 2, "block_size": 4, "max_model_len": 28, "reserve": "none"}
    p = SchedulerConfig(**common, role=Role.MIXED, num_blocks=8, max_num_batched_tokens=8, lend_timeout=1.0)
    d = SchedulerConfig(**common, role=Role.DECODE, num_blocks=17, max_num_batched_tokens=32, receive_timeout=1.0)
    setting = WorldSetting((Setting(p), Setting(d)), 1, shares_memory=shares_memory)
    return run_trace(EventTrace(setting, (*events, CALM))).violation


def at(number: int, name: str, *args: int) -> Event:
    """An event at an engine."""
    return Event(name, args, number)


def prefill(uid: int, *, priority: int = 0) -> Event:
    """A prompt of its own for P."""
    return at(P, "prefill", *Shape(uid, 0, 0, LENGTH, 1, priority=priority), uid)


def decode(uid: int, tail: int, number: int, how: int = 0) -> list[Event]:
    """D gets a request with the prompt of this tail and the reference to this prompt, and blocks for it."""
    shape = Shape(uid, 0, 0, LENGTH, 2)
    return [at(D, "decode", *shape, tail, number, how), at(D, "launch"), at(D, "carry_out", ALL)]


def steps(*events: Event | list[Event]) -> list[Event]:
    """All of them, one after the other."""
    return [one for event in events for one in ([event] if isinstance(event, Event) else event)]


COMPUTE = [at(P, "launch"), at(P, "answer", 0), at(P, "carry_out", ALL)]  # a chunk
LEND = steps(COMPUTE, COMPUTE, COMPUTE)
TALK = [at(D, "serve", P, ALL), at(D, "serve", P, ALL), at(P, "listen", D, 0, ALL, 0), at(D, "serve", P, ALL)]
READ = 4 * [at(D, "copy", P, 0, ALL), at(D, "copy", P, 0, ALL), at(D, "serve", P, ALL)]

PULL = steps(prefill(1), LEND, decode(1, 1, 0), TALK)  # and D has begun to read
AGAIN = prefill(1)._replace(args=(*prefill(1).args[:-1], 7))  # the same uid, another prompt

COURSES: list[tuple[Break, str, list[Event], bool]] = [
    (
        readers_go_on_after_a_cut,
        "written late",
        steps(PULL, at(D, "cut", P, 0, 0), at(D, "serve", P, 0), at(D, "copy", P, 0, 1)),
        True,
    ),
    (
        d_decodes_without_the_word_of_p,
        "foreign KV",
        steps(PULL, at(P, "clear"), prefill(2), 3 * COMPUTE[:2], READ, at(P, "listen", D, 0, ALL, 0), TALK),
        True,
    ),
    (
        d_keeps_what_it_has_read_of_an_earlier_generation,
        "foreign KV",
        steps(
            *(prefill(1), COMPUTE, decode(1, 1, 0), TALK, at(P, "preempt_all"), prefill(2, priority=-1), LEND, READ),
            *(Event("wait", (1100,)), at(P, "tick"), at(P, "carry_out", ALL), LEND, TALK, READ, TALK, READ),
        ),
        True,
    ),
    (
        an_engine_that_is_started_again_keeps_its_seal,
        "foreign KV",
        steps(prefill(1), LEND, at(P, "die", 0, 0), at(P, "restart"), AGAIN, LEND, decode(1, 1, 0)),
        True,
    ),
    (
        a_reference_needs_no_seal,
        "foreign KV",
        steps(prefill(1), at(P, "abort", 1), prefill(2), LEND, decode(1, 1, 0, how=3)),
        True,
    ),
    (a_silent_peer_is_waited_for, "held too long|stuck|endless", steps(PULL, at(D, "cut", P, 2, 0)), False),
    (d_asks_for_leases_that_it_does_not_want, "held too long|endless", steps(PULL, at(D, "abort", 1)), True),
    (a_lease_that_has_ended_is_kept, "held too long|stuck|endless", steps(prefill(1), LEND), True),
]


@pytest.mark.parametrize(
    ("broken", "rules", "events", "shares_memory"), [pytest.param(*case, id=case[0].__name__) for case in COURSES]
)
def test_a_short_course_shows_when(
    broken: Break,
    rules: str,
    events: list[Event],
    shares_memory: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert course(events, shares_memory) is None
    broken(monkeypatch)
    violation = course(events, shares_memory)
    assert violation is not None, "it was not noticed"
    assert re.fullmatch(rules, violation.rule), violation


def test_a_prompt_is_pulled_once_and_nothing_is_left() -> None:
    assert course(steps(PULL, READ, at(P, "listen", D, 0, ALL, 0), TALK)) is None


def test_a_violation_of_a_world_gets_a_short_trace_that_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        a_receiver_says_that_it_has_stopped_while_a_reader_writes(patch)
        whole = next(one for seed in range(3, 26) if (one := run(seed)).violation is not None)
        shortest = minimise(whole.trace, "written late", budget=30_000)
        assert len(shortest.events) < len(whole.trace.events) / 4
        again = run_trace(shortest)
        assert again.violation is not None and again.violation.rule == "written late"
    assert run_trace(shortest).violation is None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("serve peer=0 count=1", "serve happens at an engine of a world: `0 serve`"),
        ("7 launch", "there is no engine 7; they are numbered from 0 to"),
        ("0 fly", "there is no event 'fly'"),
    ],
)
def test_a_trace_of_a_world_is_refused(
    line: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trace").write_text(f"world {WorldSetting.of_seed(0)}\n{line}\n")
    assert main(["simtest", "--trace", str(tmp_path / "trace")]) == 2
    assert complaint in capsys.readouterr().err


def test_the_calm_lifts_what_holds_admissions_on_any_engine() -> None:
    drawn = run_seed(3, 150, "safety", traffic="pairs")
    assert isinstance(drawn.trace.setting, WorldSetting)
    holds = [Event("hold", (), at) for at in range(len(drawn.trace.setting.engines))]
    again = run_trace(EventTrace(drawn.trace.setting, (*drawn.trace.events, *holds, Event("calm"))))
    assert again.violation is None and again.counts["lift_hold"] > drawn.counts.get("lift_hold", 0)
