"""Attention backends: the choice of the code that computes attention, made once per executor.

torch        gathers keys and values, then computes: every model, device and dtype
numba        as torch, but a compiled kernel for decodes reads the KV cache in place: float32 on a CPU
flashinfer   the kernels of FlashInfer, which read the KV cache in place: half precision on CUDA
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from headway.error_text import first_line
from headway.executor.attention_plan import AttentionPlan, PlanSettings
from headway.executor.attention_proof import prove
from headway.executor.decode_kernel import DecodeKernel
from headway.executor.flashinfer_attention import FlashInferAttention, PagePlan, why_not
from headway.executor.loader import LoadedModel
from headway.executor.transfer import HostArrays
from headway.scheduler.batch import Batch, IntArray

logger = logging.getLogger(__name__)

_CPU_GROUP_SIZE = 1 << 19  # floats of gathered keys that still fit the processor's cache


@dataclass(frozen=True, slots=True)
class AttentionBackend:
    """Plans steps for the chosen backend. takes_graphs: its decodes can run from a CUDA graph."""

    name: str
    settings: PlanSettings

    @property
    def takes_graphs(self) -> bool:
        return self.name == "flashinfer"  # with torch, shapes change from step to step

    def plan(
        self, batch: Batch, tables: IntArray, arrays: HostArrays, graph_size: int | None = None
    ) -> AttentionPlan | PagePlan:
        """The plan of a step. graph_size: number of decodes of the CUDA graph that will run the step, if any."""
        if self.name == "flashinfer":
            return PagePlan(batch, tables, self.settings.block_size, arrays, graph_size)
        return AttentionPlan(batch, tables, self.settings, arrays)


def choose_backend(
    wanted: str, model: LoadedModel, *, block_size: int, max_rows: int, blocks_per_request: int
) -> AttentionBackend:
    """Choose the backend, and put it into `model.attention`.

    wanted: the setting `attention_backend`; "auto" takes the fastest that works. max_rows: the most rows of one step.
    Raises ValueError if the wanted backend does not work here.
    """
    attention, device, dtype = model.attention, model.device, model.dtype
    if wanted in ("auto", "flashinfer"):
        why = why_not(model.calls, device, dtype)
        if why is None:
            logger.info("trying FlashInfer; where its kernels did not come compiled, that takes minutes the first time")
            attention.flashinfer = FlashInferAttention(
                model.calls,
                block_size=block_size,
                max_rows=max_rows,
                blocks_per_request=blocks_per_request,
                dtype=dtype,
                device=device,
            )
            why = _why_not_proven(model, attention.flashinfer, block_size)
        if why is None:
            return AttentionBackend("flashinfer", _plan_settings(model, block_size, gathers_decodes=False))
        attention.flashinfer = None
        if wanted == "flashinfer":
            raise ValueError(f"attention_backend flashinfer cannot be had: {why}")
        if device.type == "cuda":
            logger.warning("attention without FlashInfer: %s", why)
    if wanted != "torch":
        attention.kernel = _decode_kernel(wanted, device, dtype)
    name = "torch" if attention.kernel is None else "numba"
    return AttentionBackend(name, _plan_settings(model, block_size, gathers_decodes=attention.kernel is None))


def _why_not_proven(model: LoadedModel, flashinfer: FlashInferAttention, block_size: int) -> str | None:
    """The reason not to use FlashInfer here, or None. Compiles its kernels."""
    try:
        return prove(flashinfer, model.calls, block_size, model.dtype, model.device)
    except Exception as error:  # a missing compiler, an unknown architecture: FlashInfer raises many types
        return f"its kernels fail: {first_line(error)}"


def _decode_kernel(wanted: str, device: torch.device, dtype: torch.dtype) -> DecodeKernel | None:
    fits = device.type == "cpu" and dtype is torch.float32
    kernel = DecodeKernel.compiled(torch.get_num_threads()) if fits else None
    if wanted == "numba" and kernel is None:
        reason = "numba is not installed (pip install 'headway[cpu]')" if fits else f"this is {dtype} on {device.type}"
        raise ValueError(f"attention_backend numba needs float32 on a CPU and the package numba: {reason}")
    return kernel


def _plan_settings(model: LoadedModel, block_size: int, *, gathers_decodes: bool) -> PlanSettings:
    on_cpu = model.device.type == "cpu"
    key_size = max(shape.key_heads * shape.key_dim for shape in model.layers.values())
    return PlanSettings(
        block_size=block_size,
        windows=model.windows,
        device=model.device,
        gathers_decodes=gathers_decodes,
        padding=0.1 if on_cpu else 0.5,  # a call costs more on CUDA, and padding less
        group_keys=_CPU_GROUP_SIZE // key_size if on_cpu else 1 << 30,
    )
