"""Fields that a body has and Headway does not know: routers and client libraries put such fields into every request."""

from __future__ import annotations

import logging
from typing import Any

from headway.errors import RequestError

logger = logging.getLogger(__name__)

_MOST_NAMES = 256  # that are logged
_LONGEST_NAME = 64  # characters of a name in the log

# Known from other servers, and not served here. An answer without these would not be what was asked for.
_CHANGE_THE_ANSWER = frozenset(
    {
        *("bad_words", "allowed_token_ids", "truncate_prompt_tokens", "add_special_tokens", "structural_tag"),
        *("regex", "ebnf", "json_schema", "use_beam_search", "length_penalty", "thinking_token_budget"),
        *("repetition_detection", "logits_processors", "echo", "documents", "prompt_embeds", "lora_path"),
        *("return_token_ids", "return_tokens_as_token_ids", "return_hidden_states", "input_ids", "image_data"),
    }
)
_SIMULTANEOUS = frozenset({"bootstrap_host", "bootstrap_port", "bootstrap_room"})
_ASK_FOR_NOTHING: tuple[Any, ...] = (None, False, "", [], {})


class UnknownFields:
    """Takes unknown fields out of bodies, and logs each name once. A field that would change the answer stays, and is
    refused, unless its value asks for nothing. strict: all stay, and the first is refused. sglang-router's form of P/D
    is refused in words of its own: the name of a field does not say what is wrong."""

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._logged: set[str] = set()

    def without(self, value: Any, known: frozenset[str]) -> Any:
        """The body without unknown fields. known: the names that its models have. Any thread. Raises RequestError for
        sglang-router's form of P/D."""
        if not isinstance(value, dict):
            return value
        _refuse_simultaneous(value)
        if self._strict:
            return value
        dropped = [name for name in value if name not in known and _may_go(name, value[name])]
        for name in dropped:
            del value[name]
            self._log(name)
        return value

    def _log(self, name: str) -> None:
        name = name[:_LONGEST_NAME]
        if name not in self._logged and len(self._logged) < _MOST_NAMES:
            self._logged.add(name)
            logger.info("requests bring the field %r, which is not known here and is ignored", name)


def _may_go(name: str, value: Any) -> bool:
    if name not in _CHANGE_THE_ANSWER | _SIMULTANEOUS:
        return True
    return _asks_for_nothing(value) or (name == "length_penalty" and value == 1)


def _asks_for_nothing(value: Any) -> bool:
    return any(type(value) is type(nothing) and value == nothing for nothing in _ASK_FOR_NOTHING)


def _refuse_simultaneous(body: dict[str, Any]) -> None:
    for name in body.keys() & _SIMULTANEOUS:
        if not _asks_for_nothing(body[name]):
            raise RequestError(
                "sglang-router's form of prefill and decode (bootstrap_host, bootstrap_port, bootstrap_room) asks both "
                "engines at the same time, and is not served: here the decode engine needs what the prefill engine "
                "answers. Use a router with vLLM's protocol (kv_transfer_params), or let the decode engine ask by "
                "itself (headway serve --role decode --prefill URL)"
            )
