"""What cannot be cut into ranks. transformers says how a model is cut, by a plan that comes with its kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch

from headway.model_files import ModelFiles

_CUT = ("colwise", "packed_colwise")  # styles that leave each rank its own share of what a layer puts out
_HEADS = ("q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj")
_WIDTHS = ("gate_proj", "up_proj", "gate_up_proj", "w1", "w3")
_WIDTH_FIELDS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")


def check_cut(files: ModelFiles, size: int, device: torch.device) -> None:
    """Raises ValueError, naming the model and what to do, if it cannot be cut into `size` ranks on such a device."""
    what = f"model {str(files.path)!r} cannot be cut into {size} ranks (tensor_parallel_size)"
    if find_spec("accelerate") is None:
        raise ValueError(f"{what}: transformers needs the package accelerate for it (pip install 'headway[tp]')")
    if sys.platform != "linux":
        raise ValueError(f"{what}: ranks need Linux, and this is {sys.platform}")
    _check_devices(size, device)
    config = files.hf_config.get_text_config()
    plan: dict[str, str] = getattr(config, "base_model_tp_plan", None) or {}
    if not plan:
        raise ValueError(
            f"{what}: the installed transformers has no plan of tensor parallelism for the kind {config.model_type!r}"
        )
    if files.quantisation is not None:
        raise ValueError(f"{what}: it is quantised by {files.quantisation}, and only plain weights are cut")
    for field, number in _shares(config, plan):
        if number % size:
            raise ValueError(
                f"{what}: {field} is {number}, which {size} does not divide; each rank must get the same whole number"
            )


def _check_devices(size: int, device: torch.device) -> None:
    if device.type == "cuda":
        if device.index is not None:
            raise ValueError(
                f"device {str(device)!r} names one device, and tensor_parallel_size is {size}: say cuda, and choose "
                "devices by CUDA_VISIBLE_DEVICES"
            )
        if (there := torch.cuda.device_count()) < size:
            raise ValueError(f"tensor_parallel_size is {size}, and torch sees {there} CUDA devices")
    elif torch.cuda.is_available():
        raise ValueError(
            "tensor_parallel_size on device cpu needs a process that sees no CUDA devices: set CUDA_VISIBLE_DEVICES to "
            "nothing"
        )


def _shares(config: Any, plan: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Fields of the config, and their values, that are shared out among the ranks. A cut inside a head would give wrong
    tokens or none, and transformers does not repeat a head that several ranks need."""
    cut = {name.rpartition(".")[2] for name, style in plan.items() if style in _CUT}
    if cut.intersection(_HEADS):
        for field in ("num_attention_heads", "num_key_value_heads"):
            heads = getattr(config, field, None)
            for number in heads if isinstance(heads, list | tuple) else [heads]:
                if isinstance(number, int):
                    yield field, number
    if cut.intersection(_WIDTHS):
        for field in _WIDTH_FIELDS:
            if isinstance(number := getattr(config, field, None), int):
                yield field, number
