"""What bodies of other APIs have in common: each asks for a chat completion, in words of its own."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import ConfigDict, PrivateAttr, ValidationError, model_validator

from headway.client.strict_model import StrictModel
from headway.client.tools import TolerantModel
from headway.error_text import describe
from headway.server.fields.protocol import ChatCompletionRequest


class AsksForChat(StrictModel):
    """A body that becomes a chat completion."""

    _chat: ChatCompletionRequest = PrivateAttr()

    def _chat_fields(self) -> dict[str, Any]:
        """The fields of the chat completion. Raises ValueError."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _ask_for_chat(self) -> Self:
        try:
            self._chat = ChatCompletionRequest.model_validate(self._chat_fields())
        except ValidationError as error:
            raise ValueError(describe(error)[0]) from None
        return self

    @property
    def chat(self) -> ChatCompletionRequest:
        """The chat completion that this body asks for."""
        return self._chat


class ToolOfTheServer(TolerantModel):
    """A tool that a server would run is refused, in a body that offers it. instead: what to give."""

    model_config = ConfigDict(json_schema_extra={"not": {}})

    instead: ClassVar[str]

    type: Any = None

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        raise ValueError(
            f"tools of type {self.type!r:.60} are not served: no tool runs on this server; give {self.instead}"
        )
