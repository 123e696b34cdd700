"""What is not served: options of the engine, refused at its start, and single requests, which end with an error.

Nothing of vLLM is imported here, so that this can be read, and compared with docs/vllm.md, where there is no vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from headway.adapters.vllm.core_config import core_config

HOW_TO_GO_BACK = "Leave out --scheduler-cls to run vLLM's own scheduler."


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that vLLM can do and HeadwayScheduler cannot.

    what: as the message and docs/vllm.md say it. option: of vLLM, by which it is chosen; empty: the model decides it.
    is_wanted: whether a VllmConfig asks for it.
    """

    what: str
    option: str
    is_wanted: Callable[[Any], bool]

    def __str__(self) -> str:
        return f"{self.what} ({self.option})" if self.option else self.what


ENGINE_REFUSALS = (
    # Models
    Refusal("pooling models", "--runner pooling", lambda c: c.model_config.runner_type == "pooling"),
    Refusal("diffusion models", "", lambda c: bool(c.model_config.is_diffusion)),
    Refusal("encoder-decoder models", "", lambda c: bool(c.model_config.is_encoder_decoder)),
    Refusal("multimodal models", "", lambda c: bool(c.model_config.supports_multimodal_inputs)),
    Refusal("routed experts in outputs", "--enable-return-routed-experts", lambda c: bool(c.aux_output_config.enabled)),
    # What is added to a model
    Refusal("speculative decoding", "--speculative-config", lambda c: c.speculative_config is not None),
    Refusal("LoRA", "--enable-lora", lambda c: c.lora_config is not None),
    # Connectors
    Refusal("KV connectors", "--kv-transfer-config", lambda c: c.kv_transfer_config is not None),
    Refusal("encoder-cache connectors", "--ec-transfer-config", lambda c: c.ec_transfer_config is not None),
    Refusal("KV offloading", "--kv-offloading-size", lambda c: c.cache_config.kv_offloading_size is not None),
    # Parallelism
    Refusal("pipeline parallelism", "--pipeline-parallel-size", lambda c: c.parallel_config.pipeline_parallel_size > 1),
    Refusal(
        "data parallelism of mixtures of experts",
        "--data-parallel-size",
        lambda c: c.parallel_config.data_parallel_size > 1,
    ),
    Refusal(
        "context parallelism of decodes",
        "--decode-context-parallel-size",
        lambda c: c.parallel_config.decode_context_parallel_size > 1,
    ),
    Refusal(
        "context parallelism of prefills",
        "--prefill-context-parallel-size",
        lambda c: c.parallel_config.prefill_context_parallel_size > 1,
    ),
    # Scheduling
    Refusal(
        "prefills in one piece",
        "--no-enable-chunked-prefill",
        lambda c: not c.scheduler_config.enable_chunked_prefill,
    ),
    Refusal(
        "an adaptive threshold of long prefills",
        "--long-prefill-token-threshold-adaptive",
        lambda c: bool(c.scheduler_config.long_prefill_token_threshold_adaptive),
    ),
    Refusal(
        "steps without prefills",
        "--prefill-schedule-interval",
        lambda c: c.scheduler_config.prefill_schedule_interval > 1,
    ),
    Refusal("a watermark of free blocks", "--watermark", lambda c: c.scheduler_config.watermark > 0),
    # Reports
    Refusal(
        "metrics of single KV blocks", "--kv-cache-metrics", lambda c: bool(c.observability_config.kv_cache_metrics)
    ),
)
"""Taking one back means serving it and deleting its line here and in docs/vllm.md; a test compares the two."""

KV_CACHE_REFUSALS = (
    "several groups of KV caches (models that mix kinds of attention)",
    "KV caches other than those of full attention (sliding windows, MLA, Mamba, cross attention)",
    "windowed or chunked attention within full attention",
    "new KV blocks that must be zeroed",
    "block sizes that are no power of two (--block-size)",
)
"""The same, of what follows from the model's KV caches."""

REQUEST_REFUSALS = (
    "pooling",
    "embeddings in place of token ids",
    "images, audio or video",
    "LoRA",
    "streaming input",
    "an empty prompt, or a prompt that leaves no token of max_model_len for the output",
    "the id of a request that has not ended",
)
"""What a single request may not have; it ends with an error, and the log says why."""


def refuse_unless_served(config: Any, kv_cache_config: Any, block_size: int) -> None:
    """Raise ValueError, naming everything that is not served, if there is anything."""
    reasons = [str(refusal) for refusal in ENGINE_REFUSALS if refusal.is_wanted(config)]
    reasons += _kv_cache_refusals(kv_cache_config, block_size)
    reasons += _size_refusals(config, block_size)
    if reasons:
        raise ValueError(f"HeadwayScheduler does not serve: {'; '.join(reasons)}. {HOW_TO_GO_BACK}")


def _kv_cache_refusals(kv_cache_config: Any, block_size: int) -> Iterator[str]:
    groups, other_kinds, windows, zeroing, sizes = KV_CACHE_REFUSALS
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    if len(specs) != 1:
        yield f"{groups}: there are {len(specs)}"
    for kind in sorted({type(spec).__name__ for spec in specs} - {"FullAttentionSpec"}):
        yield f"{other_kinds}: {kind}"
    if any(getattr(spec, name, None) for spec in specs for name in ("sliding_window", "attention_chunk_size")):
        yield windows
    if kv_cache_config.needs_kv_cache_zeroing:
        yield zeroing
    if block_size & (block_size - 1):
        yield f"{sizes}: {block_size}"


def _size_refusals(config: Any, block_size: int) -> Iterator[str]:
    if block_size & (block_size - 1):
        return  # said already
    try:
        core_config(config, block_size, keeps_kv_events=False)
    except ValueError as error:
        yield str(error)


def why_not_served(request: Any, max_model_len: int) -> str | None:
    """Why a request cannot be served; None if it can. The id is not looked at."""
    pooling, embeddings, media, lora, streaming, _length, _id = REQUEST_REFUSALS
    if request.pooling_params is not None:
        return f"{pooling} is not served"
    if request.prompt_embeds is not None or request.prompt_is_token_ids is not None:
        return f"{embeddings} are not served"
    if request.mm_features:
        return f"{media} are not served"
    if request.lora_request is not None:
        return f"{lora} is not served"
    if request.resumable:
        return f"{streaming} is not served"
    if not 0 < request.num_prompt_tokens < max_model_len:
        return (
            f"the prompt has {request.num_prompt_tokens} tokens; with max_model_len {max_model_len} it may have 1 to "
            f"{max_model_len - 1}"
        )
    return None
