"""A process that computes with ever new shapes keeps a bounded number of compiled kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headway.executor.onednn_caches import KERNELS, VARIABLES, bound_caches
from headway.executor.packed_linear import can_pack

# Prints by how many MiB the process grows over the shapes of two ranges.
GROWTH = """
import sys
from pathlib import Path
import torch
from headway.executor.onednn_caches import bound_caches
bound_caches()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(64, 64), 64)
def compute(shapes):
    begun = resident()
    for rows in shapes:
        torch.ops.mkldnn._linear_pointwise(torch.randn(rows, 64), weight, None, "none", [], "")
    return resident() - begun
print(compute(range(1, 101)), compute(range(101, 301)))
"""


def test_the_user_may_choose_other_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES[0], "7")
    monkeypatch.delenv(VARIABLES[1], raising=False)
    bound_caches()
    assert [os.environ[name] for name in VARIABLES] == ["7", KERNELS]
    monkeypatch.delenv(VARIABLES[1])  # it was not set by monkeypatch


@pytest.mark.skipif(not sys.platform.startswith("linux") or not can_pack(), reason="needs oneDNN on Linux")
def test_kernels_beyond_the_bound_take_no_more_memory() -> None:
    bounds = dict.fromkeys(VARIABLES, "50")
    source = Path(__file__).parents[2] / "src"
    output = subprocess.check_output(
        [sys.executable, "-c", GROWTH],
        env={**os.environ, **bounds, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)},
        text=True,
    )
    first, then = map(float, output.split())
    assert first > 5 and then < first / 2, "without a bound, 200 more shapes take twice the memory of the first 100"
