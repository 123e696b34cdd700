"""Parsers of reasoning, by the names that vLLM gives them."""

from __future__ import annotations

from headway.client.reasoning_parsers.think_tags import (
    DeepSeekR1Reasoning,
    MistralReasoning,
    Qwen3Reasoning,
    ReasoningParser,
)

__all__ = ["REASONING_PARSERS", "ReasoningParser", "reasoning_parser"]

REASONING_PARSERS: dict[str, type[ReasoningParser]] = {
    "deepseek_r1": DeepSeekR1Reasoning,
    "deepseek_v3": Qwen3Reasoning,
    "mistral": MistralReasoning,
    "qwen3": Qwen3Reasoning,
}


def reasoning_parser(name: str) -> type[ReasoningParser]:
    """The parser of this name. Raises ValueError for a name that is unknown."""
    if name not in REASONING_PARSERS:
        raise ValueError(
            f"there is no reasoning parser {name!r:.60}: choose one of {', '.join(sorted(REASONING_PARSERS))}"
        )
    return REASONING_PARSERS[name]
