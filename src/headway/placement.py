"""Where an engine computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """device, dtype: as torch names them, "cuda:0" and "bfloat16". attention: the backend. By default no model is
    computed: a simulated device only waits."""

    device: str = "a simulated device"
    dtype: str = "no dtype"
    attention: str = "none"
