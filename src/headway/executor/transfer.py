"""All integers of a step in one copy from host to device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SentArray:
    """An array handed to `HostArrays`; `tensor` is there once the arrays were sent: int64, of the array's shape."""

    __slots__ = ("array", "tensor")

    tensor: Tensor

    def __init__(self, array: NDArray[np.integer[Any]]) -> None:
        self.array = array


class HostArrays:
    """Collects integer arrays on the host and sends them together: a copy each would cost a launch each.

    ids = arrays.add(np.array([...]))
    arrays.send(device)
    ids.tensor
    """

    def __init__(self) -> None:
        self._added: list[SentArray] = []

    def add(self, array: NDArray[np.integer[Any]]) -> SentArray:
        """Hand in an array of any integer dtype and shape."""
        sent = SentArray(array)
        self._added.append(sent)
        return sent

    def send(self, device: torch.device) -> None:
        """Copy everything handed in to `device`; call once, with something handed in."""
        flat = torch.from_numpy(np.concatenate([sent.array.ravel() for sent in self._added], dtype=np.int64))
        if device.type == "cuda":
            flat = flat.pin_memory().to(device, non_blocking=True)
        start = 0
        for sent in self._added:
            sent.tensor = flat[start : start + sent.array.size].view(sent.array.shape)
            start += sent.array.size
