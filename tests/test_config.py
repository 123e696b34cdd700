"""Configuration: what could not work is refused, with the value and the limit."""

from typing import Any

import pytest

from headway.config import EngineConfig, Role, SchedulerConfig


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        ({"max_model_len": 1}, "max_model_len must be at least 2, got 1"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"block_size": 24}, "block_size must be a power of two, got 24"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 63}, r"max_num_batched_tokens \(63\) .* max_num_seqs \(64\)"),
        (
            {"num_blocks": 128, "max_model_len": 2048},
            r"num_blocks \(128, .* max_model_len \(2048\) .* 128 blocks of 16",
        ),
        ({"num_blocks": 2**27}, r"num_blocks \(134217728\) x block_size \(16\) must be below"),
    ],
)
def test_limits_that_could_not_work(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SchedulerConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_waiting": -1}, "max_waiting must be at least 0, got -1"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization must be in \(0, 1\], got 1.5"),
        ({"kv_cache_memory_gb": 0}, "kv_cache_memory_gb must be above 0, got 0"),
        ({"step_timeout": 0}, "step_timeout must be above 0 seconds, got 0"),
        ({"scheduler": "v3"}, "scheduler must be one of v0, v1, v2, got 'v3'"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int8'"),
        (
            {"attention_backend": "flash"},
            "attention_backend must be one of auto, torch, numba, flashinfer, got 'flash'",
        ),
        ({"role": "both"}, "'both' is not a valid Role"),
    ],
)
def test_settings_that_could_not_work(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EngineConfig(**fields)


def test_a_role_may_be_given_by_name() -> None:
    config = EngineConfig(role="prefill")  # type: ignore[arg-type]
    assert config.for_scheduler(max_model_len=64, num_blocks=512).role is Role.PREFILL


def test_any_engine_may_be_pulled_from_only_if_a_secret_tells_which_are_meant() -> None:
    config = EngineConfig(role=Role.DECODE, kv_peers="*", kv_secret="s" * 16)
    assert config.moves_kv and config.kv_addresses == {}
    with pytest.raises(ValueError, match="needs kv_secret"):
        EngineConfig(role=Role.DECODE, kv_peers="*")


@pytest.mark.parametrize("option", [{"kv_listen": "127.0.0.1:1"}, {"kv_peers": "a:1,b:2"}], ids=str)
def test_an_engine_that_computes_everything_moves_no_kv(option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="role is prefill or decode, got role mixed"):
        EngineConfig(**option)  # type: ignore[arg-type]
    assert EngineConfig(role=Role.DECODE, **option).moves_kv  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["nowhere", ":1", "a:b", "a:65536", "a:1,b", "a:1=b", "a=b:1"])
def test_an_address_of_kv_is_host_and_port(address: str) -> None:
    with pytest.raises(ValueError, match="kv_peers takes HOST:PORT"):
        EngineConfig(role=Role.DECODE, kv_peers=address)


def test_a_peer_that_is_reached_at_another_address_keeps_its_own_name() -> None:
    config = EngineConfig(role=Role.DECODE, kv_peers="a:1, 0.0.0.0:9=[::1]:7")
    assert config.kv_addresses == {("a", 1): ("a", 1), ("0.0.0.0", 9): ("::1", 7)}
