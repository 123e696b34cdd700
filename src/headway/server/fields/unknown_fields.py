"""Fields that a body has and Headway does not know: routers and client libraries put such fields into every request."""

from __future__ import annotations

import logging
from typing import Any

from headway.client.conversation import ChatMessage, ContentPart
from headway.client.strict_model import StrictModel
from headway.error_text import bounded
from headway.errors import RequestError
from headway.server.errors import ApiError

logger = logging.getLogger(__name__)

_MOST_NAMES = 256  # that are logged
_SHOWN = 300  # characters of a name in an error
_LONGEST_NAME = 64  # characters of a name in the log

# Known from other servers, and not served here. An answer without these would not be what was asked for.
CHANGE_THE_ANSWER = frozenset(
    {
        *("logprob_token_ids", "return_prompt_text", "custom_logit_processor", "stop_regex", "structural_tag"),
        *("regex", "ebnf", "json_schema", "use_beam_search", "length_penalty"),
        *("logits_processors", "echo", "documents", "prompt_embeds", "lora_path", "adapter_id"),
        *("return_hidden_states", "input_ids", "image_data"),
    }
)
SIMULTANEOUS = frozenset({"bootstrap_host", "bootstrap_port", "bootstrap_room"})
_ASK_FOR_NOTHING: tuple[Any, ...] = (None, False, "", [], {})


class UnknownFields:
    """Takes unknown fields out of bodies, and logs each name once. Fields that would change the answer are refused,
    unless their values ask for nothing. strict: all are refused. sglang-router's form of P/D is refused in words of its
    own: the name of a field does not say what is wrong."""

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._logged: set[str] = set()

    def without(self, value: Any, known: frozenset[str]) -> Any:
        """The body without unknown fields. known: the names that its models have. Any thread. Raises RequestError for
        sglang-router's form of P/D, and ApiError that names the other fields that are refused."""
        if not isinstance(value, dict):
            return value
        _refuse_simultaneous(value)
        unknown = [name for name in value if name not in known]
        if self._strict:
            _refuse(unknown, "unknown field {names}", "unknown fields {names}")
        refused = [name for name in unknown if not _may_go(name, value[name])]
        _refuse(
            refused,
            "the field {names} is not supported: leave it out",
            "the fields {names} are not supported: leave them out",
        )
        for name in unknown:
            del value[name]
            self._log(name)
        if not self._strict:
            self._clean_messages(value.get("messages"))
        return value

    def _clean_messages(self, messages: Any) -> None:
        """Take unknown fields out of messages and their texts: clients send back what other servers have added."""
        for message in _objects(messages):
            for part in _objects(message.get("content")):
                if part.get("type") == "text":
                    self._clean(part, ContentPart)
            self._clean(message, ChatMessage)

    def _clean(self, record: dict[str, Any], kind: type[StrictModel]) -> None:
        for name in record.keys() - kind.model_fields.keys():
            del record[name]
            self._log(f"messages.{name}")

    def _log(self, name: str) -> None:
        name = name[:_LONGEST_NAME]
        if name not in self._logged and len(self._logged) < _MOST_NAMES:
            self._logged.add(name)
            logger.info("requests bring the field %r, which is not known here and is ignored", name)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _refuse(fields: list[str], one: str, several: str) -> None:
    """Raises ApiError that names the fields, unless there are none."""
    if fields:
        names = bounded(", ", fields, lambda name: f"{name!r:.{_SHOWN}}")
        raise ApiError(400, (one if len(fields) == 1 else several).format(names=names), param=fields[0][:_SHOWN])


def _may_go(name: str, value: Any) -> bool:
    if name not in CHANGE_THE_ANSWER:
        return True
    return _asks_for_nothing(value) or (name == "length_penalty" and value == 1)


def _asks_for_nothing(value: Any) -> bool:
    return any(type(value) is type(nothing) and value == nothing for nothing in _ASK_FOR_NOTHING)


def _refuse_simultaneous(body: dict[str, Any]) -> None:
    for name in body.keys() & SIMULTANEOUS:
        if not _asks_for_nothing(body[name]):
            raise RequestError(
                "sglang-router's form of prefill and decode (bootstrap_host, bootstrap_port, bootstrap_room) asks both "
                "engines at the same time, and is not served: here the decode engine needs what the prefill engine "
                "answers. Use a router with vLLM's protocol (kv_transfer_params), or let the decode engine ask by "
                "itself (headway serve --role decode --prefill URL)"
            )
