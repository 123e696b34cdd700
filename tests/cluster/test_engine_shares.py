"""What each of several engines on one machine has for itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headway.cluster import engine_shares
from headway.cluster.engine_shares import check_shares, config_of, environment_of
from headway.config import EngineConfig, Role


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of four cores and two GPUs."""
    for gpu in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / gpu).mkdir()
    monkeypatch.setattr(engine_shares, "_DRIVER", tmp_path)
    monkeypatch.setattr(engine_shares.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def variable(name: str, engine: int, engines: int = 2, device: str = "auto") -> str | None:
    environment = environment_of(EngineConfig(device=device), engine, engines)
    return None if environment is None else environment.get(name)


def test_each_engine_sees_one_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [variable("CUDA_VISIBLE_DEVICES", engine) for engine in range(2)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-5")
    assert [variable("CUDA_VISIBLE_DEVICES", engine) for engine in range(2)] == ["7", "GPU-5"]


def test_engines_on_cpus_share_the_cores_unless_the_user_has_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert variable("OMP_NUM_THREADS", 0, engines=2, device="cpu") == "2"
    assert variable("OMP_NUM_THREADS", 0, engines=9, device="cpu") == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert variable("OMP_NUM_THREADS", 1) == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment_of(EngineConfig(device="cpu"), 0, 2) is None


def test_one_engine_has_the_whole_machine() -> None:
    assert environment_of(EngineConfig(), 0, 1) is None
    check_shares(EngineConfig(device="cuda:1", role=Role.PREFILL, kv_listen="127.0.0.1:1"), 1)


@pytest.mark.parametrize(
    ("config", "engines", "words"),
    [
        (EngineConfig(), 3, "data_parallel_size 3 needs 3 GPUs, and there are 2"),
        (EngineConfig(device="cuda:1"), 2, "got 'cuda:1'; choose among the GPUs by CUDA_VISIBLE_DEVICES"),
        (EngineConfig(role=Role.PREFILL, kv_listen="127.0.0.1:1"), 2, "kv_listen is the address of one engine"),
        (
            EngineConfig(kv_events_config='{"enable_kv_cache_events": true, "endpoint": "ipc:///tmp/events"}'),
            2,
            "ports one after the other, tcp://HOST:PORT, got 'ipc:///tmp/events'",
        ),
    ],
)
def test_what_several_engines_cannot_have_is_refused_by_name(config: EngineConfig, engines: int, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        check_shares(config, engines)
    assert words in str(refusal.value)


def test_engines_publish_their_events_at_ports_one_after_the_other() -> None:
    given = {
        "enable_kv_cache_events": True,
        "endpoint": "tcp://*:5557",
        "replay_endpoint": "tcp://*:6000",
        "topic": "kv",
    }
    config = EngineConfig(kv_events_config=json.dumps(given))
    assert config_of(config, 0) == config
    events = config_of(config, 2).kv_events
    assert events is not None
    assert (events.endpoint, events.replay_endpoint, events.topic) == ("tcp://*:5559", "tcp://*:6002", "kv")
