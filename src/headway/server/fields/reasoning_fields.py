"""The fields of a body about what the model thinks before it answers."""

from __future__ import annotations

from headway.client.conversation import Effort


class ReasoningFields(Effort):
    """Chat completions have these fields. include_reasoning: false: what was thought is not sent; a model that can
    think does so all the same."""

    include_reasoning: bool | None = None
