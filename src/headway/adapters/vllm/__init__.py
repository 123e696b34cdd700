"""Headway's core as vLLM's scheduler: `vllm serve MODEL --scheduler-cls headway.adapters.vllm.HeadwayScheduler`.

vLLM's engine, workers, kernels and front ends stay as they are; Headway decides what each step computes. See
docs/vllm.md.

    scheduler.py     HeadwayScheduler: vLLM's scheduler interface
    refusals.py      what is not served: options of the engine at its start, and single requests
    core_config.py   vLLM's options as the core's configuration
    requests.py      the requests that the core has, and their conversion
    decode_rows.py   what depends on the decode rows alone, kept while they stay the same
    step_output.py   a step's work order, in vLLM's words
    results.py       a step's result, in the core's words, and what the front ends are told
    grammars.py      structured output: waiting for grammars, masks
    stats.py, kv_events.py   what vLLM reports and publishes
    versions.py      the versions of vLLM that were tested, and how they differ

Everything but refusals.py runs inside vLLM's process alone; `import headway.adapters.vllm` needs no vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.adapters.vllm.scheduler import HeadwayScheduler

__all__ = ["HeadwayScheduler"]


def __getattr__(name: str) -> Any:
    if name != "HeadwayScheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from headway.adapters.vllm.scheduler import HeadwayScheduler

    globals()[name] = HeadwayScheduler
    return HeadwayScheduler
