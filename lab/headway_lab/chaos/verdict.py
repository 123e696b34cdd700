"""Whether a history may have happened: every request ends exactly once, no token is wrong, no failure is unexcused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headway_lab.chaos.disturbances import Disturbances, Kind
from headway_lab.chaos.history import End, Failure, Finish, History, Piece, Token

MAX_LOGPROB_DIFFERENCE = 1e-3  # between the same sums in another order


@dataclass(frozen=True, slots=True)
class Right:
    """A choice of the answer of an engine that computes everything. tokens: empty without log-probabilities."""

    text: str
    reason: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """rule: "mismatch" for a wrong answer, "end" for a request that did not end exactly once, "failure" for a failure
    that no fault of its server excuses."""

    rule: str
    number: int
    text: str


class Verdict:
    """Judges histories. answers: for each case, its choices."""

    def __init__(self, answers: Sequence[Mapping[int, Right]], disturbances: Disturbances) -> None:
        self._answers = answers
        self._disturbances = disturbances

    def violations(self, history: History) -> list[Violation]:
        """What is wrong with this history; empty: nothing."""
        found = [("end", text) for text in _ends(history, set(self._answers[history.case]))]
        found += [("mismatch", text) for text in self._mismatches(history)]
        found += [("failure", text) for text in self._failures(history)]
        where = f"request {history.number} (case {history.case}, {history.way}, {history.server})"
        return [Violation(rule, history.number, f"{where}: {text}") for rule, text in found]

    def _mismatches(self, history: History) -> list[str]:
        """A complete choice is the right one; of another choice all that came is a part of the right one."""
        found = []
        reasons = {event.choice: event.reason for event in history.events if isinstance(event, Finish)}
        right_ones = self._answers[history.case]
        for choice in sorted({event.choice for event in history.events if isinstance(event, Piece)} | set(reasons)):
            pieces = [event for event in history.events if isinstance(event, Piece) and event.choice == choice]
            text = "".join(piece.text for piece in pieces)
            tokens = [token for piece in pieces for token in piece.tokens]
            reason, right = reasons.get(choice), right_ones.get(choice)
            if right is None:
                found.append(f"choice {choice} was not asked for")
                continue
            is_whole = reason not in (None, "abort") and not history.is_first_token
            if is_whole and reason != right.reason:
                found.append(f"choice {choice} ends with {reason!r}, expected {right.reason!r}")
            if not (text == right.text if is_whole else right.text.startswith(text)):
                found.append(f"choice {choice} is {text!r}, expected {'' if is_whole else 'a part of '}{right.text!r}")
            if is_whole and len(tokens) != len(right.tokens):
                found.append(f"choice {choice} has {len(tokens)} log-probabilities, expected {len(right.tokens)}")
            for position, ((token, logprob), (other, expected)) in enumerate(zip(tokens, right.tokens)):
                if token != other or abs(logprob - expected) > MAX_LOGPROB_DIFFERENCE:
                    found.append(f"token {position} is {token!r} ({logprob:.4f}), expected {other!r} ({expected:.4f})")
                    break
        return found

    def _failures(self, history: History) -> list[str]:
        """Only a fault of the server itself excuses a failure: without its prefill engines a decode engine computes
        the prompt."""
        faults = self._disturbances.during(history.server, history.started, history.ended)
        kinds = {fault.kind for fault in faults}
        found = []
        for event in history.events:
            match event:
                case Failure() if not faults:
                    found.append(f"failed ({event.status}: {event.message}) without a fault of its server")
                case Finish(reason="abort") if "paused" not in kinds:
                    found.append("was aborted, and its server was not paused")
                case End(kind="cut") if not _may_be_cut(history, kinds, min((f.since for f in faults), default=0.0)):
                    found.append(f"was cut off ({event.detail}) without a word of its server")
                case End(kind="refused") if not kinds & {"API process killed", "engine killed"}:
                    found.append(f"was refused ({event.detail}), and its server had not died")
                case End(kind="late"):
                    found.append("did not end")
        return found


def _may_be_cut(history: History, kinds: set[Kind], first_fault: float) -> bool:
    """An API process that was killed says nothing more. A server whose engine has died ends, and takes no connection
    that waited to be accepted: nothing of such a request came back, and it began after the fault."""
    if "API process killed" in kinds:
        return True
    return "engine killed" in kinds and history.started >= first_fault and len(history.events) == 1


def _ends(history: History, choices: set[int]) -> list[str]:
    """One end, as the last event; with the end of an answer, each of its choices has ended once, or the request has
    failed, once."""
    found = []
    ends = [event for event in history.events if isinstance(event, End)]
    if len(ends) != 1 or history.events[-1] != ends[0]:
        found.append(f"ended {len(ends)} times, and {'not ' if not ends else ''}as the last event")
    failures = [event for event in history.events if isinstance(event, Failure)]
    if len(failures) > 1:
        found.append(f"failed {len(failures)} times")
    finished: set[int] = set()
    has_failed = False
    for event in history.events:
        if has_failed and not isinstance(event, End | Failure):
            found.append(f"went on after it had failed: {event}")
        if isinstance(event, Failure):
            has_failed = True
        elif isinstance(event, Piece | Finish) and event.choice in finished:
            found.append(f"choice {event.choice} went on after its end: {event}")
        if isinstance(event, Finish):
            finished.add(event.choice)
    is_done = bool(ends) and ends[0].kind == "done"
    if is_done and not failures and finished < choices:
        found.append("was truncated without an error event")
    return found
