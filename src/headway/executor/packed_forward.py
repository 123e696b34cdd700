"""Packed forwards of a transformers model, and the step that the checks of a model compute: whole prompts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache

from headway.executor.attention_plan import AttentionPlan, PlanSettings, Window, token_positions
from headway.executor.transfer import HostArrays
from headway.scheduler.batch import Batch


def logits(
    module: nn.Module,
    input_ids: Tensor,
    positions: Tensor | None = None,
    keep: Tensor | None = None,
    cache: Cache | None = None,
) -> Tensor:
    """Logits [B, T or R, vocabulary] in the model's dtype. input_ids, positions: int64 [B, T]; keep: int64 [R], the
    tokens whose logits are needed."""
    given = {"position_ids": positions, "logits_to_keep": keep, "past_key_values": cache}
    arguments = {name: value for name, value in given.items() if value is not None}
    answer: Tensor = module(input_ids=input_ids, use_cache=False, **arguments).logits
    return answer


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
