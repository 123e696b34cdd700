"""Bounds the caches of compiled kernels on a CPU.

oneDNN compiles a kernel for every shape, so for every number of tokens in a step, and two caches keep it: oneDNN's own,
and one in torch's binding to oneDNN. Each holds 1,024 kernels unless told otherwise, and a kernel takes up to 1 MB: an
engine whose steps change in size grows by more than a gigabyte before the caches are full. docs/memory.md has the
measurements.
"""

from __future__ import annotations

import os

KERNELS = "256"
VARIABLES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # torch's binding, oneDNN


def bound_caches() -> None:
    """Bound both caches, unless the environment says otherwise. It has no effect once this process has computed
    anything with oneDNN."""
    for name in VARIABLES:
        os.environ.setdefault(name, KERNELS)
