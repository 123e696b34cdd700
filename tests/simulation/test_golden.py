"""What the scheduler decides is what it decided when the golden digests were stored.

A few seeds of many; `python tools/golden.py` compares them all. A decision that is meant to change is stored anew with
`--write`, in the commit that changes it.
"""

from __future__ import annotations

import pytest

from headway.simulation.simulate import Traffic, run_seed
from tools import golden


@pytest.mark.parametrize("seed", range(0, golden.NUM_SEEDS, 40))
@pytest.mark.parametrize("name", golden.RUNS)
def test_a_seed_decides_as_it_did(seed: int, name: str) -> None:
    static = name == "v0" if name in ("v0", "v2") else None
    traffic: Traffic = name if name in ("siblings", "transfers", "pairs") else "mixed"  # type: ignore[assignment]
    run = run_seed(seed, golden.FEWER_STEPS.get(name, golden.NUM_STEPS), "liveness", static, traffic)
    assert run.violation is None
    assert run.decisions == golden.stored()[seed][name]
