"""Settings by name, as `LLM` and `AsyncLLM` take them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from headway.config import EngineConfig
from headway.spelling import near


def engine_config(model: str | None, settings: dict[str, Any]) -> EngineConfig:
    """The configuration with these settings; None for device or dtype is "auto", the default of other engines. Raises
    TypeError for a name that is no setting, and ValueError for a value that cannot work."""
    known = [field.name for field in fields(EngineConfig) if field.name != "model"]
    for name in settings:
        if name not in known:
            close = near(name, known)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"LLM has no setting {name!r}; {hint}")
    automatic = {name: "auto" for name in ("device", "dtype") if settings.get(name, "") is None}
    return EngineConfig(model=model, **{**settings, **automatic})
