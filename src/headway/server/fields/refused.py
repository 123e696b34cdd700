"""A rule for fields of bodies that are refused with a reason of their own."""

from __future__ import annotations

from typing import Any

from pydantic_core import core_schema

from headway.client.field_rules import Unsupported


class Refused(Unsupported):
    """Refuses a field with a reason, unless its value is empty or asks for nothing (`values`)."""

    def __init__(self, why: str, *values: Any) -> None:
        super().__init__(*values)
        self._why = why

    def _check(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        try:
            return super()._check(value, info)
        except ValueError:
            raise ValueError(f"{info.field_name} is not served: {self._why}") from None
