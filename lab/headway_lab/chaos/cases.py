"""What clients ask: a fixed set of requests, and the right answer to each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from headway_lab.chaos.verdict import Right

NUM_CASES = 36
MAX_TOKENS = 24
LENGTHS = (6, 20, 70, 130, 260, 500)  # characters, which are tokens of the embedded model
NUM_FAMILIES = 4  # prompts of a family begin with the same SHARED characters
SHARED = 120
MIN_MARGIN = 0.03  # between the two best log-probabilities at every position: no rounding turns the order around
_CHARACTERS = "0123456789+-=abcdefghijkZXY "
_MORE: tuple[Mapping[str, Any], ...] = ({}, {"logprobs": 2}, {"n": 2}, {"stop": ["9"]}, {"ignore_eos": True})


@dataclass(frozen=True, slots=True)
class Case:
    """A request. body: without the field "stream"."""

    path: str
    body: Mapping[str, Any]

    @property
    def is_chat(self) -> bool:
        """Whether it is a conversation."""
        return "chat" in self.path


def drawn() -> Iterator[Case]:
    """Requests without end, always the same ones."""
    dice = random.Random("cases of chaos")
    families = ["".join(dice.choices(_CHARACTERS, k=SHARED)) for _ in range(NUM_FAMILIES)]
    number = 0
    while True:
        text = "".join(dice.choices(_CHARACTERS, k=LENGTHS[number % len(LENGTHS)]))
        if number % 3 == 0:
            text = dice.choice(families) + text
        more = dict(dice.choice(_MORE))
        body = {"max_tokens": dice.choice((1, MAX_TOKENS, 2 * MAX_TOKENS)), "temperature": 0, **more}
        if number % 4 == 3:
            if "logprobs" in body:
                body |= {"logprobs": True, "top_logprobs": 2}
            yield Case("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]})
        else:
            yield Case("/v1/completions", {**body, "prompt": text})
        number += 1


async def with_answers(url: str, count: int = NUM_CASES) -> tuple[list[Case], list[dict[int, Right]]]:
    """Cases whose answers no rounding changes, and their answers by the engine at `url`."""
    cases: list[Case] = []
    answers: list[dict[int, Right]] = []
    async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as http:
        for case in drawn():
            if len(cases) == count:
                break
            logprobs: dict[str, Any] = {"logprobs": True, "top_logprobs": 2} if case.is_chat else {"logprobs": 2}
            response = await http.post(case.path, json={**case.body, **logprobs})
            response.raise_for_status()
            choices = response.json()["choices"]
            if min(map(_margin, choices)) < MIN_MARGIN:
                continue
            cases.append(case)
            answers.append({choice["index"]: right(choice, bool(case.body.get("logprobs"))) for choice in choices})
    return cases, answers


def right(choice: Mapping[str, Any], with_tokens: bool) -> Right:
    """A choice in the answer of a server."""
    return Right(text_of(choice), choice["finish_reason"], tokens_of(choice) if with_tokens else ())


def text_of(choice: Mapping[str, Any]) -> str:
    """The text of a choice, or of a part of it, in each of the forms that servers write."""
    if "text" in choice:
        return str(choice["text"])
    return str(choice.get("message", choice.get("delta", {})).get("content") or "")


def tokens_of(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Its tokens and their log-probabilities; empty where none were asked for."""
    logprobs = choice.get("logprobs")
    if not logprobs:
        return ()
    if "content" in logprobs:
        return tuple((token["token"], token["logprob"]) for token in logprobs["content"])
    return tuple(zip(logprobs["tokens"], logprobs["token_logprobs"]))


def _margin(choice: Mapping[str, Any]) -> float:
    """The smallest distance between the best two tokens of a position."""
    logprobs = choice["logprobs"]
    if "content" in logprobs:
        tops = [[top["logprob"] for top in token["top_logprobs"]] for token in logprobs["content"]]
    else:
        tops = [list(top.values()) for top in logprobs["top_logprobs"]]
    best = [sorted(top, reverse=True) for top in tops]
    return min((top[0] - top[1] for top in best if len(top) > 1), default=0.0)
