"""Arrays whose untouched parts cost no memory."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def lazy_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros that become resident page by page (4 KiB) as they are touched.

    `numpy.zeros` asks the kernel for huge pages. One value written to a row of a wide table then makes 2 MiB resident,
    so the shortest request would cost as much memory as the longest.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, max(size, 1))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype=dtype, count=math.prod(shape)).reshape(shape)
