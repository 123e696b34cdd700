"""Runs random cases under vLLM's own scheduler and under Headway's, and compares the answers.

Every request must answer what its tokens, its parameters and vLLM's rules say, under both schedulers. A request that is
aborted at a step that the two do not share answers the beginning of that.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from cases import Case, Expected, Planned, expected, random_case
from engine_core import Answer, EngineCore
from engines import make_request, make_scheduler
from imitated_grammars import ImitatedGrammar
from vllm.v1.core.sched.interface import PauseState


class Play:
    """One case under one scheduler."""

    def __init__(self, case: Case, kind: str, seed: int) -> None:
        self._case = case
        self._kind = kind
        self._hashed = kind == "stock" and case.shape.prefix_caching
        self.core = EngineCore(make_scheduler(case.shape, kind), case.shape, seed)
        self.core.on_answer = self._heard
        self._to_come = sorted((p for p in case.requests if p.step >= 0), key=lambda planned: planned.step)
        self._again = {planned.name: planned for planned in case.requests if planned.step < 0}
        self._now: dict[str, Planned] = {}
        self._due: dict[int, list[Any]] = defaultdict(list)  # by step: calls without arguments
        self._resets, self._pauses = sorted(case.resets), sorted(case.pauses, key=lambda pause: pause[0])
        self.former: dict[str, Answer] = {}  # of requests whose id came again
        self.num_tokens = 0
        self.paused_steps = 0

    def run(self) -> None:
        core = self.core
        while self._to_come or core.is_busy or self._due:
            for action in self._due.pop(core.num_steps, ()):
                action()
            while self._to_come and (self._to_come[0].step <= core.num_steps or not (core.is_busy or self._due)):
                self._add(self._to_come.pop(0))
            self._control()
            core.step()
            if core.scheduler.pause_state is PauseState.PAUSED_ALL:
                self.paused_steps += 1

    def _later(self, steps: int, action: Any) -> None:
        self._due[self.core.num_steps + steps].append(action)

    def _add(self, planned: Planned) -> None:
        self._now[planned.name] = planned
        more = {"cache_salt": planned.cache_salt} if planned.cache_salt else {}
        request = make_request(
            planned.name,
            planned.prompt,
            client=planned.client,
            priority=planned.priority,
            hashed=self._hashed,
            grammar=planned.grammar_after is not None,
            **planned.sampling,
            **more,
        )
        self.core.add(request)
        if planned.grammar_after is not None:
            grammar = ValueError("no grammar") if planned.grammar_fails else ImitatedGrammar()
            self._later(
                planned.grammar_after + 1, lambda: setattr(request.structured_output_request, "grammar", grammar)
            )
        if planned.abort_after == 0:
            self.core.abort([planned.name])
        if planned.abort_at is not None:
            self._later(planned.abort_at + 1, lambda: self._abort(planned))

    def _abort(self, planned: Planned) -> None:
        answer = self.core.answers[planned.name]
        if answer.reason is not None:
            return
        self.core.abort([planned.name], within_step=planned.within_step and self.core.is_busy)

    def _heard(self, name: str) -> None:
        planned, answer = self._now[name], self.core.answers[name]
        self.num_tokens += 1
        if planned.abort_after is not None and len(answer.tokens) == planned.abort_after and answer.reason is None:
            self.core.abort([name])
            again = self._again.pop(name, None)
            if again is not None:
                self.former[name] = answer
                # vLLM's own would give the new request the token in flight of the former one.
                if self._kind == "stock" and self._case.shape.asynchronous:
                    self._later(3, lambda: self._add(again))
                else:
                    self._add(again)

    def _control(self) -> None:
        scheduler = self.core.scheduler
        while self._resets and self._resets[0][0] <= self.num_tokens:
            _, preempts = self._resets.pop(0)
            scheduler.reset_prefix_cache(reset_running_requests=preempts)
        if self._pauses and self._pauses[0][0] <= self.num_tokens and scheduler.pause_state is PauseState.UNPAUSED:
            _, state, steps = self._pauses.pop(0)
            scheduler.set_pause_state(state)
            self._later(steps + 1, lambda: scheduler.set_pause_state(PauseState.UNPAUSED))


def check_answer(planned: Planned, answer: Answer, wanted: Expected) -> None:
    """Raise AssertionError if a request has answered anything but what it must."""
    name, tokens = planned.name, answer.tokens
    assert answer.reason is not None, f"{name} has no end"
    assert tokens == wanted.tokens[: len(tokens)], f"{name}: {tokens}, not {wanted.tokens}"
    if answer.reason == "abort":
        assert planned.abort_at is not None or planned.abort_after == len(tokens), f"{name} is aborted"
    else:
        assert (len(tokens), answer.reason) == (len(wanted.tokens), wanted.reason), f"{name}: {answer}, not {wanted}"
        assert answer.stop_reason == wanted.stop_reason, f"{name}: {answer}, not {wanted}"
    if "logprobs" in planned.sampling:
        assert answer.logprobs == tokens, f"{name}: logprobs of {answer.logprobs}, tokens {tokens}"
    if "prompt_logprobs" in planned.sampling and tokens:
        assert answer.prompt_logprobs == planned.prompt[1:], f"{name}: prompt logprobs of {answer.prompt_logprobs}"
    if tokens:
        assert answer.client == planned.client, f"{name} of client {planned.client} is answered to {answer.client}"
        assert answer.events[:2] == ["QUEUED", "SCHEDULED"], f"{name}: {answer.events}"
        assert answer.prefill.num_prompt_tokens == len(planned.prompt), f"{name}: {answer.prefill}"


def check_play(case: Case, play: Play) -> None:
    """Raise AssertionError for a wrong answer, or for anything that is left over."""
    for planned in case.requests:
        if planned.step >= 0:
            answer = play.former.get(planned.name) or play.core.answers[planned.name]
        elif planned.name in play.former:
            answer = play.core.answers[planned.name]
        else:
            continue  # the first one had ended: its id did not come again
        check_answer(planned, answer, expected(planned, case.shape.max_model_len))
    assert play.core.scheduler.get_request_counts() == (0, 0), "requests are left"
    assert play.core.scheduler.get_kv_cache_usage() == 0, "blocks are left"
    assert play.core.worker.num_known == 0, "the worker keeps requests that have ended"


def totals(case: Case, play: Play) -> dict[str, int]:
    """What must be equal under both schedulers: ends by reason, and tokens. Requests that were aborted at a step, which
    the two do not share, are left out."""
    counted: dict[str, int] = defaultdict(int)
    for planned in case.requests:
        former = play.former.get(planned.name) if planned.step >= 0 else None
        answer = former or play.core.answers[planned.name]
        if planned.abort_at is None:
            counted[f"{answer.reason} "] += 1
            counted["tokens"] += len(answer.tokens)
    return dict(counted)


def run_case(seed: int, *, asynchronous: bool, runner: int, kinds: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """The numbers of a case by kind of scheduler. Raises AssertionError if anything is wrong."""
    case = random_case(seed, asynchronous=asynchronous, runner=runner)
    numbers: dict[str, dict[str, int]] = {}
    equal: dict[str, dict[str, int]] = {}
    for kind in kinds:
        play = Play(case, kind, seed)
        play.run()
        check_play(case, play)
        core = play.core
        equal[kind] = totals(case, play)
        numbers[kind] = {
            "requests": len(case.requests),
            "tokens": sum(len(answer.tokens) for answer in core.answers.values()),
            "steps": core.num_steps - play.paused_steps,
            "tokens computed": core.worker.num_computed_tokens,
            "prefix hits": core.num_hits,
            "preemptions": core.num_preemptions,
        }
    first, *others = equal.values()
    assert all(other == first for other in others), f"the schedulers differ: {equal}"
    return numbers
