"""The far end of a peer's pipe: runs workloads with the scheduler of this environment.

    python runner.py WORKLOADS_FILE DRIVER_FILE

Standard input and output, a line of JSON each, question and answer:

    (at the start)                                      {"name": ..., "version": ...}
    {"open": 1, "workload": "Churn", "fields": {...}}   {"opened": 1}
    {"next": 1}                                         {"samples": {...}} or {"end": 1}
    {"close": 1}                                        {"closed": 1}

It imports the standard library and, by file, the workloads and the driver; a driver has NAME, VERSION and System.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


def main(workloads_file: str, driver_file: str) -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the peer prints is no answer
    workloads, driver = _load(workloads_file), _load(driver_file)
    runs: dict[int, Iterator[Any]] = {}

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    answer(name=driver.NAME, version=driver.VERSION)
    for line in sys.stdin:
        match json.loads(line):
            case {"open": key, "workload": name, "fields": fields}:
                runs[key] = workloads.BY_NAME[name](**fields).run(driver.System)
                answer(opened=key)
            case {"next": key}:
                samples = next(runs[key], None)
                if samples is None:
                    answer(end=key)
                else:
                    answer(samples=samples)
            case {"close": key}:
                del runs[key]
                answer(closed=key)


def _load(file: str) -> ModuleType:
    """A module from its file, under the file's name; the folder is not put on the path."""
    name = Path(file).stem
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(*sys.argv[1:])
