"""The fields of a body about how its prompt becomes token ids."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from headway.client.conversation import StrictModel
from headway.errors import ContextLengthError


class Truncation(NamedTuple):
    """Which tokens of a prompt are kept: at most so many, of its end, or of its start (`from_start`)."""

    most: int
    from_start: bool

    def tokens(self, token_ids: list[int]) -> list[int]:
        if len(token_ids) <= self.most:
            return token_ids
        return token_ids[: self.most] if self.from_start else token_ids[len(token_ids) - self.most :]

    def text(self, text: str, most_characters: int) -> str:
        """The part of the text that can be in the tokens that are kept: no more of it is tokenised."""
        return text[:most_characters] if self.from_start else text[max(0, len(text) - most_characters) :]


class PromptFields(StrictModel):
    """Completions and chat completions have these fields.

    truncate_prompt_tokens: the most tokens of the prompt; -1: as many as leave room for one token of output.
    truncation_side: where tokens are cut off; None: left.
    """

    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    truncation_side: Literal["left", "right"] | None = None

    def truncation(self, max_model_len: int) -> Truncation | None:
        """None: the prompt stays as it is. Raises ContextLengthError for more tokens than the context has."""
        most = self.truncate_prompt_tokens
        if most is None:
            return None
        if most > max_model_len:
            raise ContextLengthError.of(max_model_len, f"truncate_prompt_tokens keeps {most}: keep fewer")
        return Truncation(max_model_len - 1 if most == -1 else most, self.truncation_side == "right")
