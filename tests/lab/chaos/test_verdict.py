"""The check of histories sees what is planted, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from headway_lab.chaos.disturbances import Disturbances, Kind
from headway_lab.chaos.history import End, Event, Failure, Finish, History, Piece
from headway_lab.chaos.verdict import Right, Verdict

ANSWERS = [
    {0: Right("abc", "stop")},
    {0: Right("xy", "length", (("x", -0.5), ("y", -1.5)))},
    {0: Right("a", "stop"), 1: Right("a", "stop")},
]
DONE, LEFT, LATE = End("done"), End("left"), End("late")
CUT, REFUSED = End("cut", "gone"), End("refused")
ABC = [Piece(0, "ab"), Piece(0, "c"), Finish(0, "stop")]


def rules(*events: Event, case: int = 0, faults: tuple[tuple[Kind, float, float], ...] = (), **more: Any) -> list[str]:
    """The rules that a request from second 10 to second 20 at the server d breaks. faults: with since and until."""
    disturbances = Disturbances()
    for kind, since, until in faults:
        disturbances.begin("d", kind, since).until = until
    history = History(7, case, **{"server": "d", "started": 10.0, "ended": 20.0, **more})
    history.events.extend(events)
    violations = Verdict(ANSWERS, disturbances).violations(history)
    assert all("request 7" in violation.text for violation in violations)
    return [violation.rule for violation in violations]


@pytest.mark.parametrize(
    "events",
    [[*ABC, DONE], [Piece(0, "abc"), Finish(0, "stop"), DONE], [Piece(0, "a"), LEFT], [LEFT]],
    ids=["a stream", "a whole answer", "a client that leaves", "a client that leaves early"],
)
def test_a_right_answer_breaks_no_rule(events: list[Event]) -> None:
    assert rules(*events) == []


@pytest.mark.parametrize(
    ("events", "broken"),
    [
        ([*ABC, DONE, DONE], ["end"]),
        ([*ABC, DONE, CUT], ["end", "failure"]),
        ([*ABC], ["end"]),
        ([], ["end"]),
        ([*ABC, Finish(0, "stop"), DONE], ["end"]),
        ([DONE], ["end"]),
        ([Piece(0, "ab"), DONE], ["end"]),
        ([Failure("x"), Failure("x"), DONE], ["end", "failure", "failure"]),
        ([Failure("x"), Piece(0, "a"), DONE], ["end", "failure"]),
    ],
    ids=[
        "two ends",
        "an end and a cut",
        "no end",
        "no event at all",
        "a choice that finishes twice",
        "no answer",
        "a missing error event",
        "two failures",
        "an answer that goes on after its failure",
    ],
)
def test_every_request_ends_exactly_once(events: list[Event], broken: list[str]) -> None:
    assert rules(*events) == broken


def test_every_choice_ends() -> None:
    one, other = [Piece(0, "a"), Finish(0, "stop")], [Piece(1, "a"), Finish(1, "stop")]
    assert rules(*one, *other, DONE, case=2) == []
    assert rules(*one, DONE, case=2) == ["end"]


def test_a_token_after_the_end_of_its_choice_is_seen() -> None:
    assert "end" in rules(*ABC, Piece(0, "d"), DONE)


@pytest.mark.parametrize(
    "events",
    [
        [Piece(0, "abd"), Finish(0, "stop"), DONE],
        [Piece(0, "ab"), Finish(0, "stop"), DONE],
        [Piece(0, "abcd"), Finish(0, "stop"), DONE],
        [Piece(0, "abc"), Finish(0, "length"), DONE],
        [Piece(0, "b"), LEFT],
    ],
    ids=[
        "a wrong token",
        "a token too few",
        "a token too many",
        "a wrong reason",
        "a wrong token before the client left",
    ],
)
def test_a_wrong_answer_is_seen(events: list[Event]) -> None:
    assert rules(*events) == ["mismatch"]


def test_a_choice_that_was_not_asked_for_is_seen() -> None:
    assert rules(*ABC, Piece(1, "a"), Finish(1, "stop"), DONE) == ["mismatch"]


@pytest.mark.parametrize(
    ("tokens", "broken"),
    [
        ([("x", -0.5), ("y", -1.5)], []),
        ([("x", -0.5), ("y", -1.5004)], []),
        ([("x", -0.5), ("y", -1.6)], ["mismatch"]),
        ([("x", -0.5), ("z", -1.5)], ["mismatch"]),
        ([("x", -0.5)], ["mismatch"]),
    ],
)
def test_log_probabilities_are_the_same_but_for_rounding(tokens: list[tuple[str, float]], broken: list[str]) -> None:
    assert rules(Piece(0, "xy", tuple(tokens)), Finish(0, "length"), DONE, case=1) == broken


def test_a_prefill_engine_answers_with_the_first_token() -> None:
    first = [Finish(0, "length"), DONE]
    assert rules(Piece(0, "a"), *first, is_first_token=True) == []
    assert rules(Piece(0, "b"), *first, is_first_token=True) == ["mismatch"]


@pytest.mark.parametrize(
    "events",
    [[Piece(0, "a"), Failure("died"), DONE], [Failure("is paused", 503), DONE], [CUT], [REFUSED]],
    ids=["error event", "HTTP error", "cut", "refused"],
)
def test_only_a_fault_of_the_server_itself_at_that_time_excuses_a_failure(events: list[Event]) -> None:
    killed: Kind = "API process killed"
    assert rules(*events) == ["failure"]
    assert rules(*events, faults=((killed, 12.0, 15.0),)) == []
    assert rules(*events, faults=((killed, 5.0, 9.5),)) == [], "what was on its way"
    assert rules(*events, faults=((killed, 1.0, 5.0),)) == ["failure"]
    assert rules(*events, faults=((killed, 21.0, 25.0),)) == ["failure"]
    assert rules(*events, server="p", faults=((killed, 12.0, 15.0),)) == ["failure"]


def test_a_stream_is_cut_without_a_word_only_if_its_api_process_was_killed() -> None:
    cut = [Piece(0, "a"), CUT]
    assert rules(*cut, faults=(("engine killed", 12.0, 15.0),)) == ["failure"]
    assert rules(*cut, faults=(("paused", 12.0, 15.0),)) == ["failure"]
    assert rules(*cut, faults=(("engine killed", 5.0, 15.0),)) == ["failure"], "something came back: it was accepted"
    assert rules(CUT, faults=(("engine killed", 5.0, 15.0),)) == [], "it waited to be accepted, and the server ended"
    assert rules(CUT, faults=(("engine killed", 12.0, 15.0),)) == ["failure"], "it had been there before"


def test_only_a_pause_aborts_an_answer() -> None:
    aborted = [Piece(0, "ab"), Finish(0, "abort"), DONE]
    assert rules(*aborted, faults=(("paused", 12.0, 15.0),)) == []
    assert rules(*aborted, faults=(("engine killed", 12.0, 15.0),)) == ["failure"]


def test_patience_has_an_end_that_nothing_excuses() -> None:
    assert rules(LATE, faults=(("paused", 12.0, 15.0), ("API process killed", 12.0, 15.0))) == ["failure"]
