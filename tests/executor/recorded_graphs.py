"""CUDA graphs on a CPU: what was computed while one was captured is computed again, on the tensors of that time.

Unlike a second call of the captured function, this sees no Python that has changed since: an input that is not copied
to where the capture found it stays as it was, and a number that the host looked at is one of the capture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
# Those whose result the host must know, its value or its size; in inference mode they come undivided.
_READ_BY_THE_HOST = {
    _aten._local_scalar_dense.default,
    _aten.item.default,
    _aten.is_nonzero.default,
    _aten.nonzero.default,
    _aten.nonzero_numpy.default,
    _aten.masked_select.default,
    _aten.equal.default,
    _aten._unique2.default,
    _aten.repeat_interleave.Tensor,
    _aten.repeat_interleave.self_Tensor,
}


class HostWaits(RuntimeError):
    """On CUDA the host would wait for the device here; in a capture it may not."""


class NoHostWaits(TorchDispatchMode):
    """Within, whatever would make the host wait for a CUDA device raises HostWaits, as far as it shows on a CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func in (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if func in _READ_BY_THE_HOST or by_mask:
            raise HostWaits(f"{func} makes the host wait")
        return func(*args, **(kwargs or {}))


class _Recording(NoHostWaits):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, list[Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append((func, args, kwargs or {}, _tensors(result)))
        return result


class RecordedGraphs:
    """Takes the place of `CudaCapture`. captured: how many graphs it made; replays: how often they ran."""

    def __init__(self) -> None:
        self.captured = self.replays = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        with _Recording() as recording:
            work()
        self.captured += 1

        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, outs in recording.calls:
                for then, now in zip(outs, _tensors(func(*args, **kwargs)), strict=True):
                    if then.data_ptr() != now.data_ptr():  # neither a view nor written in place
                        then.copy_(now)

        return replay


def _tensors(result: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
