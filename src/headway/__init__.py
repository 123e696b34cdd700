"""Headway: LLM serving whose scheduler takes no locks.

    from headway import LLM, SamplingParams

    with LLM() as llm:
        print(llm.generate("12+34=", SamplingParams(temperature=0))[0].outputs[0].text)

The names below are loaded when they are first used, so that importing the package, or its pure core alone, brings
in neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.async_llm import AsyncLLM
    from headway.client.engine_client import EngineStartError, RequestFailedError
    from headway.config import EngineConfig, Role, SchedulerConfig
    from headway.errors import DuplicateRequestError, EngineDeadError, EnginePausedError, QueueFullError, RequestError
    from headway.llm import LLM
    from headway.outputs import CompletionOutput, RequestDelta, RequestMetrics, RequestOutput, TokenLogprob
    from headway.request import FinishReason
    from headway.sampling import SamplingParams
    from headway.settings import EngineSettings
    from headway.structured_outputs import StructuredOutputs

__version__ = "0.1.0"

_HOMES = {
    "AsyncLLM": "headway.async_llm",
    "LLM": "headway.llm",
    "FinishReason": "headway.request",
    "SamplingParams": "headway.sampling",
    "StructuredOutputs": "headway.structured_outputs",
    "EngineSettings": "headway.settings",
    **dict.fromkeys(("EngineStartError", "RequestFailedError"), "headway.client.engine_client"),
    **dict.fromkeys(("EngineConfig", "Role", "SchedulerConfig"), "headway.config"),
    **dict.fromkeys(
        ("DuplicateRequestError", "EngineDeadError", "EnginePausedError", "QueueFullError", "RequestError"),
        "headway.errors",
    ),
    **dict.fromkeys(
        ("CompletionOutput", "RequestDelta", "RequestMetrics", "RequestOutput", "TokenLogprob"), "headway.outputs"
    ),
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "DuplicateRequestError",
    "EngineConfig",
    "EngineDeadError",
    "EnginePausedError",
    "EngineSettings",
    "EngineStartError",
    "FinishReason",
    "QueueFullError",
    "RequestDelta",
    "RequestError",
    "RequestFailedError",
    "RequestMetrics",
    "RequestOutput",
    "Role",
    "SamplingParams",
    "SchedulerConfig",
    "StructuredOutputs",
    "TokenLogprob",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
