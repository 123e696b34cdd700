"""Copies between host and device. On CUDA the host waits for no copy, except once per step, for the tokens.

A copy is asynchronous only from or to pinned memory. torch keeps pinned memory, and hands it out again only when the
copies that use it are done.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pinned(array: NDArray[Any], device: torch.device) -> Tensor:
    """`array` as a host tensor, pinned if `device` is CUDA. On a CPU the tensor shares memory with `array`."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """`array` on `device`. On a CPU the tensor shares memory with `array`; on CUDA the copy is asynchronous."""
    return pinned(array, device).to(device, non_blocking=True)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Inside this context `device` is the current CUDA device of the thread, which some libraries use."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class SentArray:
    """An array handed to `HostArrays`. tensor: the array on the device, int64, same shape; set by `HostArrays.send`."""

    __slots__ = ("array", "tensor")

    tensor: Tensor

    def __init__(self, array: NDArray[np.integer[Any]]) -> None:
        self.array = array


class HostArrays:
    """Collects integer arrays on the host and sends them in one copy, as each copy costs a launch.

    ids = arrays.add(np.array([...]))
    arrays.send(device)
    ids.tensor
    """

    def __init__(self) -> None:
        self._added: list[SentArray] = []

    def add(self, array: NDArray[np.integer[Any]]) -> SentArray:
        """Add an array of any integer dtype and shape."""
        sent = SentArray(array)
        self._added.append(sent)
        return sent

    def send(self, device: torch.device) -> None:
        """Copy all arrays to `device`. Call once, after adding at least one array."""
        flat = to_device(np.concatenate([sent.array.ravel() for sent in self._added], dtype=np.int64), device)
        start = 0
        for sent in self._added:
            sent.tensor = flat[start : start + sent.array.size].view(sent.array.shape)
            start += sent.array.size


class HostCopies:
    """Copies of one step's tensors to the host. When `wait` returns, the step and its copies are done.

    tokens = copies.add(tokens_on_device)
    copies.send()       the launching thread goes on from here, and hands `copies` to another thread
    copies.wait()       on any thread; then `tokens` may be read
    """

    def __init__(self, device: torch.device) -> None:
        # Blocking: the waiting thread sleeps, and leaves its core to the writer.
        self._done = torch.cuda.Event(blocking=True) if device.type == "cuda" else None

    def add(self, tensor: Tensor) -> NDArray[Any]:
        """Copy `tensor` to the host. Returns an array of its shape and dtype, valid after `wait`."""
        if self._done is None:
            return tensor.numpy()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True).numpy()

    def send(self) -> None:
        """Mark the end of the step's work. No tensor may be added after this."""
        if self._done is not None:
            self._done.record()

    def wait(self) -> None:
        """Wait until all work enqueued before `send` is done. Raises RuntimeError if the device reports a failure."""
        if self._done is not None:
            self._done.synchronize()
