"""On a real CUDA device, and with the real FlashInfer where it is installed; skipped where there is none."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig, LlamaConfig, Qwen3Config

from headway.accuracy import reference as reference_module
from headway.accuracy.reference import Reference, generate_greedily
from headway.config import EngineConfig
from headway.engine.engine import Engine
from headway.executor import attention_backend
from headway.executor.transformers_executor import TransformersExecutor
from headway.model_files import ModelFiles
from headway.sampling import SamplingParams
from headway.thinking_tokens import ThinkingTokens
from tests.engine.running import Recorder
from tests.executor.driver import GREEDY, Driver
from tests.executor.served_jobs import Job
from tests.managers.driving import new_request

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_flashinfer = pytest.mark.skipif(importlib.util.find_spec("flashinfer") is None, reason="no FlashInfer")

CUDA = torch.device("cuda", 0)
VOCAB = 256
NUM_OUTPUT = 24
LENGTHS = (1, 3, 16, 17, 31, 40, 63, 64, 75, 90, 200)
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# Heads of 64 and 128 numbers, as FlashInfer takes them; what it must honour beside: windows, softcap, sinks.
CONFIGS = {
    "llama": lambda: LlamaConfig(**COMMON, num_key_value_heads=2),
    "qwen3": lambda: Qwen3Config(**COMMON, num_key_value_heads=1, head_dim=128),
    "gemma2": lambda: Gemma2Config(
        **COMMON, num_key_value_heads=2, head_dim=64, query_pre_attn_scalar=64, sliding_window=24,
        attn_logit_softcapping=5.0, final_logit_softcapping=10.0,
    ),
    "gpt_oss": lambda: GptOssConfig(
        **COMMON, num_key_value_heads=2, head_dim=64, sliding_window=24, num_local_experts=4, num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}  # fmt: skip
FLASHINFER = {"attention_backend": "flashinfer", "dtype": "bfloat16"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("wide")

    def of(name: str) -> Path:
        path = root / name
        if not path.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32)
                for parameter in model.parameters():
                    if parameter.dim() == 1:
                        parameter.data += 0.3 * torch.randn_like(parameter)
            model.save_pretrained(path)
        return path

    return of


@pytest.fixture(scope="session")
def expected(folder) -> Callable[[str], Reference]:
    """What `generate` says in float32 on the CPU, of prompts that another device's rounding does not decide."""
    made: dict[str, Reference] = {}

    def draw(length: int) -> Callable[[random.Random], list[int]]:
        return lambda rng: [rng.randrange(2, VOCAB) for _ in range(length)]

    def of(name: str) -> Reference:
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(reference_module, "MIN_MARGIN", 2e-3)
                made[name] = generate_greedily(folder(name), [draw(length) for length in LENGTHS], NUM_OUTPUT)
        return made[name]

    return of


@pytest.fixture
def make(folder):
    made: list[TransformersExecutor] = []

    def make(name: str = "llama", **fields) -> Driver:
        settings = {"device": "cuda", "max_num_seqs": 12, "num_blocks": 300, **fields}
        config = EngineConfig(model=str(folder(name)), **settings)
        made.append(TransformersExecutor(ModelFiles.resolve(config), config))
        return Driver(made[-1], made[-1].num_blocks)

    yield make
    for executor in made:
        executor.shutdown()


def serve(driver: Driver, prompts, sampling=GREEDY, num_output=NUM_OUTPUT, **how):
    sequences = [driver.sequence(slot, prompt, sampling) for slot, prompt in enumerate(prompts)]
    driver.run(sequences, num_output, max_running=12, **how)
    return sequences


def distance(sequences, path: Path) -> float:
    """How far the reported log-probabilities are from the model's own for the same text, in float32: the median."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").to(CUDA)
    found, expected = [], []
    for sequence in sequences:
        with torch.inference_mode():
            log_probs = model(torch.tensor([sequence.tokens], device=CUDA)).logits[0].log_softmax(-1).cpu()
        first = len(sequence.request.prompt) - 1
        rows = range(first, first + len(sequence.output))
        expected += log_probs[rows, sequence.output].tolist()
        found += [chosen for chosen, *_ in sequence.logprobs]
    return float(np.median(np.abs(np.array(found) - np.array(expected))))


@pytest.mark.parametrize("budget", [50, 2048])
@pytest.mark.parametrize("name", CONFIGS)
def test_torch_in_float32_says_what_generate_says(name, budget, make, expected):
    driver = make(name, attention_backend="torch", dtype="float32")
    sequences = serve(driver, expected(name).prompts, budget=budget)
    assert [s.output for s in sequences] == expected(name).outputs


@needs_flashinfer
@pytest.mark.parametrize("enforce_eager", [True, False])
@pytest.mark.parametrize("budget", [50, 2048])
@pytest.mark.parametrize("name", CONFIGS)
def test_flashinfer_in_bfloat16_is_near_the_model(name, budget, enforce_eager, make, expected, folder):
    driver = make(name, enforce_eager=enforce_eager, **FLASHINFER)
    if name != "gpt_oss":  # whose experts may be such that no graph can hold them
        assert (driver.executor._graphs is None) == enforce_eager
    reporting = dataclasses.replace(GREEDY, logprobs=0)
    assert distance(serve(driver, expected(name).prompts, reporting, budget=budget), folder(name)) < 0.1


@needs_flashinfer
def test_a_graph_computes_what_its_kernels_compute_one_by_one(make, expected):
    """The same step, of every number of rows, with and without: KV cache and logits differ by rounding alone."""
    prompts = expected("llama").prompts
    drivers = [make(enforce_eager=eager, **FLASHINFER) for eager in (True, False)]
    reporting = dataclasses.replace(GREEDY, logprobs=5)
    sequences = [[d.sequence(slot, p, reporting) for slot, p in enumerate(prompts)] for d in drivers]
    for driver, mine in zip(drivers, sequences, strict=True):
        driver.step([(s, len(s.tokens)) for s in mine])
    for count in (11, 3, 7, 1, 5, 4, 2, 9, 6, 8, 10):
        for driver, mine in zip(drivers, sequences, strict=True):
            driver.step([(s, 1) for s in mine[:count]])
    for eager, graphed in zip(*sequences, strict=True):
        same = 0  # greedy tokens may part where rounding decides; up to there all must be near
        while same < len(eager.output) and eager.output[same] == graphed.output[same]:
            assert eager.logprobs[same][0] == pytest.approx(graphed.logprobs[same][0], abs=0.1)
            same += 1
        assert same > 0


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_overlapped_steps_change_no_token(async_scheduling, folder, expected):
    reference = expected("llama")
    config = EngineConfig(
        model=str(folder("llama")), device="cuda", dtype="float32", attention_backend="torch", max_num_seqs=6,
        max_num_batched_tokens=64, max_model_len=256, num_blocks=64, reserve="none",
        async_scheduling=async_scheduling,
    )  # fmt: skip
    served = Recorder()
    engine = Engine.from_config(config, served.take)
    jobs = [
        Job(prompt, SamplingParams(temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True))
        for prompt in reference.prompts
    ]
    for uid, job in enumerate(jobs, start=1):
        engine.add(new_request(f"r{uid}", job.prompt, job.sampling, uid=uid))
    engine.start()
    try:
        served.wait_for(range(1, len(jobs) + 1))
    finally:
        engine.shutdown()
    assert [served.tokens[uid] for uid in range(1, len(jobs) + 1)] == reference.outputs


WAYS = (
    GREEDY,
    SamplingParams(temperature=0.8, seed=1, max_tokens=99),
    SamplingParams(temperature=0.8, top_p=0.9, seed=1, max_tokens=99),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=5, min_p=0.01, logprobs=3, max_tokens=99),
    dataclasses.replace(GREEDY, repetition_penalty=1.3, frequency_penalty=0.2, logprobs=0),
    SamplingParams(temperature=0.5, min_tokens=4, logit_bias={7: 5.0}, presence_penalty=0.5, max_tokens=99),
    dataclasses.replace(GREEDY, allowed_token_ids=(3, 4, 5), bad_token_sequences=((3, 4), (4, 3, 3), (5,))),
    dataclasses.replace(GREEDY, thinking=ThinkingTokens(start=(5, 6), end=(9, 8)), thinking_token_budget=2),
)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_backend": "torch", "dtype": "float32"},
        pytest.param(FLASHINFER, marks=needs_flashinfer),
        pytest.param({**FLASHINFER, "enforce_eager": True}, marks=needs_flashinfer),
    ],
)
def test_no_step_makes_the_host_wait(fields, make, monkeypatch):
    enqueue = TransformersExecutor._enqueue

    def watched(self, batch):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return enqueue(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TransformersExecutor, "_enqueue", watched)
    driver = make(**fields)
    sequences = [
        driver.sequence(slot, range(5, 15 + 7 * slot), way, stop_token_ids=(7,)) for slot, way in enumerate(WAYS)
    ]
    driver.run(sequences, 6, budget=24)


def test_a_step_is_enqueued_while_the_device_is_busy(make):
    driver = make(attention_backend="torch", dtype="float32")
    sequence = driver.sequence(0, range(5, 25))
    driver.step([(sequence, 20)])
    driver.step([(sequence, 1)])  # whatever is made the first time is made
    enqueue, busy = driver.executor._enqueue, []

    def noting(batch):
        torch.cuda._sleep(2_000_000_000)  # about a second
        launched = enqueue(batch)
        busy.append(not launched.arrived._done.query())
        return launched

    driver.executor._thread._run = noting
    assert driver.step([(sequence, 1)]).error is None
    assert busy == [True]


@needs_flashinfer
def test_the_cache_takes_what_the_rest_leaves(folder):
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(CUDA)
    config = EngineConfig(model=str(folder("llama")), device="cuda", gpu_memory_utilization=0.5, **FLASHINFER)
    executor = TransformersExecutor(ModelFiles.resolve(config), config)
    try:
        left, _ = torch.cuda.mem_get_info(CUDA)
        assert executor._graphs is not None
        assert 0.4 * free < left < 0.65 * free
    finally:
        executor.shutdown()


@needs_flashinfer
def test_auto_takes_flashinfer_in_half_precision_only(make, monkeypatch):
    assert make(dtype="bfloat16").executor._backend.name == "flashinfer"
    assert make(dtype="float32").executor._backend.name == "torch"
    monkeypatch.setattr(attention_backend, "prove", lambda *args: "for decodes, what it computes is off by 1")
    assert make(dtype="bfloat16").executor._backend.name == "torch"
