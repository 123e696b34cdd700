"""A plugin of pytest for FastDeploy's own tests of its engine: Headway's class is in the place of ResourceManagerV1,
and nothing of the machine is killed. `HEADWAY_MANAGER=v1` leaves FastDeploy's own class there, to compare.

To be run inside `unshare -npf --mount-proc` alone.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("ENABLE_V1_KVCACHE_SCHEDULER", "1")

import e2e.utils.serving_utils as serving_utils

from fastdeploy.engine import common_engine
from fastdeploy.engine.args_utils import EngineArgs
from headway.adapters.fastdeploy.__main__ import put_in_place


def _nothing(*_: Any, **__: Any) -> None:
    """Kill nothing."""


for name in ("_clean_cuda_process", "kill_process_on_port", "kill_process_by_unix_socket", "clean_ports", "clean"):
    assert hasattr(serving_utils, name)
    setattr(serving_utils, name, _nothing)

create_engine_config = EngineArgs.create_engine_config


def create_for_version_1(self: EngineArgs, *arguments: Any, **options: Any) -> Any:
    """FastDeploy turns its scheduler of version 1 off where there is no GPU; turn it on again."""
    config = create_engine_config(self, *arguments, **options)
    common_engine.envs.ENABLE_V1_KVCACHE_SCHEDULER = 1
    return config


EngineArgs.create_engine_config = create_for_version_1
if os.environ.get("HEADWAY_MANAGER") != "v1":
    put_in_place()
