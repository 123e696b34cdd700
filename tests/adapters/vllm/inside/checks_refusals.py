"""What is refused: each option of the engine at its start, and each thing that a request may not have."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import vllm
from engine_core import EngineCore
from engines import BLOCK_SIZE, Shape, kv_cache_config, make_request, make_scheduler, vllm_config
from vllm.pooling_params import PoolingParams
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.request import Request

from headway.adapters.vllm.refusals import ENGINE_REFUSALS, HOW_TO_GO_BACK, KV_CACHE_REFUSALS
from headway.adapters.vllm.versions import TESTED

SHAPE = Shape()
HEADS: dict[str, Any] = {"block_size": BLOCK_SIZE, "num_kv_heads": 1, "head_size": 16, "dtype": torch.float32}


def _set(path: str, value: Any) -> Any:
    """A change of a configuration: the attribute at this path gets this value."""

    def change(config: Any) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            config = getattr(config, parent)
        object.__setattr__(config, name, value)

    return change


def _model_is(name: str) -> Any:
    """A change of a configuration: a property of its model is true."""

    def change(config: Any) -> None:
        model = config.model_config
        object.__setattr__(config, "model_config", _Model(model, name))

    return change


class _Model:
    def __init__(self, model: Any, true: str) -> None:
        self._model, self._true = model, true

    def __getattr__(self, name: str) -> Any:
        return True if name == self._true else getattr(self._model, name)


# By the words of the refusal: what asks for it.
WANTED = {
    "pooling models": _set("model_config.runner_type", "pooling"),
    "diffusion models": _model_is("is_diffusion"),
    "encoder-decoder models": _model_is("is_encoder_decoder"),
    "multimodal models": _model_is("supports_multimodal_inputs"),
    "routed experts in outputs": _set("aux_output_config", SimpleNamespace(enabled=True)),
    "speculative decoding": _set("speculative_config", object()),
    "LoRA": _set("lora_config", object()),
    "KV connectors": _set("kv_transfer_config", object()),
    "encoder-cache connectors": _set("ec_transfer_config", object()),
    "KV offloading": _set("cache_config.kv_offloading_size", 1.0),
    "pipeline parallelism": _set("parallel_config.pipeline_parallel_size", 2),
    "data parallelism of mixtures of experts": _set("parallel_config.data_parallel_size", 2),
    "context parallelism of decodes": _set("parallel_config.decode_context_parallel_size", 2),
    "context parallelism of prefills": _set("parallel_config.prefill_context_parallel_size", 2),
    "prefills in one piece": _set("scheduler_config.enable_chunked_prefill", False),
    "an adaptive threshold of long prefills": _set("scheduler_config.long_prefill_token_threshold_adaptive", True),
    "steps without prefills": _set("scheduler_config.prefill_schedule_interval", 2),
    "a watermark of free blocks": _set("scheduler_config.watermark", 0.01),
    "metrics of single KV blocks": _set("observability_config.kv_cache_metrics", True),
}


def _refusal(config: Any = None, **options: Any) -> str:
    """The message with which a start is refused."""
    try:
        make_scheduler(SHAPE, config=config, **options)
    except ValueError as error:
        return str(error)
    raise AssertionError("it is served")


@contextmanager
def _log() -> Iterator[list[str]]:
    """The lines that the adapter logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("vllm.headway")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def check_each_option_that_is_not_served_is_refused_by_its_name() -> None:
    assert WANTED.keys() == {refusal.what for refusal in ENGINE_REFUSALS}
    for refusal in ENGINE_REFUSALS:
        config = vllm_config(SHAPE)
        WANTED[refusal.what](config)
        wanted = f"HeadwayScheduler does not serve: {refusal}. {HOW_TO_GO_BACK}"
        assert _refusal(config) == wanted, f"{_refusal(config)!r}, not {wanted!r}"


def check_all_reasons_are_in_one_message() -> None:
    config = vllm_config(SHAPE)
    WANTED["LoRA"](config)
    WANTED["speculative decoding"](config)
    message = _refusal(config, block_size=24, kv_cache_config=kv_cache_config(SHAPE, groups=2))
    for reason in ("--enable-lora", "--speculative-config", "there are 2", "--block-size"):
        assert reason in message, message


def check_each_kind_of_kv_cache_that_is_not_served_is_refused() -> None:
    groups, kinds, windows, zeroing, sizes = KV_CACHE_REFUSALS
    sliding = SlidingWindowSpec(**HEADS, sliding_window=64)
    zeroed = kv_cache_config(SHAPE)
    zeroed = SimpleNamespace(kv_cache_groups=zeroed.kv_cache_groups, needs_kv_cache_zeroing=True)
    for reason, options in (
        (f"{groups}: there are 2", {"kv_cache_config": kv_cache_config(SHAPE, groups=2)}),
        (f"{kinds}: SlidingWindowSpec", {"kv_cache_config": kv_cache_config(SHAPE, sliding)}),
        (windows, {"kv_cache_config": kv_cache_config(SHAPE, FullAttentionSpec(**HEADS, sliding_window=64))}),
        (zeroing, {"kv_cache_config": zeroed}),
        (f"{sizes}: 24", {"block_size": 24}),
    ):
        assert reason in _refusal(**options), f"{_refusal(**options)!r} does not say {reason!r}"


def check_sizes_that_cannot_work_are_refused_with_both_numbers() -> None:
    config = vllm_config(SHAPE)
    config.scheduler_config.max_num_scheduled_tokens = SHAPE.max_num_seqs - 1
    assert "(15) must be at least max_num_seqs (16)" in _refusal(config) and HOW_TO_GO_BACK in _refusal(config)
    config = vllm_config(SHAPE)
    config.cache_config.num_gpu_blocks = 32
    assert "needs 32 blocks" in _refusal(config), _refusal(config)


def check_a_version_that_was_not_tested_is_named_in_a_warning_with_the_tested_ones() -> None:
    version = vllm.__version__
    try:
        vllm.__version__ = "0.99.0"
        with _log() as lines:
            make_scheduler(SHAPE)
        assert any("0.99.0" in line and all(tested in line for tested in TESTED) for line in lines), lines
        vllm.__version__ = f"{TESTED[0]}+cpu"
        with _log() as lines:
            make_scheduler(SHAPE)
        assert not any("tested" in line for line in lines), lines
    finally:
        vllm.__version__ = version


def _with(**fields: Any) -> Request:
    request = make_request("bad", [5, 6, 7], max_tokens=3)
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def check_a_request_that_is_not_served_ends_with_an_error_and_the_engine_goes_on() -> None:
    pooling = Request(
        request_id="bad", prompt_token_ids=[5], sampling_params=None, pooling_params=PoolingParams(task="embed")
    )
    for words, bad in (
        ("pooling", pooling),
        ("embeddings", _with(prompt_embeds=torch.zeros(3, 4))),
        ("embeddings", _with(prompt_is_token_ids=[True, True, False])),
        ("images", _with(mm_features=[object()])),
        ("LoRA", _with(lora_request=object())),
        ("streaming", _with(resumable=True)),
        ("0 tokens", make_request("bad", [], max_tokens=3)),
        ("512 tokens", make_request("bad", [5] * 512, max_tokens=3)),
        ("ids are integers from 0 to 2147483647", make_request("bad", [5, 2**40], max_tokens=3)),
        ("encode", _with(cache_salt=7)),
        ("flat list of integers", _with(prompt_token_ids=[[5, 6, 7]])),
    ):
        core = EngineCore(make_scheduler(SHAPE), SHAPE)
        with _log() as lines:
            core.add(bad)
            core.add(make_request("good", [5, 6, 7], max_tokens=3))
            core.run()
        assert core.answers["bad"].reason == "error", f"{words}: {core.answers['bad']}"
        assert any("bad" in line and words in line for line in lines), f"{words}: {lines}"
        if vllm.__version__ >= "0.33":
            assert words in core.answers["bad"].error.message, core.answers["bad"].error
        assert len(core.answers["good"].tokens) == 3, core.answers["good"]


def check_a_second_request_of_one_id_ends_with_an_error_and_the_first_goes_on() -> None:
    core = EngineCore(make_scheduler(SHAPE), SHAPE)
    core.add(make_request("same", [5, 6, 7], max_tokens=9, ignore_eos=True))
    core.step()
    first = core.answers["same"]
    core.scheduler.add_request(make_request("same", [8, 9], max_tokens=9, client=1))
    order = core.scheduler.schedule()
    result = core.scheduler.update_from_output(order, core.worker.sample(core.worker.execute(order), None))
    (to_first,), (to_second,) = result[0].outputs, result[1].outputs
    assert len(to_first.new_token_ids) == 1 and to_first.finish_reason is None, to_first
    assert to_second.new_token_ids == [] and str(to_second.finish_reason) == "error", to_second
    core.run()
    assert (first.reason, len(first.tokens)) == ("length", 8), first


def check_numbers_beyond_the_range_of_arrays_are_served() -> None:
    shape = Shape(priorities=True)
    core = EngineCore(make_scheduler(shape), shape)
    core.add(make_request("first", [5, 6], max_tokens=2**70, priority=-(2**80), min_tokens=2**65))
    core.add(make_request("last", [5, 6], max_tokens=4, priority=2**80, stop_token_ids=[2**33, -7], ignore_eos=True))
    core.run()
    assert core.answers["first"].reason == "length", core.answers["first"]
    assert len(core.answers["last"].tokens) == 4, core.answers["last"]
