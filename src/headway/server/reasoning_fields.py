"""The fields of a body about what the model thinks before it answers."""

from __future__ import annotations

from typing import Annotated, Any

from headway.client.conversation import StrictModel
from headway.client.field_rules import Unsupported


class ReasoningFields(StrictModel):
    """Chat completions have these fields."""

    reasoning_effort: Annotated[Any, Unsupported()] = None
