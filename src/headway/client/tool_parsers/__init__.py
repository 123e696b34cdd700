"""Parsers of tool calls, by the names that vLLM gives them: one file per form."""

from __future__ import annotations

from functools import lru_cache

from headway.client.tool_parsers.deepseek_v3 import DeepSeekV3Parser
from headway.client.tool_parsers.hermes import HermesParser
from headway.client.tool_parsers.llama3_json import Llama3JsonParser
from headway.client.tool_parsers.mistral import MistralParser
from headway.client.tool_parsers.pythonic import PythonicParser
from headway.client.tool_parsers.tool_parser import ToolParser

__all__ = ["TOOL_PARSERS", "ToolParser", "tool_parser", "tool_parser_of"]

TOOL_PARSERS: dict[str, type[ToolParser]] = {
    "deepseek_v3": DeepSeekV3Parser,
    "deepseek_v31": DeepSeekV3Parser,
    "granite4": HermesParser,
    "hermes": HermesParser,
    "llama3_json": Llama3JsonParser,
    "llama4_json": Llama3JsonParser,
    "llama4_pythonic": PythonicParser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
    "qwen3_json": HermesParser,
}


def tool_parser(name: str) -> type[ToolParser]:
    """The parser of this name. Raises ValueError for a name that is unknown."""
    if name not in TOOL_PARSERS:
        raise ValueError(f"there is no tool parser {name!r:.60}: choose one of {', '.join(sorted(TOOL_PARSERS))}")
    return TOOL_PARSERS[name]


@lru_cache(maxsize=64)
def tool_parser_of(template: str) -> type[ToolParser] | None:
    """The parser of the form that a chat template tells the model to use; None if it does not say, or says an unknown
    one."""
    for parser in dict.fromkeys(TOOL_PARSERS.values()):
        if any(sign in template for sign in parser.signs) and not any(other in template for other in parser.contrary):
            return parser
    return None
