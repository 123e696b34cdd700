"""Linear layers for a CPU whose weights have the memory layout of oneDNN.

torch's linear layer keeps a weight in the layout of the checkpoint, and rearranges it in every call. For a step of
decodes, with few rows, this takes much of the time: two fifths for a head of 32,000 x 256 and 64 rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ROWS = 64  # the layout is chosen for this number of rows, and works for any


class PackedLinear(nn.Module):
    """Computes the same as `linear`, float32 on a CPU, up to rounding. The weight is not kept twice."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    @property
    def weight(self) -> Tensor:
        """float32 [out_features, in_features]: a new copy, for models that read the weight."""
        dense: Tensor = self._packed.to_dense()
        return dense

    def forward(self, rows: Tensor) -> Tensor:
        """float32 [..., in_features] -> [..., out_features]."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return out


def can_pack() -> bool:
    """Whether this torch and this processor support packed layers."""
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def pack_linears(module: nn.Module) -> int:
    """Replace all float32 linear layers in `module` by packed layers. Returns their number.

    The module must not be trained any more. A subclass of `nn.Linear` computes something else, and stays."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.dtype is torch.float32:
                setattr(parent, name, PackedLinear(child))
                count += 1
    return count
