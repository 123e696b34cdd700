"""What the real engine is asked, offline and over HTTP. Runs in both environments: standard library only.

A question is (prompt, parameters), the latter by the names of vLLM's SamplingParams, which are those of its HTTP API
too. All are greedy, or have a seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

Question = tuple[str, dict[str, Any]]

PLAIN = 24
"""Prompts that most cases need."""

CROWD = 100
"""Prompts that are asked at once."""

LONGEST = 96
"""Tokens of an answer. Prompts are chosen by the margin at this many."""

MARGIN = 1e-5
"""In logarithms of probabilities: by how much the best token must lead. Different orders of adding must not decide."""

CHARACTERS = "abcdefghij 0123456789+-=,."
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
GRAMMARS: tuple[dict[str, Any], ...] = (
    {"regex": "[a-e]{5,20}[0-9]"},
    {"choice": ["yes", "no", "never"]},
    {"json": SCHEMA},
    {"grammar": 'root ::= "a" root | "b"'},
)


def candidates() -> Iterator[str]:
    """Prompts without end, always the same. Half of them begin with the same text, which a prefix cache can keep."""
    dice = random.Random(12)
    shared = "".join(dice.choice(CHARACTERS) for _ in range(70))
    while True:
        own = "".join(dice.choice(CHARACTERS) for _ in range(dice.choice((4, 20, 45, 90))))
        yield shared + own if dice.random() < 0.5 else own


def plain(prompts: Sequence[str]) -> list[Question]:
    """Greedy, to the end of the sequence or to a limit; some limits are a single token."""
    limits = (1, 2, 17, 30)
    return [
        (prompt, {"max_tokens": limits[i % 4], "ignore_eos": i % 3 > 0, "min_tokens": 2 if i % 12 == 3 else 0})
        for i, prompt in enumerate(prompts[:PLAIN])
    ]


def logprobs(prompts: Sequence[str]) -> list[Question]:
    return [(prompt, {"max_tokens": 12, "logprobs": i % 5}) for i, prompt in enumerate(prompts[:PLAIN])]


def prompt_logprobs(prompts: Sequence[str]) -> list[Question]:
    return [(prompt, {"max_tokens": 6, "prompt_logprobs": i % 3}) for i, prompt in enumerate(prompts[:PLAIN])]


def stops(prompts: Sequence[str]) -> list[Question]:
    """Stop strings, which the front end finds and then ends the request from outside; and stop tokens."""
    ways: tuple[dict[str, Any], ...] = (
        {"stop": ["a", "7"]},
        {"stop": ["b", "e"], "include_stop_str_in_output": True},
        {"stop_token_ids": list(range(20, 24))},
        {"stop_token_ids": list(range(64, 72)), "min_tokens": 6},
    )
    return [(prompt, {"max_tokens": 30, "ignore_eos": True, **ways[i % 4]}) for i, prompt in enumerate(prompts[:PLAIN])]


def samples(prompts: Sequence[str]) -> list[Question]:
    """Several completions of a prompt, drawn by a seed."""
    return [
        (prompt, {"max_tokens": 10, "n": 1 + i % 4, "seed": i, "temperature": 0.9, "ignore_eos": True})
        for i, prompt in enumerate(prompts[:PLAIN])
    ]


def grammars(prompts: Sequence[str]) -> list[Question]:
    """Structured outputs of each kind, between requests without."""
    return [
        (prompt, {"max_tokens": 24} | ({"structured_outputs": GRAMMARS[i // 2 % 4]} if i % 2 else {}))
        for i, prompt in enumerate(prompts[:PLAIN])
    ]


def repetitions(prompts: Sequence[str]) -> list[Question]:
    """Requests that end because their output repeats."""
    detected = {"max_pattern_size": 4, "min_pattern_size": 1, "min_count": 3}
    return [
        (prompt, {"max_tokens": 40, "ignore_eos": True, "repetition_detection": detected}) for prompt in prompts[:PLAIN]
    ]


def crowd(prompts: Sequence[str]) -> list[Question]:
    """Many at once, of every length."""
    return [(prompt, {"max_tokens": 8 + i % 40, "ignore_eos": True}) for i, prompt in enumerate(prompts[:CROWD])]


def long_answers(prompts: Sequence[str]) -> list[Question]:
    """Requests that grow by some blocks while they decode: in a tight pool some are preempted after they have begun."""
    return [(prompt, {"max_tokens": LONGEST, "ignore_eos": True}) for prompt in prompts[: 2 * PLAIN]]


def to_choose_from(prompts: Sequence[str]) -> list[Question]:
    """What tells the margins of prompts."""
    return [(prompt, {"max_tokens": LONGEST, "logprobs": 2, "ignore_eos": True}) for prompt in prompts]


CASES = {
    "plain": plain,
    "again, from the prefix cache": plain,
    "logprobs": logprobs,
    "prompt logprobs": prompt_logprobs,
    "stop": stops,
    "n with seed": samples,
    "grammar": grammars,
    "repetition detection": repetitions,
    "100 at once": crowd,
    "long answers": long_answers,
}
