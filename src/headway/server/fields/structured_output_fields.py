"""The fields of a body that ask for an answer in a given form: JSON, a regular expression, a grammar.

`response_format` is OpenAI's; `structured_outputs` is vLLM's, and the fields `guided_*` are older names for parts of
it. A body has one of them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from headway.client.field_rules import AtMost, Unsupported
from headway.client.strict_model import StrictModel
from headway.errors import RequestError
from headway.structured_outputs import MAX_CHOICES, StructuredOutputs

Schema = str | dict[str, Any]
_Choice = Annotated[str, Field(min_length=1)]
_Choices = Annotated[list[_Choice], Field(min_length=1), AtMost(MAX_CHOICES, "choices")]
_Text = Annotated[str, Field(min_length=1)]
_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}


class _Tolerant(StrictModel):
    """Unknown fields are ignored: client libraries put their own into these objects."""

    model_config = ConfigDict(extra="ignore", strict=True)


class JsonSchemaFormat(_Tolerant):
    """strict: the schema is kept to whether it is true or not."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(_Tolerant):
    """OpenAI's, with vLLM's structural tag: in the newer form with `format`, in the older with the two others."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None

    def form(self) -> dict[str, Any]:
        """Raises RequestError for a format without what its type needs."""
        match self.type:
            case "json_object":
                return {"json_object": True}
            case "json_schema":
                if self.json_schema is None or self.json_schema.schema_ is None:
                    raise RequestError(
                        "structured_outputs: response_format of type json_schema needs json_schema.schema"
                    )
                return {"json": self.json_schema.schema_}
            case "structural_tag":
                given = {name: getattr(self, name) for name in ("format", "structures", "triggers")}
                tag = {"type": self.type, **{name: value for name, value in given.items() if value is not None}}
                return {"structural_tag": json.dumps(tag, ensure_ascii=False)}
        return {}


class StructuredOutputsBody(_Tolerant):
    """vLLM's `structured_outputs`; see `StructuredOutputs`."""

    json_: Annotated[Schema | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: _Text | None = None
    choice: _Choices | None = None
    grammar: _Text | None = None
    structural_tag: _Text | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: Annotated[Any, Unsupported(False)] = None
    whitespace_pattern: Annotated[Any, Unsupported()] = None

    def form(self) -> dict[str, Any]:
        """The form that it asks for; empty: any."""
        given = self.model_dump(by_alias=True, exclude_none=True)
        wanted = {name: value for name, value in given.items() if value not in (False, [], {})}
        wanted.pop("disable_additional_properties", None)
        wanted.pop("whitespace_pattern", None)
        if self.json_ is not None:
            wanted["json"] = self.json_
        return {} if wanted.keys() <= {"disable_any_whitespace"} else wanted


class StructuredOutputFields(StrictModel):
    """Completions and chat completions have these fields."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsBody | None = None
    guided_json: Schema | None = None
    guided_regex: _Text | None = None
    guided_choice: _Choices | None = None
    guided_grammar: _Text | None = None

    def form(self) -> StructuredOutputs | None:
        """The form that the answer must have; None: any. Raises RequestError for two forms, naming both fields, and for
        a form that cannot be used."""
        forms: dict[str, dict[str, Any]] = {}
        for name in ("response_format", "structured_outputs"):
            field: ResponseFormat | StructuredOutputsBody | None = getattr(self, name)
            if field is not None and (form := field.form()):
                forms[name] = form
        for name, kind in _GUIDED.items():
            if (value := getattr(self, name)) is not None:
                forms[name] = {kind: value}
        if len(forms) > 1:
            raise RequestError(
                f"structured_outputs: {' and '.join(forms)} cannot be given together: an answer has one form"
            )
        return next((StructuredOutputs(**form) for form in forms.values()), None)


def as_fields(form: StructuredOutputs | None) -> dict[str, Any]:
    """The fields of a body that ask for this form from the first token on. None, or a form that begins after the
    reasoning: no fields."""
    if form is None or form.starts_after:
        return {}
    wanted = {form.kind: getattr(form, form.kind), "disable_any_whitespace": form.disable_any_whitespace}
    return {"structured_outputs": wanted}
