"""The program of a peer's process: runs workloads with the scheduler of this environment.

    python runner.py ANSWERING_FILE WORKLOADS_FILE DRIVER_FILE

Questions and answers (the first answer needs no question):

                                                        {"name": ..., "version": ...}
    {"open": 1, "workload": "Churn", "fields": {...},
     "system": {...}}                                   null
    {"next": 1}                                         the samples of a round; null after the last

It imports the standard library and the three files; a driver has NAME, VERSION and System, which is made with the
capacity that the workload wants, and with the keywords of the question.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any


def begin(workloads_file: str, driver_file: str) -> tuple[dict[str, str], Callable[[Any], Any]]:
    """Load workloads and driver; returns the greeting, and the function that answers a question."""
    workloads, driver = _load(workloads_file), _load(driver_file)
    runs: dict[int, Iterator[Any]] = {}

    def answer(question: Any) -> Any:
        match question:
            case {"open": key, "workload": name, "fields": fields, "system": keywords}:
                runs[key] = workloads.BY_NAME[name](**fields).run(partial(driver.System, **keywords))
                return None
            case {"next": key}:
                samples = next(runs[key], None)
                if samples is None:
                    del runs[key]
                return samples
        raise ValueError(f"unknown question {question!r}")

    return {"name": driver.NAME, "version": driver.VERSION}, answer


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
    _answering, *_files = sys.argv[1:]
    _load(_answering).answer_questions(lambda: begin(*_files))
