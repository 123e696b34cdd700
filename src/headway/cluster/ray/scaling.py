"""How loaded an engine is by its own numbers, and how many engines that asks for. Plain rules.

Ray pickles `num_engines` for its controller: this module imports little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

LOAD = "load"  # the name of the number that replicas report


class LoadMeter:
    """The load of one engine, 1: full. It is the largest of: the time to the first token of a new prompt as a share of
    the target, the slots in use, and the KV cache in use.

    The time to the first token is what waits, over the prompt tokens that the engine has lately computed per second.
    """

    def __init__(self, *, ttft_target: float, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self._ttft_target = ttft_target
        self._max_num_seqs = max_num_seqs
        self._rate = float(max_num_batched_tokens)  # tokens per second; a guess until there is a measured one
        self._before: tuple[float, int] | None = None  # when, and tokens computed by then

    def take(self, now: float, num_prefill_tokens: int, num_waiting_tokens: int) -> None:
        """What the engine says, at intervals. num_prefill_tokens: prompt tokens computed since its start."""
        if self._before is not None:
            seconds, tokens = now - self._before[0], num_prefill_tokens - self._before[1]
            if seconds <= 0:
                return
            if num_waiting_tokens and tokens > 0:  # else the rate was that of the clients
                self._rate += 0.3 * (tokens / seconds - self._rate)
        self._before = now, num_prefill_tokens

    def load(self, *, num_waiting_tokens: int, num_busy: int, kv_usage: float) -> float:
        """num_busy: requests that run or wait."""
        ttft = num_waiting_tokens / max(self._rate, 1.0)
        return max(ttft / self._ttft_target, num_busy / self._max_num_seqs, kv_usage)


def engines_for(loads: Iterable[float], target_load: float) -> int:
    """Engines that share these loads so that each has `target_load`."""
    return max(1, math.ceil(sum(loads) / target_load - 1e-9))


class ScalingPolicy:
    """A policy of Ray Serve's autoscaling; see `AutoscalingConfig.policy`."""

    def __init__(self, target_load: float) -> None:
        self._target_load = target_load

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """How many replicas there should be, and what the policy wants to remember."""
        loads = (context.aggregated_metrics or {}).get(LOAD) or {}
        if not loads:  # none has reported yet
            return int(context.target_num_replicas), {}
        return engines_for(loads.values(), self._target_load), {}
