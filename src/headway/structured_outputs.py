"""The form that an answer must have: JSON, a regular expression, one of several texts, a grammar."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from headway.errors import RequestError

MAX_BYTES = 256 * 2**10  # of a schema, a grammar, or all choices together, as UTF-8
MAX_CHOICES = 4096
MAX_DEPTH = 64  # of objects and lists in one another, in a schema or a structural tag
MAX_STARTS_AFTER = 64
KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """The form of an answer. Exactly one of the first six fields is given. Names follow vLLM's.

    json: a JSON schema, as text or as a dict; kept as text.
    json_object: any JSON object.
    regex: the whole answer matches this regular expression.
    choice: the answer is one of these texts.
    grammar: a grammar in EBNF as xgrammar reads it, with a rule `root`.
    structural_tag: JSON of free text in which parts between tags have a form; as xgrammar and vLLM read it.
    disable_any_whitespace: JSON is written without line breaks and indents.
    starts_after: token ids that end the reasoning, one after another; what comes before them has any form. Empty: the
        answer has its form from the first token on.

    Raises RequestError (a ValueError) that names the field, and value and limit.
    """

    json: str | dict[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    starts_after: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.json_object, bool) or not isinstance(self.disable_any_whitespace, bool):
            raise RequestError("structured_outputs: json_object and disable_any_whitespace must be true or false")
        given = [kind for kind in KINDS if getattr(self, kind) not in (None, False)]
        if len(given) != 1:
            raise RequestError(
                f"structured_outputs needs exactly one of {', '.join(KINDS)}, got {' and '.join(given) or 'none'}"
            )
        match given[0]:
            case "json":
                object.__setattr__(self, "json", _schema_text(self.json))
            case "choice":
                object.__setattr__(self, "choice", _choices(self.choice))
            case "structural_tag":
                _check_text("structural_tag", self.structural_tag)
                _check_tag(_parsed("structural_tag", self.structural_tag))
            case "regex" | "grammar" as kind:
                _check_text(kind, getattr(self, kind))
        object.__setattr__(self, "starts_after", tuple(self.starts_after))
        if len(self.starts_after) > MAX_STARTS_AFTER:
            raise RequestError(f"starts_after takes at most {MAX_STARTS_AFTER} ids, got {len(self.starts_after)}")
        if any(isinstance(token, bool) or not isinstance(token, int) for token in self.starts_after):
            raise RequestError("starts_after takes token ids, which are integers")

    @property
    def kind(self) -> str:
        """The field that is given: one of KINDS."""
        return next(kind for kind in KINDS if getattr(self, kind) not in (None, False))

    @property
    def text(self) -> str:
        """What is given, as one text: equal texts of one kind mean the same form."""
        value = getattr(self, self.kind)
        if isinstance(value, str):
            return value
        return json.dumps(value)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise RequestError(f"structured_outputs: {name} must be a text that is not empty, got {value!r:.100}")
    _check_size(name, value)


def _check_size(name: str, text: str) -> None:
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no message can carry
        raise RequestError(f"structured_outputs: {name} cannot be written as UTF-8: {error.reason}") from None
    if num_bytes > MAX_BYTES:
        raise RequestError(f"structured_outputs: {name} has {num_bytes} bytes; at most {MAX_BYTES} are taken")


def _parsed(name: str, text: object) -> Any:
    try:
        value = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise RequestError(f"structured_outputs: {name} is not valid JSON: {what}") from None
    _check_depth(name, value)
    return value


def _schema_text(schema: object) -> str:
    """The text of a schema. The order of its keys is kept: it is the order in the answer."""
    if isinstance(schema, str):
        _check_text("json", schema)
        schema = _parsed("json", schema)
    if not isinstance(schema, dict | bool):
        raise RequestError(f"structured_outputs: json must be a JSON schema, an object, got {type(schema).__name__}")
    _check_depth("json", schema)
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"structured_outputs: json cannot be written as JSON: {error}") from None
    _check_size("json", text)
    return text


def _check_depth(name: str, value: object) -> None:
    """Level by level: a value that holds itself has no end, and ends here all the same."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inner = [one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)]
        level = list({id(one): one for one in inner if isinstance(one, dict | list)}.values())
    if level:
        raise RequestError(f"structured_outputs: {name} is nested more than {MAX_DEPTH} levels deep")


def _choices(choices: object) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, list | tuple):
        raise RequestError(f"structured_outputs: choice must be a list of texts, got {type(choices).__name__}")
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise RequestError(f"structured_outputs: choice takes 1 to {MAX_CHOICES} texts, got {len(choices)}")
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise RequestError(f"structured_outputs: each choice must be a text that is not empty, got {choice!r:.100}")
    _check_size("choice", "".join(choices))
    return tuple(choices)


def _check_tag(tag: object) -> None:
    if not isinstance(tag, dict):
        raise RequestError(f"structured_outputs: structural_tag must be a JSON object, got {type(tag).__name__}")
