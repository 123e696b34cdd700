"""The fields of a body that ask for an answer in a given form: JSON, a regular expression, a grammar."""

from __future__ import annotations

from typing import Annotated, Any

from headway.client.field_rules import Unsupported
from headway.client.strict_model import StrictModel


class StructuredOutputFields(StrictModel):
    """Completions and chat completions have these fields."""

    response_format: Annotated[Any, Unsupported({"type": "text"})] = None
