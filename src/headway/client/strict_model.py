"""The base of the records that clients send."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class StrictModel(BaseModel):
    """A record that refuses unknown fields and converts no types: the string "5" is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_field(cls, data: Any) -> Any:
        """The first unknown field ends it: pydantic would make an error of each."""
        if isinstance(data, dict) and cls.model_config.get("extra") == "forbid":
            for name in data:
                if name not in cls.model_fields:
                    raise PydanticCustomError("unknown_field", "unknown field", {"name": name})
        return data
