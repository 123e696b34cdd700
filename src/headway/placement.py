"""Where an engine computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """device, dtype: as torch names them, "cuda:0" and "bfloat16". attention: the backend."""

    device: str = "simulated"
    dtype: str = "none"
    attention: str = "none"
