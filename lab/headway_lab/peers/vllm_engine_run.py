"""The program of a process with vLLM's whole engine, offline: computes all answers of a round, and tells how long that
took. Runs in vLLM's engine environment: imports nothing of headway.

    python vllm_engine_run.py ANSWERING_FILE SCHEDULER

SCHEDULER: the class, as after `--scheduler-cls`; "": vLLM's own. The first answer is the greeting {"version": ...}.
Each question is {"requests": ..., "prompt": ..., "output": ...}; its answer is
{"seconds": ..., "cpu_seconds": ..., "tokens": ...}.

The model is as small as a model can be: a step takes so little that the scheduler's time shows. Its weights are random.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCAB_SIZE = 512
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,  # vLLM's attention on CPUs has none of less
    "max_position_embeddings": 4_096,
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
FIRST_TOKEN = 3
MAX_NUM_SEQS = 512

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # all in this thread
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def begin(scheduler: str, folder: str) -> tuple[dict[str, str], Callable[[Any], Any]]:
    """Start the engine; returns the greeting, and the function that answers a question."""
    import vllm

    Path(folder, "config.json").write_text(json.dumps(MODEL))
    engine = vllm.LLM(
        folder,
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=1_024,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=8_192,
        **({"scheduler_cls": scheduler} if scheduler else {}),
    )
    dice = random.Random(1)

    def answer(question: dict[str, int]) -> dict[str, float]:
        prompts = [
            {"prompt_token_ids": [dice.randrange(FIRST_TOKEN, VOCAB_SIZE) for _ in range(question["prompt"])]}
            for _ in range(question["requests"])
        ]
        sampling = vllm.SamplingParams(temperature=0, ignore_eos=True, detokenize=False, max_tokens=question["output"])
        started, cpu_started = time.perf_counter(), time.process_time()
        answers = engine.generate(prompts, sampling, use_tqdm=False)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        tokens = sum(len(answer.outputs[0].token_ids) for answer in answers)
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens}

    return {"version": vllm.__version__}, answer


def _load(file: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    _answering, _scheduler = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="headway-peer-") as _folder:
        _load(_answering).answer_questions(lambda: begin(_scheduler, _folder))
