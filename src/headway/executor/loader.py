"""Loading a model, and the proof that it runs on our attention.

The proof is a small forward of two sequences: once with the model's own attention as a batch of two, and once packed
into one row with our attention. Both must give the same logits. Some models would run and give wrong tokens: models
that bypass the attention interface, take no positions, or keep other state than keys and values. They are refused by
name.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging as transformers_logging

from headway.error_text import first_line
from headway.executor.attention import NAME, PagedAttention, UnsupportedAttentionError
from headway.executor.attention_plan import AttentionCall, AttentionPlan, PlanSettings, Window, token_positions
from headway.executor.flashinfer_attention import PagePlan
from headway.executor.kv_tensors import LayerShape
from headway.executor.packed_linear import can_pack, pack_linears
from headway.executor.transfer import HostArrays
from headway.model_files import ModelFiles
from headway.scheduler.batch import Batch

# The most that our logits may differ from the model's own, relative to their norm. The cause is rounding, which routing
# between experts amplifies in half precision. A wrong mask or position gives a far larger difference.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.3}
_CHECK_LENGTH = 8


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that runs on our attention.

    calls: the attention that each layer uses. layers: the shape of a token's key and value in each layer. windows: the
    sliding windows of the layers; None is no window. vocab_size: entries of a row of logits.
    """

    module: nn.Module
    attention: PagedAttention
    calls: tuple[AttentionCall, ...]
    layers: dict[int, LayerShape]
    windows: frozenset[Window]
    vocab_size: int
    takes_logits_to_keep: bool
    dtype: torch.dtype
    device: torch.device

    def forward(self, input_ids: Tensor, positions: Tensor, plan: AttentionPlan | PagePlan, keep: Tensor) -> Tensor:
        """One packed forward. input_ids, positions: int64 [T]; keep: int64 [R], the tokens whose logits are needed.
        Returns logits [R, vocab_size] in the model's dtype."""
        self.attention.begin_step(plan)
        return self.compute(input_ids, positions, keep)

    def compute(self, input_ids: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        """The forward of a step after `begin_step`: work for the device alone."""
        logits = _logits(self.module, input_ids[None], positions[None], keep if self.takes_logits_to_keep else None)
        return logits[0] if self.takes_logits_to_keep else logits[0, keep]


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA if there is a GPU. Raises ValueError if there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def load_model(files: ModelFiles, device: torch.device, dtype: str) -> LoadedModel:
    """Read the weights, put our attention in, and check that it is used. dtype: "auto" is that of the checkpoint.

    Raises ValueError, naming the model, if it cannot be loaded or does not run on our attention.
    """
    module = _read_weights(files, device, dtype)
    actual_dtype = next(module.parameters()).dtype
    attention = PagedAttention(files.limits.max_model_len)
    try:
        calls, vocab_size, takes_logits_to_keep = _check(module, attention, files, device, actual_dtype)
    except UnsupportedAttentionError as error:
        raise ValueError(f"{_name(module, files)} is not supported: {error}") from error
    except (RuntimeError, TypeError, IndexError, AttributeError, KeyError, NotImplementedError) as error:
        raise ValueError(f"{_name(module, files)} fails in its first forward: {first_line(error)}") from error
    return LoadedModel(
        module=module,
        attention=attention,
        calls=tuple(calls),
        layers={call.layer: call.shape for call in calls},
        windows=frozenset(call.window for call in calls),
        vocab_size=vocab_size,
        takes_logits_to_keep=takes_logits_to_keep,
        dtype=actual_dtype,
        device=device,
    )


def _name(module: nn.Module, files: ModelFiles) -> str:
    return f"model {str(files.path)!r} ({type(module).__name__})"


def _read_weights(files: ModelFiles, device: torch.device, dtype: str) -> nn.Module:
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    transformers_logging.disable_progress_bar()  # it writes to standard error, also without a terminal
    try:
        # The config is read again: transformers writes the name of the attention into it, and `files` may be shared.
        module, info = from_pretrained(
            files.path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=files.trust_remote_code,
            attn_implementation="eager",
            output_loading_info=True,
        )
        module.to(device)
    except Exception as error:  # model classes, formats and remote code raise many types
        raise ValueError(f"cannot load model {str(files.path)!r}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"cannot load model {str(files.path)!r}: its checkpoint lacks {len(missing)} weights, such as {missing[0]}"
        )
    loaded: nn.Module = module.eval()
    return loaded


def _logits(module: nn.Module, input_ids: Tensor, positions: Tensor | None, keep: Tensor | None) -> Tensor:
    kwargs: dict[str, object] = {} if positions is None else {"position_ids": positions}
    if keep is not None:
        kwargs["logits_to_keep"] = keep
    logits: Tensor = module(input_ids=input_ids, use_cache=False, **kwargs).logits
    return logits


def plan_prompts(lengths: list[int], windows: frozenset[Window], device: torch.device) -> tuple[AttentionPlan, Tensor]:
    """A step of whole prompts without a KV cache: its attention plan, and its positions, int64 [T]."""
    count = len(lengths)
    nothing = np.empty(0, np.int32)
    batch = Batch(
        step_id=0,
        num_decodes=0,
        num_tokens=sum(lengths),
        slots=np.arange(count, dtype=np.int32),
        positions=np.zeros(count, np.int32),
        num_new_tokens=np.array(lengths, np.int32),
        samples=np.ones(count, np.bool_),
        table_slots=nothing,
        table_columns=nothing,
        table_blocks=nothing,
    )
    arrays = HostArrays()
    settings = PlanSettings(
        block_size=max(lengths), windows=windows, device=device, gathers_decodes=True, padding=0, group_keys=0
    )
    plan = AttentionPlan(batch, np.zeros((count, 1), np.int32), settings, arrays)
    positions = arrays.add(token_positions(batch))
    arrays.send(device)
    return plan, positions.tensor


@torch.inference_mode()
def _check(
    module: nn.Module, attention: PagedAttention, files: ModelFiles, device: torch.device, dtype: torch.dtype
) -> tuple[list[AttentionCall], int, bool]:
    """The attention calls of the layers, the width of the logits, and whether `logits_to_keep` takes a tensor."""
    parameters = inspect.signature(module.forward).parameters
    if "position_ids" not in parameters:
        raise UnsupportedAttentionError("it takes no position_ids, so its requests cannot share a forward")
    length = min(_CHECK_LENGTH, files.limits.max_model_len)
    ids = (torch.arange(2 * length, device=device) * 7919 + 17) % files.limits.vocab_size
    expected = _logits(module, ids.view(2, length), None, None).flatten(0, 1).float()

    if device.type == "cpu" and can_pack():
        pack_linears(module)
    attention.bind(module)
    module.set_attn_implementation(NAME)  # type: ignore[operator]
    plan, positions = plan_prompts([length, length], frozenset({None}), device)
    keep = torch.tensor([0, 2 * length - 1], device=device) if "logits_to_keep" in parameters else None
    attention.begin_step(plan)
    with attention.noting_calls() as calls:
        logits = _logits(module, ids[None], positions[None], keep)
    takes_logits_to_keep = keep is not None and logits.shape[1] == len(keep)
    _check_calls(calls, module.config.get_text_config(), files.limits.max_model_len)  # type: ignore[operator,union-attr]

    plan, positions = plan_prompts([length, length], frozenset(call.window for call in calls), device)
    attention.begin_step(plan)
    found = _logits(module, ids[None], positions[None], None)[0].float()
    error = float((found - expected).norm() / expected.norm())
    if not error <= _TOLERANCE.get(dtype, 1e-3):
        raise UnsupportedAttentionError(f"with it, its logits are not those of its own attention (off by {error:.2g})")
    return calls, found.shape[1], takes_logits_to_keep


def _check_calls(calls: list[AttentionCall], config: PretrainedConfig, max_model_len: int) -> None:
    """Check that every layer has called our attention once, with the window of the config."""
    layers = range(config.num_hidden_layers)
    counts = Counter(call.layer for call in calls)
    if strays := sorted({*layers, *counts} - {layer for layer in layers if counts[layer] == 1}):
        raise UnsupportedAttentionError(
            f"every layer must use the attention interface once, and {len(strays)} of {len(layers)} do not "
            f"(layer {strays[0]} did {counts[strays[0]]} times)"
        )
    windows = {call.layer: call.window for call in calls}
    types = getattr(config, "layer_types", None)
    if types is None:
        # Some models use their window only for the mask, which is not built here. Then no layer passes a window.
        types = ["sliding_attention"] * len(layers) if not any(windows.values()) else []
    limit = getattr(config, "sliding_window", None)
    for layer, kind in enumerate(types):
        if kind == "sliding_attention":
            if windows[layer] is None and limit and limit < max_model_len:
                raise UnsupportedAttentionError(f"layer {layer} does not pass its sliding window of {limit} tokens on")
        elif kind == "chunked_attention":
            chunk = getattr(config, "attention_chunk_size", None)
            if chunk is None or chunk < max_model_len:
                raise UnsupportedAttentionError(
                    f"layer {layer} attends in chunks of {chunk} tokens, which max_model_len ({max_model_len}) exceeds"
                )
        elif kind != "full_attention":
            raise UnsupportedAttentionError(f"layer {layer} is of kind {kind}")
