"""An engine of FastDeploy that was started with Headway's scheduler, and that FastDeploy has set to version 0.

A program: prints the scheduler of the engine, or why there is none. To be run inside `unshare -npf --mount-proc` alone.
"""

from __future__ import annotations

import json
import os

from fastdeploy.engine import common_engine
from headway.adapters.fastdeploy.__main__ import put_in_place
from headway.adapters.fastdeploy.engine.refusals import NotServedError
from tests.adapters.fastdeploy.fast_deploy_engine import make_config
from tests.adapters.fastdeploy.mixed_run import Plan


def main() -> None:
    config = make_config(Plan())
    common_engine.envs.ENABLE_V1_KVCACHE_SCHEDULER = 0  # as FastDeploy does on a CPU
    put_in_place()
    found = {"scheduler": "", "refusal": ""}
    try:
        engine = common_engine.EngineService(config, start_queue=True, use_async_llm=True)
        found["scheduler"] = type(engine.resource_manager).__name__
    except NotServedError as error:
        found["refusal"] = str(error)
    print("RESULT", json.dumps(found), flush=True)
    os._exit(0)  # FastDeploy's own exit kills process groups


if __name__ == "__main__":
    main()
