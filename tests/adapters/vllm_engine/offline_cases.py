"""The offline engines, and what each is asked. Runs in both environments: standard library only."""

from __future__ import annotations

from typing import Any, NamedTuple


class Engine(NamedTuple):
    """options: of vLLM's `LLM`. cases: names from `questions.CASES`."""

    options: dict[str, Any]
    cases: tuple[str, ...]


TIGHT = {"num_gpu_blocks_override": 20, "max_num_seqs": 32}  # of 32 tokens: each request needs up to 7
ENGINES = {
    "roomy": Engine(
        {},
        (
            "plain",
            "again, from the prefix cache",
            "logprobs",
            "prompt logprobs",
            "stop",
            "n with seed",
            "grammar",
            "repetition detection",
            "100 at once",
        ),
    ),
    "tight": Engine(TIGHT, ("100 at once", "long answers", "logprobs", "grammar")),
    "tight with priorities": Engine({**TIGHT, "scheduling_policy": "priority"}, ("100 at once", "long answers")),
    "in small chunks": Engine(
        {"max_num_batched_tokens": 32, "max_num_seqs": 16}, ("100 at once", "prompt logprobs", "stop")
    ),
}
