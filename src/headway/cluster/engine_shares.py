"""What each of several engines on one machine has for itself: devices, cores, addresses."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from headway.config import EngineConfig
from headway.kv_events_config import KVEventsConfig

_THREADS = "OMP_NUM_THREADS"
_GPUS = "CUDA_VISIBLE_DEVICES"
_DRIVER = Path("/proc/driver/nvidia/gpus")
_TCP = re.compile(r"(tcp://.*):(\d+)")


def check_shares(config: EngineConfig, engines: int) -> None:
    """Raises ValueError for settings that several engines cannot have."""
    if engines == 1:
        return
    if config.kv_listen is not None:
        raise ValueError(
            f"kv_listen is the address of one engine, got {config.kv_listen!r} and data_parallel_size {engines}: start "
            "a server for each engine, or headway pd"
        )
    if config.device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"each engine has devices of its own: with data_parallel_size {engines} device must be auto, cpu or cuda, "
            f"got {config.device!r}; choose among the GPUs by {_GPUS}"
        )
    config_of(config, engines - 1)
    gpus, needed = _gpus(config), engines * config.tensor_parallel_size
    if gpus and len(gpus) < needed:
        raise ValueError(
            f"data_parallel_size {engines} needs {needed} GPUs, and there are {len(gpus)}: ask for fewer engines, or "
            "for --device cpu"
        )


def config_of(config: EngineConfig, engine: int) -> EngineConfig:
    """The settings of this engine. KV events leave at the port of the first engine + `engine`. Raises ValueError for an
    endpoint without a port."""
    events = config.kv_events
    if events is None or not engine:
        return config
    return replace(config, kv_events_config=json.dumps(asdict(_moved(events, engine))))


def environment_of(config: EngineConfig, engine: int, engines: int) -> Mapping[str, str] | None:
    """The variables of its process: its GPUs; on CPUs, its part of the cores. None: those of this process."""
    if engines == 1:
        return None
    if gpus := _gpus(config):
        ranks = config.tensor_parallel_size
        return {**os.environ, _GPUS: ",".join(gpus[engine * ranks : (engine + 1) * ranks])}
    if _THREADS in os.environ:
        return None
    return {**os.environ, _THREADS: str(max(1, len(os.sched_getaffinity(0)) // engines))}


def _gpus(config: EngineConfig) -> list[str]:
    """The GPUs that may be used, as `CUDA_VISIBLE_DEVICES` names them."""
    if config.device == "cpu":
        return []
    if (visible := os.environ.get(_GPUS)) is not None:
        return [gpu for gpu in visible.split(",") if gpu not in ("", "-1")]
    return [str(number) for number in range(len(list(_DRIVER.iterdir())))] if _DRIVER.is_dir() else []


def _moved(events: KVEventsConfig, by: int) -> KVEventsConfig:
    def moved(endpoint: str) -> str:
        found = _TCP.fullmatch(endpoint)
        if found is None:
            raise ValueError(
                "several engines publish their KV events at ports one after the other, tcp://HOST:PORT, got "
                f"{endpoint!r}"
            )
        return f"{found[1]}:{int(found[2]) + by}"

    replay = events.replay_endpoint
    return replace(events, endpoint=moved(events.endpoint), replay_endpoint=None if replay is None else moved(replay))
