"""What this adapter does not serve, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headway.managers import V1_SWITCH


class NotServedError(ValueError):
    """A setting, a request or a call of FastDeploy that Headway does not serve. The message says why."""


# Switches of FastDeploy's environment: the value that is refused, and why. Each line can be taken back alone.
_SWITCHES: dict[str, tuple[str, str]] = {
    V1_SWITCH: (
        "0",
        "the scheduler of version 0 is another one (FastDeploy chooses it by itself on devices such as a CPU)",
    ),
    "ENABLE_V1_KVCACHE_MANAGER": ("1", "Headway owns the blocks; the cache manager of version 1 would own them too"),
    "FD_DISABLE_CHUNKED_PREFILL": ("1", "prompts are computed in chunks"),
    "FD_DETERMINISTIC_MODE": ("1", "chunks do not end where FastDeploy's kernels want it"),
}

# Settings of an FDConfig: what is refused, why, and whether it is set.
_SETTINGS: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    (
        "speculative decoding (speculative_config): drafts of the worker are not scheduled yet",
        lambda config: config.speculative_config is not None and config.speculative_config.method is not None,
    ),
    (
        "multimodal models (enable_mm_runtime): chunks are not cut around images and videos yet",
        lambda config: bool(config.enable_mm_runtime),
    ),
    (
        "pooling models (runner_type=pooling): a request without tokens has no answer that ends its step",
        lambda config: getattr(config.model_config, "runner_type", "generate") == "pooling",
    ),
    (
        "KV blocks in host memory (num_cpu_blocks, swap_space): blocks do not leave the device yet",
        lambda config: bool(config.cache_config.num_cpu_blocks),
    ),
    (
        "KV blocks in a storage (kvcache_storage_backend): blocks do not leave the device yet",
        lambda config: bool(config.cache_config.kvcache_storage_backend),
    ),
    (
        "a block size that is no power of two (block_size)",
        lambda config: bool(config.cache_config.block_size & (config.cache_config.block_size - 1)),
    ),
)


def reasons_against(config: Any, environment: Mapping[str, str]) -> list[str]:
    """Why this configuration of FastDeploy is not served; empty if it is. config: an FDConfig."""
    switches = [
        f"{name}={value}: {why}"
        for name, (value, why) in _SWITCHES.items()
        if name in environment and bool(int(environment[name])) is bool(int(value))  # as FastDeploy reads its switches
    ]
    return switches + [reason for reason, is_set in _SETTINGS if is_set(config)]


def check_config(config: Any, environment: Mapping[str, str]) -> None:
    """Raises NotServedError with all reasons in one message."""
    reasons = reasons_against(config, environment)
    if reasons:
        lines = "".join(f"\n  - {reason}" for reason in reasons)
        raise NotServedError(
            f"Headway does not serve this configuration of FastDeploy:{lines}\n"
            f"Change these, or unset ENABLE_V2_KVCACHE_SCHEDULER to run FastDeploy's own scheduler."
        )


def reason_against_request(request: Any) -> str | None:
    """Why this request is not served; None if it is. request: a Request of FastDeploy."""
    if request.pooling_params is not None:
        return "pooling requests are not served by Headway's scheduler"
    if request.use_extend_tables:
        return "requests with extended block tables are not served by Headway's scheduler"
    media = request.multimodal_inputs or {}
    if any(media.get(name) is not None and len(media[name]) for name in ("images", "mm_positions")):
        return "images and videos are not served by Headway's scheduler"
    return None


def not_served(call: str, why: str) -> NotServedError:
    """The error of a call that is not served."""
    return NotServedError(f"{call} is not served by Headway's scheduler: {why}")
