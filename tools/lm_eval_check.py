"""lm-eval against a server and against its own `hf` backend, on the same model and tasks of our own: equal numbers.

    python tools/lm_eval_check.py --python ENVIRONMENT/bin/python [--url http://127.0.0.1:8000] [--model FOLDER]

Without a URL it serves the embedded model itself. Every task runs with prompts as token ids, by the tokenizer here and
by that of the server (/tokenizer_info); the task of generated answers with prompts as texts too. Compared are metrics,
the log-likelihood of every choice and of every text, and every generated answer. Exit status 1 if any of these differs
by more than `TOLERANCE`. A key for the server comes from OPENAI_API_KEY, which lm-eval reads.

A tokenizer may begin every text with a special token. lm-eval leaves this token out with the server's tokenizer, and so
does `hf` then. With texts, which the server tokenises, lm-eval would count it twice, or not at all: it cannot ask for
log-likelihoods so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from headway import default_model
from headway.bench.server_process import ServerProcess

TASKS = Path(__file__).parent.parent / "tests" / "clients" / "lm_eval" / "tasks"
GENERATED = ("headway_answer",)
NAMES = ("headway_choice", "headway_few_shot_choice", "headway_text", *GENERATED)
TOLERANCE = 1e-4
SMALL = ("--device", "cpu", "--max-num-seqs", "16")


class Run(NamedTuple):
    """What one backend said. metrics: by task and name. answers: by task and document, what it said to each request: a
    log-likelihood and whether it is greedy, a log-likelihood alone, or a text."""

    metrics: dict[tuple[str, str], float]
    answers: dict[tuple[str, int], list[Any]]


def run(python: Path, backend: str, arguments: dict[str, str], names: Sequence[str] = NAMES) -> Run:
    """Run these tasks by lm-eval's own command line. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        joined = ",".join(f"{name}={value}" for name, value in arguments.items())
        command = [str(python), "-m", "lm_eval", "run", "--model", backend, "--model_args", joined, "--device", "cpu"]
        command += ["--tasks", ",".join(names), "--include_path", str(TASKS), "--batch_size", "8"]
        command += ["--output_path", folder, "--log_samples", "--seed", "1"]
        variables = {"OPENAI_API_KEY": "none", **os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        variables.pop("PYTHONPATH", None)
        done = subprocess.run(command, env=variables, text=True, capture_output=True)
        if done.returncode:
            sys.stderr.write(done.stdout[-4000:] + done.stderr[-8000:])
            done.check_returncode()
        return _read(Path(folder))


def _read(folder: Path) -> Run:
    (results,) = folder.rglob("results_*.json")
    metrics = {
        (task, name): value
        for task, values in json.loads(results.read_text())["results"].items()
        for name, value in values.items()
        if isinstance(value, float) and "stderr" not in name
    }
    answers: dict[tuple[str, int], list[Any]] = {}
    for samples in folder.rglob("samples_*.jsonl"):
        for line in samples.read_text().splitlines():
            sample = json.loads(line)
            task = next(name for name in NAMES if samples.name.startswith(f"samples_{name}_"))
            answers[task, sample["doc_id"]] = [answer for (answer,) in sample["resps"]]
    return Run(metrics, answers)


def difference(one: Any, other: Any) -> float:
    """How far two answers to a request are apart: of log-likelihoods, which lm-eval may write as text, the difference,
    and in hundredths of the value if that is below -100 (lm-eval adds up in float32); of texts and truth values,
    infinity if they are not equal."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(difference, one, other), default=0.0)
    try:
        one, other = float(one), float(other)
        return abs(one - other) / max(1.0, abs(one) / 100)
    except (TypeError, ValueError):
        return 0.0 if str(one) == str(other) else float("inf")


def compare(theirs: Run, ours: Run, names: Sequence[str] = NAMES) -> tuple[list[str], bool]:
    """A table of these tasks, one line per task and metric, and whether all is equal."""
    lines = [f"{'task':26}{'metric':24}{'hf':>12}{'headway':>12}{'answers':>9}{'most apart':>12}"]
    equal = True
    for (task, metric), value in sorted(theirs.metrics.items()):
        if task not in names:
            continue
        mine = ours.metrics.get((task, metric), float("nan"))
        keys = [key for key in theirs.answers if key[0] == task]
        apart = max((difference(theirs.answers[key], ours.answers.get(key)) for key in keys), default=float("inf"))
        count = sum(len(theirs.answers[key]) for key in keys)
        lines.append(f"{task:26}{metric:24}{value:12.6g}{mine:12.6g}{count:9}{apart:12.2g}")
        equal = equal and apart <= TOLERANCE and abs(value - mine) <= TOLERANCE * max(1.0, abs(value))
    return lines, equal


class Way(NamedTuple):
    """How lm-eval asks the server. begins: whether prompts begin with the tokenizer's token for that. names: of the
    tasks."""

    title: str
    arguments: dict[str, str]
    begins: bool
    names: Sequence[str] = NAMES


def ways(model: Path) -> list[Way]:
    """The ways in which lm-eval can ask."""
    local = {"tokenizer_backend": "huggingface", "tokenizer": str(model)}
    return [
        Way("token ids, tokenizer here", {**local, "add_bos_token": "True"}, begins=True),
        Way("token ids, tokenizer of the server", {"tokenizer_backend": "remote"}, begins=False),
        Way("texts", {**local, "tokenized_requests": "False"}, begins=True, names=GENERATED),
    ]


def check(python: Path, url: str, model: Path) -> bool:
    """Run and print everything; returns whether all is equal."""
    hf = {"pretrained": str(model), "dtype": "float32"}
    theirs = {begins: run(python, "hf", {**hf, "add_bos_token": str(begins)}) for begins in (True, False)}
    key = os.environ.get("OPENAI_API_KEY")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    name = httpx.get(f"{url}/v1/models", headers=headers).raise_for_status().json()["data"][0]["id"]
    right = True
    common = {"model": name, "base_url": f"{url}/v1/completions", "num_concurrent": "4", "max_length": "2048"}
    for way in ways(model):
        ours = run(python, "local-completions", {**common, **way.arguments}, way.names)
        lines, equal = compare(theirs[way.begins], ours, way.names)
        print(f"{way.title}: {'equal' if equal else 'DIFFERENT'}", *lines, "", sep="\n", flush=True)
        right = right and equal
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", type=Path, required=True, help="of an environment with lm-eval and its `api` extra")
    parser.add_argument("--url", help="of a server; none: one with the embedded model is started")
    parser.add_argument("--model", type=Path, default=default_model.PATH, help="the folder of the model that it serves")
    options = parser.parse_args()
    with ExitStack() as stack:
        url = options.url
        if url is None:
            url = stack.enter_context(ServerProcess([*SMALL, "--model", str(options.model)])).base_url
        return 0 if check(options.python, url.rstrip("/"), options.model) else 1


if __name__ == "__main__":
    sys.exit(main())
