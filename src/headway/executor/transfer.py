"""Between host and device: on CUDA no copy makes the host wait, but for the one wait per step that fetches its tokens.

A copy is asynchronous only from or to pinned memory. torch keeps such memory, and hands it out anew only when the
copies that used it are done.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pinned(array: NDArray[Any], device: torch.device) -> Tensor:
    """`array` on the host, as copies to `device` want it; on a CPU the two share memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """`array` on `device`; on a CPU the two share memory, on CUDA nobody waits for the copy."""
    return pinned(array, device).to(device, non_blocking=True)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Within, `device` is the current one of this thread, for libraries that take what is current."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


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
        flat = to_device(np.concatenate([sent.array.ravel() for sent in self._added], dtype=np.int64), device)
        start = 0
        for sent in self._added:
            sent.tensor = flat[start : start + sent.array.size].view(sent.array.shape)
            start += sent.array.size


class HostCopies:
    """Tensors of one step on their way to the host, and the step itself: when `wait` returns, both are there.

    tokens = copies.add(tokens_on_device)
    copies.send()       here the thread that launches goes on, and hands `copies` over
    copies.wait()       on any thread; then `tokens` may be read
    """

    def __init__(self, device: torch.device) -> None:
        # Blocking: whoever waits sleeps, and leaves its core to the writer.
        self._done = torch.cuda.Event(blocking=True) if device.type == "cuda" else None

    def add(self, tensor: Tensor) -> NDArray[Any]:
        """The array that will hold what is in `tensor`, of its shape and dtype."""
        if self._done is None:
            return tensor.numpy()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True).numpy()

    def send(self) -> None:
        """Nothing is added any more."""
        if self._done is not None:
            self._done.record()

    def wait(self) -> None:
        """Wait until all that was enqueued before `send` is done. Raises what the device has to say of a failure."""
        if self._done is not None:
            self._done.synchronize()
