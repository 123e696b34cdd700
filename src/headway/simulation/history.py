"""The history of a simulated run as its callers see it, checked against the rules.

Every request starts at most once, gets the log-probabilities of its prompt, if it asks, once and in order, gets its own
answer token by token, and ends once: when the answer is complete, or by
a message that has a reason to end it. Every query is answered once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headway.request import FinishReason, Request, Transfer
from headway.scheduler.effects import Effects, RequestEnd
from headway.simulation.digests import answer_of
from headway.simulation.shapes import Shape


class Violation(AssertionError):
    """The core broke a rule. rule: the name of the rule, the same for all ways to break it."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


@dataclass(slots=True)
class Life:
    """A request between its acceptance and its end.

    answer: the tokens that it gets unless a message ends it early. num_judged: positions of its prompt, the first
        included, whose log-probabilities came, if it asks for these. preparing, reserved, sending: what it waits for.
    deadline: the time at which waiting ends with an error. has_job: a preprocess job was started. sends: its KV goes to
        D. sent_back: a failed step sent it back to the queue, ever. computes_again: and no step with it has succeeded
        since.
    """

    shape: Shape
    request: Request
    answer: list[int] = field(default_factory=list)
    reason: FinishReason = FinishReason.LENGTH
    num_tokens: int = 0
    num_judged: int = 1
    started: bool = False
    preparing: bool = False
    has_job: bool = False
    reserved: bool = False
    sends: bool = False
    sending: bool = False
    deadline: float | None = None
    sent_back: bool = False
    computes_again: bool = False

    def expect(self, request: Request, num_tokens: int | None) -> None:
        """Expect the answer to `request`; at most `num_tokens` of it from this engine."""
        self.request = request
        self.answer, self.reason = answer_of(request)
        if num_tokens is not None and num_tokens < len(self.answer):
            self.answer, self.reason = self.answer[:num_tokens], FinishReason.LENGTH


@dataclass(slots=True)
class Ends:
    """The requests that a message may end.

    must: uid -> reason, requests that have to end. may: requests that are allowed to end. natural: whether a complete
    answer ends a request here.
    """

    must: Mapping[int, FinishReason] = field(default_factory=dict)
    may: Mapping[int, FinishReason] = field(default_factory=dict)
    natural: bool = False


class History:
    """All requests and queries of a run.

    live: accepted requests that have not ended. ended: uid -> reason, of requests that have ended. num_completed: ended
    requests that got their whole answer.
    """

    def __init__(self) -> None:
        self.live: dict[int, Life] = {}
        self.ended: dict[int, FinishReason] = {}
        self.num_completed = 0
        self.num_tokens = 0
        self._asked: set[int] = set()

    def accept(self, life: Life) -> None:
        """A request was accepted."""
        self.live[life.request.uid] = life

    def ask(self, reply: int) -> None:
        """A query was asked."""
        self._asked.add(reply)

    @property
    def num_unanswered(self) -> int:
        """Queries without an answer."""
        return len(self._asked)

    def note(self, effects: Effects, ends: Ends) -> None:
        """Check effects against the rules, and add them to the history. Raises Violation."""
        for uid, num_cached in effects.started:
            life = self._life(uid, "started")
            require(not life.started, "started twice", f"request {uid}")
            require(0 <= num_cached <= len(life.request.prompt), "miscounted", f"{num_cached} cached of {uid}")
            life.started = True
        for prompts in effects.prompt_logprobs:
            for uid, start, count in zip(prompts.uids.tolist(), prompts.logprobs.starts, prompts.logprobs.counts):
                self._judge(uid, int(start), int(start + count))
        complete: list[int] = []
        for outputs in effects.tokens:
            for uid, token in zip(outputs.uids.tolist(), outputs.tokens.tolist(), strict=True):
                if self._token(uid, token):
                    complete.append(uid)
        for sending in effects.sending:
            life = self._life(sending.uid, "sends its KV")
            require(life.sends and not life.sending, "sent without cause", f"request {sending.uid}")
            require(sending.token == life.answer[0], "wrong token", f"request {sending.uid} sends {sending.token}")
            life.sending = True
        for lending in effects.lending:
            life = self._life(lending.uid, "lends its KV")
            lends = life.request.transfer is Transfer.LEND
            require(lends and lending.token in (None, life.answer[0]), "lent without cause", f"request {lending.uid}")
        for end in effects.ended:
            self._end(end, ends)
        spared = [uid for uid in ends.must if uid in self.live]
        spared += [uid for uid in complete if uid in self.live and not self.live[uid].sending]
        require(not spared, "not ended at once", f"requests {spared}")
        for request in effects.jobs:
            life = self._life(request.uid, "is to be prepared")
            require(life.preparing and not life.has_job, "prepared without cause or twice", f"request {request.uid}")
            life.has_job = True
        for reply in effects.awaited:
            self.answered(reply)

    def answered(self, reply: int) -> None:
        """A question has its answer."""
        require(reply in self._asked, "answered without question or twice", f"reply {reply}")
        self._asked.remove(reply)

    def _judge(self, uid: int, start: int, end: int) -> None:
        """Check the next positions of a prompt whose log-probabilities came."""
        life = self._life(uid, "has its prompt judged")
        asks = life.started and life.request.sampling.prompt_logprobs is not None
        require(asks, "judged without cause", f"request {uid}")
        due = start == life.num_judged and start < end <= len(life.request.prompt)
        require(due, "judged out of turn", f"[{start}, {end}) of request {uid} after {life.num_judged}")
        life.num_judged = end

    def _token(self, uid: int, token: int) -> bool:
        """Check the next token of an answer. Returns whether it is the last."""
        life = self._life(uid, f"gets token {token}")
        require(life.started, "a token before the start", f"request {uid}")
        if life.request.sampling.prompt_logprobs is not None:
            judged = life.num_judged == len(life.request.prompt)
            require(judged, "a token before its prompt", f"request {uid}: {life.num_judged} positions are judged")
        index = life.num_tokens
        require(index < len(life.answer), "a token too many", f"request {uid} gets {token} after its whole answer")
        expected = life.answer[index]
        require(token == expected, "wrong token", f"token {index} of request {uid} is {token}, expected {expected}")
        life.num_tokens = index + 1
        self.num_tokens += 1
        return index + 1 == len(life.answer)

    def _end(self, end: RequestEnd, ends: Ends) -> None:
        uid = end.uid
        life = self._life(uid, f"ends ({end.reason})")
        due = ends.must.get(uid) or ends.may.get(uid)
        if due is not None:
            require(end.reason is due, "ended wrongly", f"request {uid} ends with {end.reason}, not {due}")
            require((end.error is not None) or due is not FinishReason.ERROR, "ended without a word", f"{end}")
        else:
            require(ends.natural, "ended without cause", f"{end}")
            if life.num_tokens != len(life.answer) or end.reason is not life.reason:
                so_far = f"{life.num_tokens} of {len(life.answer)} tokens"
                raise Violation("ended early", f"{end} after {so_far}, expected {life.reason}")
            if end.reason is FinishReason.STOP and not life.sends:
                require(end.stop_token == life.answer[-1], "ended wrongly", f"{end}: stopped by {life.answer[-1]}")
            self.num_completed += 1
        del self.live[uid]
        self.ended[uid] = end.reason

    def _life(self, uid: int, what: str) -> Life:
        life = self.live.get(uid)
        if life is None:
            if uid in self.ended:
                raise Violation("after the end", f"request {uid} {what}, but has ended ({self.ended[uid]})")
            raise Violation("unknown request", f"request {uid} {what}, but was never accepted")
        return life


def require(holds: bool, rule: str, message: str) -> None:
    """Raises Violation unless `holds`."""
    if not holds:
        raise Violation(rule, message)
