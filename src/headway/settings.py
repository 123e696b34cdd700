"""Settings by name, as `LLM` and `AsyncLLM` take them."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from headway.config import EngineConfig


def engine_config(model: str | None, settings: dict[str, Any]) -> EngineConfig:
    """The configuration with these settings; None for device or dtype is "auto", the default of other engines. Raises
    TypeError for a name that is no setting, and ValueError for a value that cannot work."""
    known = [field.name for field in fields(EngineConfig) if field.name != "model"]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"LLM has no setting {name!r}; {hint}")
    automatic = {name: "auto" for name in ("device", "dtype") if settings.get(name, "") is None}
    return EngineConfig(model=model, **{**settings, **automatic})
