"""Random cases: an engine, requests, and what happens to them. And what each request must answer, computed without any
scheduler."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engines import BLOCK_SIZE, EOS, Shape
from imitated_grammars import allowed_after
from imitated_worker import FIRST_TOKEN, NUM_TOKENS, digest, digest_of, next_token
from vllm.sampling_params import RepetitionDetectionParams
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.utils import check_sequence_repetition

MAX_PROMPT = 260


@dataclass
class Planned:
    """A request of a case.

    step: at which it comes, if the engine has come so far; else when the engine is idle.
    abort_after: tokens after which it is aborted; None: never. within_step: see `EngineCore.abort`.
    abort_at: it is aborted so many steps after it came, whatever it has by then.
    grammar_after: steps after which its grammar is there; None: it has none. grammar_fails: it is an error.
    """

    name: str
    prompt: list[int]
    sampling: dict[str, Any]
    step: int = 0
    client: int = 0
    priority: int = 0
    cache_salt: str | None = None
    abort_after: int | None = None
    abort_at: int | None = None
    within_step: bool = False
    grammar_after: int | None = None
    grammar_fails: bool = False


@dataclass
class Case:
    """resets: (tokens answered by all so far, whether running requests are preempted). pauses: (tokens answered by all
    so far, state, steps until it ends)."""

    shape: Shape
    requests: list[Planned]
    resets: list[tuple[int, bool]] = field(default_factory=list)
    pauses: list[tuple[int, PauseState, int]] = field(default_factory=list)


def random_case(seed: int, *, asynchronous: bool, runner: int) -> Case:
    dice = random.Random(seed)
    max_model_len = dice.choice((320, 512))
    crowd, ranks = dice.random() < 0.2, dice.random() < 0.4
    shape = Shape(
        num_blocks=dice.choice((max_model_len // BLOCK_SIZE + 2, 45, 70, 400)),
        max_num_seqs=8 if crowd else dice.choice((3, 8, 32)),
        max_num_batched_tokens=dice.choice((32, 48)) if crowd else dice.choice((32, 48, 128, 512)),
        max_model_len=max_model_len,
        prefix_caching=crowd or dice.random() < 0.85,
        priorities=ranks,
        long_prefill_token_threshold=dice.choice((5, 10, 20)) if crowd else dice.choice((0, 0, 0, 40)),
        asynchronous=asynchronous,
        runner=runner,
    )
    shared = [[_token(dice) for _ in range(MAX_PROMPT)] for _ in range(2)]
    lengths = (200,) if crowd else (0, 0, 15, 16, 17, 64, 150, 200)
    requests: list[Planned] = []
    spread = 0 if crowd else dice.choice((2, 5) if ranks else (0, 1, 3, 8))
    while len(requests) < dice.randint(4, 18):
        requests += _group(dice, len(requests), shared, lengths, spread * len(requests))
    case = Case(shape, requests)
    _use_again(dice, case)
    total = sum(planned.sampling["max_tokens"] for planned in requests)
    if dice.random() < 0.3:
        case.resets = [(dice.randint(1, total), dice.random() < 0.6) for _ in range(dice.randint(1, 3))]
    if dice.random() < 0.3:
        states = (PauseState.PAUSED_NEW, PauseState.PAUSED_ALL)
        case.pauses = [(dice.randint(1, total), dice.choice(states), dice.randint(1, 9)) for _ in range(2)]
    return case


def _token(dice: random.Random) -> int:
    return dice.randrange(FIRST_TOKEN, FIRST_TOKEN + NUM_TOKENS)


def _group(
    dice: random.Random, number: int, shared: list[list[int]], lengths: Sequence[int], step: int
) -> list[Planned]:
    """A request; or several of one prompt, as n makes them. lengths: of the beginnings that prompts share."""
    prompt = dice.choice(shared)[: dice.choice(lengths)]
    prompt = prompt + [_token(dice) for _ in range(dice.randint(1, 50))]
    sampling: dict[str, Any] = {"max_tokens": dice.choice((1, 2, 5, 20, 60)), "ignore_eos": dice.random() < 0.5}
    planned = Planned(f"r{number}", prompt, sampling, step, client=dice.choice((0, 0, 0, 1, 2)))
    planned.priority = dice.randint(-2, 2)
    if dice.random() < 0.3:
        sampling["stop_token_ids"] = [_token(dice) for _ in range(dice.randint(1, 6))]
        if dice.random() < 0.2:  # more than the core compares
            sampling["stop_token_ids"] += range(1000, 1100)
        sampling["min_tokens"] = dice.choice((0, 0, min(7, sampling["max_tokens"])))
    if dice.random() < 0.1:
        sampling["skip_reading_prefix_cache"] = True
    if dice.random() < 0.15:
        sampling["logprobs"] = 1
    if dice.random() < 0.1:
        sampling["prompt_logprobs"] = 0
    if dice.random() < 0.1:
        planned.cache_salt = dice.choice(("salt", "pepper"))
    kind = dice.random()
    if kind < 0.15:
        planned.grammar_after = dice.randint(0, 6)
        planned.grammar_fails = dice.random() < 0.2
    elif kind < 0.25:
        sampling["repetition_detection"] = RepetitionDetectionParams(
            max_pattern_size=2, min_pattern_size=1, min_count=2
        )
    elif kind < 0.4:
        planned.abort_after = dice.randint(0, sampling["max_tokens"])
        planned.within_step = dice.random() < 0.5
    elif kind < 0.45:
        planned.abort_at = dice.randint(0, 12)
    if dice.random() < 0.2:
        siblings = range(dice.randint(2, 3))
        return [_sibling(planned, i) for i in siblings]
    return [planned]


def _sibling(planned: Planned, i: int) -> Planned:
    fields = {name: getattr(planned, name) for name in planned.__dataclass_fields__}
    return Planned(**{**fields, "name": f"{i}_{planned.name}", "sampling": {**planned.sampling, "seed": i}})


def _use_again(dice: random.Random, case: Case) -> None:
    """An id comes again right after its request was aborted."""
    for planned in list(case.requests):
        if planned.abort_after is not None and planned.abort_after and dice.random() < 0.5:
            again = Planned(planned.name, planned.prompt[:-1] or planned.prompt, {"max_tokens": 4, "ignore_eos": True})
            again.step = -1  # see matrix.py
            case.requests.append(again)


@dataclass(frozen=True)
class Expected:
    """What a request answers if it is not aborted."""

    tokens: list[int]
    reason: str
    stop_reason: Any


def expected(planned: Planned, max_model_len: int) -> Expected:
    """By vLLM's own rules for the end of a request."""
    from engines import make_request

    if planned.grammar_fails:
        return Expected([], "error", None)
    sampling = make_request(
        planned.name, planned.prompt, grammar=planned.grammar_after is not None, **planned.sampling
    ).sampling_params
    history, tokens = digest_of(planned.prompt), []
    limit = min(sampling.max_tokens, max_model_len - len(planned.prompt))
    while True:
        allowed = None if planned.grammar_after is None else allowed_after(len(tokens))
        token = next_token(history, sampling, len(tokens), allowed)
        history = digest(history, token)
        tokens.append(token)
        if token == sampling.eos_token_id:
            return Expected(tokens, "stop", None)
        if token in (sampling.stop_token_ids or ()):
            return Expected(tokens, "stop", token)
        if len(tokens) >= limit:
            return Expected(tokens, "length", None)
        repetition = sampling.repetition_detection
        if (
            repetition is not None
            and len(tokens) >= sampling.min_tokens
            and check_sequence_repetition(tokens, repetition)
        ):
            return Expected(tokens, "repetition", "repetition_detected")


__all__ = ["EOS", "Case", "Expected", "Planned", "expected", "random_case"]
