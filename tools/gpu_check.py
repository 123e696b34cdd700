"""Check Headway on a CUDA device in at most six minutes: exact tokens, preemption and aborts, and the speed of decodes.

    python tools/gpu_check.py                          the device's Python: 3.12, torch 2.11, transformers 5.17
    python tools/gpu_check.py --fill-wheels FOLDER     where there is a network: what that Python may lack
    python tools/gpu_check.py --wheels FOLDER          on the device: use that folder

Prints a table and writes JSON. The exit code is 1 if a token is not exact. `--device cpu --shape tiny` is the reduced
form that the tests run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import queue
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Pure Python, or small; torch, transformers and numpy are never among them: they must fit the device.
WHEELS = ("annotated-doc", "click", "markdown-it-py", "mdurl", "msgspec", "pygments", "pyzmq", "rich", "shellingham",
          "typer")  # fmt: skip

FAMILIES = ("llama", "qwen3")
HEAD_DIM = 64  # the smallest that FlashInfer takes
NUM_OUTPUT = 24
MAX_MODEL_LEN = 256
LARGE_POOL, SMALL_POOL = 1_000, 20  # blocks; the small pool holds one request of any length, and few at once
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # of the spread of a row of logits; a wrong block costs far more
PATIENCE = 120.0  # seconds for one engine to answer
ABORTED = 5  # every how many-th request
BATCHES = {"tiny": (2,)}
DEFAULT_BATCHES = (1, 32, 256)
LAST_START = 0.75  # of the time limit: no measurement of speed begins later

Row = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """How a model is run."""

    dtype: str
    backend: str
    enforce_eager: bool = False


def ways(device: str) -> Iterator[Way]:
    """What this device can run."""
    for dtype in TOLERANCE:
        yield Way(dtype, "torch")
    if device == "cpu":
        yield Way("float32", "auto")
    elif importlib.util.find_spec("flashinfer") is not None:
        yield Way("bfloat16", "flashinfer", enforce_eager=True)
        yield Way("bfloat16", "flashinfer")


def prompts(folder: Path, count: int) -> list[list[int]]:
    """Of the embedded model: problems that it knows. Of other models: random tokens, some with a common beginning."""
    from headway import default_model

    if folder == default_model.PATH:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        known = [tokenizer(problem.prompt).input_ids for problem in default_model.held_out()]
        short = [prompt for prompt in known if len(prompt) + NUM_OUTPUT <= MAX_MODEL_LEN]
        return sorted(short[:: len(short) // count], key=len)[-count:]
    draw = random.Random(0)
    stem = [draw.randrange(2, 256) for _ in range(40)]
    return [
        stem * (index % 3 == 0) + [draw.randrange(2, 256) for _ in range(1 + 7 * index % 90)] for index in range(count)
    ]


def answer(
    folder: Path, device: str, way: Way, asked: list[list[int]], num_blocks: int, aborted: bool
) -> tuple[dict[int, list[int]], int]:
    """The greedy answers by prompt, and the number of preemptions. aborted: every fifth request ends early, and is
    left out. Raises RuntimeError for a request that fails or an ownership that is broken."""
    from headway.config import EngineConfig
    from headway.engine.engine import Engine
    from headway.request import NewRequest
    from headway.sampling import SamplingParams
    from headway.scheduler.effects import Effects
    from headway.token_ids import NUM_INT32, pack

    config = EngineConfig(
        model=str(folder), device=device, dtype=way.dtype, attention_backend=way.backend, max_num_seqs=16,
        enforce_eager=way.enforce_eager, max_num_batched_tokens=256, max_model_len=MAX_MODEL_LEN, num_blocks=num_blocks,
        reserve="none",
    )  # fmt: skip
    happened: queue.SimpleQueue[Effects] = queue.SimpleQueue()
    engine = Engine.from_config(config, happened.put)
    engine.start()
    try:
        sampling = SamplingParams(max_tokens=NUM_OUTPUT, temperature=0, ignore_eos=True)
        uids = [
            engine.add(NewRequest(request_id=str(index), prompt=pack(prompt, NUM_INT32), sampling=sampling))
            for index, prompt in enumerate(asked)
        ]
        answers: dict[int, list[int]] = {uid: [] for uid in uids}
        left = set(uids[::ABORTED]) if aborted else set()
        ended = 0
        while ended < len(uids):
            effects = happened.get(timeout=PATIENCE)
            for step in effects.tokens:
                for uid, token in zip(step.uids.tolist(), step.tokens.tolist(), strict=True):
                    answers[uid].append(token)
                engine.manager.abort([uid for uid in left if len(answers[uid]) > 3])
            for end in effects.ended:
                if end.error is not None:
                    raise RuntimeError(end.error)
            ended += len(effects.ended)
        report = engine.manager.audit(PATIENCE)
        if report.problems:
            raise RuntimeError(f"ownership is broken: {report.problems[0]}")
        preemptions = engine.manager.snapshot().num_preemptions
    finally:
        engine.shutdown()
    return {index: answers[uid] for index, uid in enumerate(uids) if uid not in left}, preemptions


def inexact(folder: Path, device: str, dtype: str, asked: list[list[int]], answers: dict[int, list[int]]) -> int:
    """Tokens that the model itself would not say: by its own float32 logits another token leads by more than rounding
    explains. The first one of a request counts, as all after it follow from it."""
    import torch
    from transformers import AutoModelForCausalLM

    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    model = from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(device).eval()
    wrong = 0
    for index, output in answers.items():
        with torch.inference_mode():
            logits = model(torch.tensor([asked[index] + output], device=device)).logits[0]
        rows = logits[len(asked[index]) - 1 : -1]
        chosen = rows.gather(1, torch.tensor(output, device=device)[:, None])[:, 0]
        short = (rows.max(dim=1).values - chosen) / rows.std(dim=1)
        wrong += int((short > TOLERANCE[dtype]).sum()) + (len(output) != NUM_OUTPUT)
    return wrong


def exactness(device: str, folder: Path, count: int) -> Iterator[Row]:
    """A row for each model and way, in a large pool, and with aborts in a pool too small for all."""
    from headway import default_model
    from headway.accuracy import tiny_models

    models = {"embedded": default_model.PATH}
    models |= {name: tiny_models.build(name, folder / name, head_dim=HEAD_DIM) for name in FAMILIES}
    for name, path in models.items():
        asked = prompts(path, count)
        for way in ways(device):
            for load in (False, True):
                begun = time.monotonic()
                answers, preemptions = answer(
                    path, device, way, asked, num_blocks=SMALL_POOL if load else LARGE_POOL, aborted=load
                )
                yield {
                    "check": "aborts and preemption" if load else "tokens",
                    "model": name,
                    "dtype": way.dtype,
                    "attention": way.backend + ("" if way.backend != "flashinfer" else
                                                ", eager" if way.enforce_eager else ", graphs"),
                    "answers": len(answers),
                    "preemptions": preemptions,
                    "inexact": inexact(path, device, way.dtype, asked, answers),
                    "seconds": round(time.monotonic() - begun, 1),
                }  # fmt: skip


def speed(device: str, name: str, folder: Path, until: float) -> Iterator[Row]:
    """Decodes of a model of real size with random weights, beside `generate` and the bandwidth of the memory."""
    from headway.bench import throughput
    from headway.bench.generators import Setting
    from headway.bench.shapes import SHAPES, Shape

    shapes = SHAPES | {
        "llama-1b": Shape(
            architecture="llama", hidden=2_048, layers=16, heads=32, key_heads=8, head_dim=64, intermediate=8_192,
            vocabulary=128_256, dtype="bfloat16", requests=DEFAULT_BATCHES,
        )
    }  # fmt: skip
    shape = shapes[name]
    path = folder / "speed"
    shape.build(path, device)
    new_tokens = 8 if name == "tiny" else 64
    for batch in BATCHES.get(name, DEFAULT_BATCHES):
        if time.monotonic() > until:
            yield {"check": "speed", "model": name, "batch": batch, "skipped": "the time is over"}
            continue
        setting = Setting(path, device, shape.dtype, batch, shape.longest + new_tokens, threads=1)
        for found in throughput.measure(shape, ("headway", "dynamic"), setting, new_tokens, rounds=1):
            row = {"check": "speed", "model": name, "batch": batch, "system": found["system"]}
            row |= {key: found.get(key) for key in ("tokens_per_s", "step_ms", "floor_ms")}
            busy = found.get("device_busy_percent")
            yield row | {"host_percent": None if busy is None else round(100 - busy, 1)}


def fill(folder: Path) -> None:
    """Download the wheels for the device's Python, at the versions of constraints.txt."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), "-c", str(ROOT / "constraints.txt")]
    only = ["--python-version", "3.12", "--only-binary=:all:", "--no-deps", "--platform", "manylinux2014_x86_64"]
    only += ["--platform", "manylinux_2_28_x86_64"]
    subprocess.check_call([*pip, *only, *WHEELS])


def use(folder: Path, into: str) -> None:
    """Unpack the wheels, and find them after what is installed."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", into]
    subprocess.check_call([*pip, *map(str, sorted(folder.glob("*.whl")))])
    sys.path.append(into)


def check(device: str, shape: str, folder: Path, count: int, seconds: float) -> Iterator[Row]:
    """All rows."""
    begun = time.monotonic()
    yield from exactness(device, folder, count)
    yield from speed(device, shape, folder, until=begun + LAST_START * seconds)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", default="llama-1b", help="llama-1b, qwen3-8b or tiny")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=360.0)
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--fill-wheels", type=Path)
    args = parser.parse_args(argv)
    if args.fill_wheels is not None:
        fill(args.fill_wheels)
        return 0
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        if args.wheels is not None:
            use(args.wheels, f"{temporary}/wheels")
        import torch

        if args.device == "cuda" and not torch.cuda.is_available():
            print("gpu-check: torch sees no CUDA device here", file=sys.stderr)
            return 2
        for row in check(args.device, args.shape, Path(temporary), args.prompts, args.seconds):
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items() if value is not None), flush=True)
    args.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    wrong = sum(row.get("inexact", 0) for row in rows)
    print(f"gpu-check: {wrong} inexact tokens")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
