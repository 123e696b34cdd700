"""Starts FastDeploy with Headway's scheduler.

    ENABLE_V2_KVCACHE_SCHEDULER=1 python -m headway.adapters.fastdeploy --model MODEL ...

The arguments are those of `python -m fastdeploy.entrypoints.openai.api_server`. Without the variable, or with another
value than 1, FastDeploy starts with its own scheduler.
"""

from __future__ import annotations

import os
import runpy
import sys

from headway.managers import V2_SWITCH

ENTRY_POINT = "fastdeploy.entrypoints.openai.api_server"


def put_in_place() -> None:
    """Let FastDeploy's engine make Headway's class where it makes its ResourceManagerV1. Processes that are forked from
    this one do so too.

    In the place of version 0 too: there the class refuses to be made, as FastDeploy would start another scheduler.
    """
    from fastdeploy.engine import common_engine

    from headway.adapters.fastdeploy.engine.resource_manager import HeadwayResourceManager

    common_engine.ResourceManagerV1 = common_engine.ResourceManager = HeadwayResourceManager


def main() -> None:
    """Start FastDeploy's server with the arguments of this process."""
    if os.environ.get(V2_SWITCH) == "1":
        put_in_place()
        print(f"FastDeploy runs with Headway's scheduler ({V2_SWITCH}=1)", file=sys.stderr)
    else:
        print(f"FastDeploy runs with its own scheduler; {V2_SWITCH}=1 chooses Headway's", file=sys.stderr)
    sys.argv[0] = ENTRY_POINT
    runpy.run_module(ENTRY_POINT, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
