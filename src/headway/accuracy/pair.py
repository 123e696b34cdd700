"""A prefill engine and a decode engine in this process: every prompt goes through both, as behind a router."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

from headway import LLM, SamplingParams
from headway.accuracy.reference import Reference
from headway.config import KVTransport
from headway.outputs import CompletionOutput, RequestOutput
from headway.scheduler.snapshot import Snapshot
from headway.transfer.counts import WAYS
from headway.transfer.nixl import is_installed

TRANSPORTS = tuple(way.value for way in WAYS if way is not KVTransport.NIXL or is_installed())
"""The ways of KV between two engines that can be tried here."""

Question = tuple[list[int], SamplingParams]

_LENDS = {"do_remote_decode": True, "do_remote_prefill": False}
_TIMEOUT = 600.0  # seconds; no lease is lost on a slow machine
_TOLERANCE = 1e-3  # of a logprob: two engines do not round their sums alike


class Answers(NamedTuple):
    """Answers to questions, in their order, and the last numbers of both engines."""

    outputs: list[RequestOutput]
    p: Snapshot
    d: Snapshot


def ask_pair(make: Callable[..., LLM], transport: str, questions: Sequence[Question], p_blocks: int) -> Answers:
    """Let P compute every prompt, and D answer. D begins when P has all, which lends until then.

    make: an engine, of settings beside its own. transport: of `TRANSPORTS`. p_blocks: of P's pool.
    """
    prompts = [prompt for prompt, _ in questions]
    common: dict[str, Any] = {
        "kv_transport": KVTransport(transport),
        "lend_timeout": _TIMEOUT,
        "receive_timeout": _TIMEOUT,
    }
    with ExitStack() as stack:
        p = stack.enter_context(make(role="prefill", kv_listen="127.0.0.1:0", num_blocks=p_blocks, **common))
        first = [_for_first_token(sampling, number) for number, (_, sampling) in enumerate(questions)]
        lent = [output.kv_transfer_params or {} for output in _generate(p, prompts, first, _LENDS)]
        (peer,) = {f"{params['remote_host']}:{params['remote_port']}" for params in lent}
        d = stack.enter_context(make(role="decode", kv_peers=peer, **common))
        outputs = _generate(d, prompts, [sampling for _, sampling in questions], lent)
        return Answers(outputs, p.snapshot(), d.snapshot())


def questions_of(reference: Reference) -> list[Question]:
    """What greedy answers do not show: seeds, logprobs, penalties, several answers, an end at the first token."""
    questions = []
    for number, (prompt, output) in enumerate(zip(reference.prompts, reference.outputs)):
        greedy = SamplingParams(temperature=0, max_tokens=len(output), ignore_eos=True)
        sampled = replace(greedy, temperature=0.8, seed=7)
        kinds = (
            replace(sampled, logprobs=3),
            replace(sampled, n=2),
            replace(sampled, top_p=0.9, top_k=20, presence_penalty=0.5, repetition_penalty=1.1),
            replace(greedy, logprobs=2, min_tokens=3),
            replace(greedy, stop_token_ids=(output[0],)),
        )
        questions.append((prompt, kinds[(number + number // len(kinds)) % len(kinds)]))
    return questions


def is_same(one: RequestOutput, other: RequestOutput) -> bool:
    """Whether two engines gave the same answers: every token, and nearly the same logprobs."""
    return len(one.outputs) == len(other.outputs) and all(map(_is_same_answer, one.outputs, other.outputs))


def _is_same_answer(one: CompletionOutput, other: CompletionOutput) -> bool:
    if one.token_ids != other.token_ids or (one.logprobs is None) != (other.logprobs is None):
        return False
    return all(
        mine.keys() == theirs.keys()
        and all(abs(mine[token].logprob - theirs[token].logprob) < _TOLERANCE for token in mine)
        for mine, theirs in zip(one.logprobs or (), other.logprobs or (), strict=True)
    )


def _for_first_token(sampling: SamplingParams, number: int) -> SamplingParams:
    """What a router asks P. Some ask for one token at least: D cannot use such a token, and draws it again."""
    return replace(sampling, n=1, max_tokens=1, min_tokens=number % 2)


def _generate(llm: LLM, prompts: list[list[int]], sampling: list[SamplingParams], params: Any) -> list[RequestOutput]:
    return llm.generate(prompts, sampling, use_tqdm=False, kv_transfer_params=params)
