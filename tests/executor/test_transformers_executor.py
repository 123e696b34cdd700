"""How the executor keeps its promises to the core, beside the tokens."""

import dataclasses
import gc
import threading
import weakref
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from headway.config import EngineConfig
from headway.executor import kv_budget
from headway.executor import transformers_executor as transformers_module
from headway.executor.transformers_executor import TransformersExecutor
from headway.model_files import ModelFiles
from headway.sampling import SamplingParams
from tests.executor.conftest import NUM_OUTPUT
from tests.executor.driver import GREEDY, Driver


@pytest.fixture
def driver(make_executor):
    executor = make_executor("llama")
    return Driver(executor, executor.num_blocks)


def spoil_forward(executor, monkeypatch):
    """The next forward raises; those after it work."""
    module = executor._model.module
    forward, spoilt = module.forward, iter([True])

    def maybe_fail(*args, **kwargs):
        if next(spoilt, False):
            raise RuntimeError("the device caught fire")
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", maybe_fail)


class TestSteps:
    def test_a_chunk_that_does_not_complete_its_prompt_samples_nothing(self, driver):
        sequence = driver.sequence(0, range(2, 42))
        result = driver.step([(sequence, 30)])
        assert result.error is None and result.tokens.dtype == np.int32 and len(result.tokens) == 0

    def test_rows_that_do_not_sample_do_not_shift_the_tokens_of_those_that_do(self, driver, reference):
        expected = reference("llama")
        first, second = (driver.sequence(slot, expected.prompts[-slot]) for slot in (1, 2))
        other = driver.sequence(3, range(2, 202))
        driver.step([(first, len(first.tokens))])
        driver.step([(first, 1), (other, 50), (second, len(second.tokens))])
        driver.step([(first, 1), (other, 50), (second, 1)])
        assert first.output == expected.outputs[-1][:3]
        assert second.output == expected.outputs[-2][:2]

    def test_a_reused_slot_serves_its_new_request(self, driver, reference):
        expected = reference("llama")
        for prompt, output in zip(expected.prompts, expected.outputs, strict=True):
            sequence = driver.sequence(5, prompt)
            driver.run([sequence], NUM_OUTPUT)
            assert sequence.output == output

    def test_a_preempted_request_goes_on_where_it_was(self, driver, reference):
        expected = reference("llama")
        sequence, other = driver.sequence(0, expected.prompts[-1]), driver.sequence(1, expected.prompts[4])
        driver.run([sequence], 8)
        driver.preempt(sequence, slot=7)
        driver.run([other, sequence], NUM_OUTPUT, budget=17)
        assert sequence.output == expected.outputs[-1]

    def test_cached_blocks_of_another_request_are_used_as_they_are(self, driver, reference):
        expected = reference("llama")
        prompt = expected.prompts[-1]
        first, second = driver.sequence(0, prompt), driver.sequence(1, prompt)
        driver.step([(first, len(prompt))])
        second.blocks, second.computed = first.blocks[:4], 4 * driver.block_size
        driver.step([(first, 1), (second, len(prompt) - second.computed)])
        for _ in range(5):
            driver.step([(first, 1), (second, 1)])
        assert second.output == expected.outputs[-1][: len(second.output)]
        assert first.output == expected.outputs[-1][: len(first.output)]

    def test_another_requests_broken_numbers_do_not_leak_through_reused_blocks(self, make_executor, reference):
        executor = make_executor("llama", num_blocks=40)
        driver = Driver(executor, executor.num_blocks)
        for keys, values in executor._model.attention.kv.layers.values():
            keys[1:] = float("nan")  # all but the padding block, which is never written
            values[1:] = float("nan")
        expected = reference("llama")
        chosen = (0, 3, 6, 9)  # short beside long, so that rows are padded
        sequences = [driver.sequence(slot, expected.prompts[slot]) for slot in chosen]
        driver.run(sequences, NUM_OUTPUT)
        assert [s.output for s in sequences] == [expected.outputs[slot] for slot in chosen]

    def test_block_sizes_other_than_16(self, make_executor, reference):
        for block_size in (1, 8, 64):
            executor = make_executor("gemma2", block_size=block_size, num_blocks=None)
            driver = Driver(executor, executor.num_blocks, block_size)
            expected = reference("gemma2")
            sequences = [driver.sequence(slot, prompt) for slot, prompt in enumerate(expected.prompts)]
            driver.run(sequences, 5, budget=40)
            assert [s.output for s in sequences] == [output[:5] for output in expected.outputs]


class TestFailures:
    def test_a_failing_step_is_reported_and_the_next_one_works(self, make_executor, reference, monkeypatch):
        executor = make_executor("llama")
        driver = Driver(executor, executor.num_blocks)
        expected = reference("llama")
        healthy, doomed = driver.sequence(0, expected.prompts[3]), driver.sequence(1, expected.prompts[4])
        driver.step([(healthy, len(healthy.tokens))])
        spoil_forward(executor, monkeypatch)
        result = driver.step([(doomed, len(doomed.tokens))])
        assert result.error == "RuntimeError: the device caught fire"
        assert len(result.tokens) == 0 and result.logprobs is None
        driver.run([healthy], NUM_OUTPUT)
        assert healthy.output == expected.outputs[3]

    def test_a_failing_step_has_changed_the_mirrors(self, make_executor, reference, monkeypatch):
        """The core takes back the requests of a failed step, and does not repeat what it said in the batch."""
        executor = make_executor("llama")
        driver = Driver(executor, executor.num_blocks)
        expected = reference("llama")
        sequence = driver.sequence(0, expected.prompts[5])
        spoil_forward(executor, monkeypatch)
        driver.step([(sequence, len(sequence.tokens))])
        sequence.computed = 0  # admitted already: this batch carries neither the admission nor the table
        driver.run([sequence], NUM_OUTPUT)
        assert sequence.output == expected.outputs[5]

    def test_a_hanging_step_cannot_be_given_up(self, driver):
        assert driver.executor.restart() is False


class TestLifeCycle:
    def test_results_come_on_the_device_thread_in_launch_order(self, make_executor):
        executor = make_executor("llama")
        threads = []
        driver = Driver(executor, executor.num_blocks)
        executor._thread._on_done = lambda result: (
            threads.append(threading.current_thread().name),
            driver.results.put(result),
        )
        sequences = [driver.sequence(slot, range(2, 10 + slot)) for slot in range(4)]
        for sequence in sequences:
            driver.launch([(sequence, len(sequence.tokens))])
        assert [driver.results.get(timeout=30).step_id for _ in sequences] == [1, 2, 3, 4]
        assert set(threads) == {"headway-device"}

    def test_shutdown_is_idempotent_and_frees_the_model(self, make_executor, model_folder):
        config = EngineConfig(model=str(model_folder("llama")), device="cpu", num_blocks=40, max_num_seqs=4)
        executor = TransformersExecutor(ModelFiles.resolve(config), config)
        Driver(executor, 40)
        model = weakref.ref(executor._model.module)
        (thread,) = executor._thread._threads
        executor.shutdown()
        executor.shutdown()
        gc.collect()
        assert not thread.is_alive() and model() is None

    def test_a_shutdown_does_not_wait_for_ever_for_a_step_that_hangs(self, make_executor, monkeypatch):
        monkeypatch.setattr(transformers_module, "_STOP_TIMEOUT", 0.05)
        executor = make_executor("llama")
        driver = Driver(executor, executor.num_blocks)
        entered, release = threading.Event(), threading.Event()

        def hang(*args, **kwargs):
            entered.set()
            release.wait(30)
            raise RuntimeError("too late")

        monkeypatch.setattr(executor._model.module, "forward", hang)
        driver.launch([(driver.sequence(0, [5, 6]), 2)])
        assert entered.wait(30)
        executor.shutdown()
        release.set()
        assert driver.results.empty()

    def test_launching_is_refused_unless_it_runs(self, make_executor, driver):
        batch = object()
        with pytest.raises(RuntimeError, match="not running"):
            make_executor("llama").launch(batch)
        driver.executor.shutdown()
        with pytest.raises(RuntimeError, match="not running"):
            driver.executor.launch(batch)
        with pytest.raises(RuntimeError, match="started already"):
            driver.executor.start(print)

    def test_two_executors_in_one_process_do_not_disturb_each_other(self, make_executor, reference):
        names = ("llama", "gemma2", "llama")
        drivers = [Driver(executor, executor.num_blocks) for executor in map(make_executor, names)]
        sequences = [
            driver.sequence(0, reference(name).prompts[7]) for driver, name in zip(drivers, names, strict=True)
        ]
        for _ in range(6):
            for driver, sequence in zip(drivers, sequences, strict=True):
                driver.launch([(sequence, len(sequence.tokens) - sequence.computed)])
            for driver, sequence in zip(drivers, sequences, strict=True):
                sequence.tokens += driver.results.get(timeout=30).tokens.tolist()
        for name, sequence in zip(names, sequences, strict=True):
            assert sequence.output == reference(name).outputs[7][:6]


def test_a_model_that_gives_all_logits_has_them_indexed(make_executor, reference):
    executor = make_executor("llama")
    executor._model = dataclasses.replace(executor._model, takes_logits_to_keep=False)
    driver = Driver(executor, executor.num_blocks)
    expected = reference("llama")
    sequences = [driver.sequence(slot, prompt) for slot, prompt in enumerate(expected.prompts)]
    driver.run(sequences, 6, budget=50)
    assert [s.output for s in sequences] == [output[:6] for output in expected.outputs]


class TestSampling:
    def test_a_seeded_answer_does_not_depend_on_company_slot_or_preemption(self, make_executor, reference):
        prompts = reference("llama").prompts
        sampling = SamplingParams(temperature=0.9, top_p=0.95, top_k=60, seed=1234, max_tokens=1000)

        def serve(company: int, slot: int, preempt: bool) -> list[int]:
            executor = make_executor("llama")
            driver = Driver(executor, executor.num_blocks)
            sequence = driver.sequence(slot, prompts[6], sampling)
            others = [driver.sequence(other, prompts[other]) for other in range(company)]
            driver.run([*others, sequence], 9, budget=50, release=False)
            if preempt:
                driver.preempt(sequence, slot - 1)
            driver.run([sequence], NUM_OUTPUT)
            return sequence.output

        alone = serve(company=0, slot=0, preempt=False)
        assert serve(company=5, slot=11, preempt=False) == alone
        assert serve(company=2, slot=7, preempt=True) == alone

    def test_without_a_seed_the_engine_seed_and_the_uid_decide(self, make_executor):
        sampling = SamplingParams(temperature=1.0, max_tokens=1000)

        def serve(engine_seed: int, uid: int) -> list[int]:
            executor = make_executor("llama", seed=engine_seed)
            driver = Driver(executor, executor.num_blocks)
            sequence = driver.sequence(0, [5, 6, 7], sampling, uid=uid)
            driver.run([sequence], NUM_OUTPUT)
            return sequence.output

        first = serve(0, 1)
        assert serve(0, 1) == first
        assert serve(0, 2) != first
        assert serve(1, 1) != first

    def test_repetition_penalty_is_that_of_generate_also_after_a_preemption(self, make_executor, model_folder):
        prompt = list(range(30, 60))
        model = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
        model.generation_config.eos_token_id = None
        answer = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=NUM_OUTPUT,
            do_sample=False,
            repetition_penalty=1.7,
        )
        executor = make_executor("llama")
        driver = Driver(executor, executor.num_blocks)
        penalised = dataclasses.replace(GREEDY, repetition_penalty=1.7)
        sequence = driver.sequence(2, prompt, penalised)
        driver.run([sequence, driver.sequence(0, prompt)], 7)
        driver.preempt(sequence, slot=1)
        driver.run([sequence, driver.sequence(2, prompt)], NUM_OUTPUT)
        assert sequence.output == answer[0, len(prompt) :].tolist()

    def test_logprobs_are_those_of_the_model(self, make_executor, model_folder, reference):
        executor = make_executor("llama")
        driver = Driver(executor, executor.num_blocks)
        prompts = reference("llama").prompts
        # Neither temperature nor penalty changes what is reported.
        asking = SamplingParams(temperature=1.3, seed=3, logprobs=4, repetition_penalty=1.5, max_tokens=1000)
        silent = driver.sequence(0, prompts[2])
        bare = driver.sequence(1, prompts[5], dataclasses.replace(GREEDY, logprobs=0))
        full = driver.sequence(2, prompts[6], asking)
        driver.run([silent, bare, full], 6)
        assert silent.logprobs == []
        model = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
        for sequence, count in ((bare, 0), (full, 4)):
            with torch.inference_mode():
                log_probs = model(torch.tensor([sequence.tokens])).logits[0].log_softmax(-1)
            assert len(sequence.logprobs) == 6
            for index, (chosen, rank, top_ids, top) in enumerate(sequence.logprobs):
                token = sequence.output[index]
                row = log_probs[len(sequence.request.prompt) + index - 1]
                assert chosen == pytest.approx(float(row[token]), abs=1e-4)
                assert rank == 1 + int((row > row[token]).sum())
                assert top_ids[:count] == row.topk(count).indices.tolist()
                assert top[:count] == pytest.approx(row.topk(count).values.tolist(), abs=1e-4)

    def test_min_tokens_holds_stop_tokens_back(self, make_executor, reference):
        expected = reference("llama")
        stop = expected.outputs[4][0]
        executor = make_executor("llama")
        driver = Driver(executor, executor.num_blocks)
        params = dataclasses.replace(GREEDY, min_tokens=5, logit_bias={stop: 100.0})
        held = driver.sequence(0, expected.prompts[4], params, stop_token_ids=(stop, 10**6))
        free = driver.sequence(
            1, expected.prompts[4], dataclasses.replace(params, min_tokens=0), stop_token_ids=(stop,)
        )
        driver.run([held, free], 8)
        assert Counter(held.output[:5])[stop] == 0 and held.output[5:] == [stop] * 3
        assert free.output == [stop] * 8


class TestKVCacheSize:
    """Llama: 3 layers, 2 heads of 16, keys and values, float32: 12 KiB a block of 16; 32 blocks for 512 tokens."""

    def test_on_a_cpu_the_budget_decides(self, make_executor):
        executor = make_executor("llama", num_blocks=None, kv_cache_memory_gb=100 * 12 / 2**20)
        assert executor.num_blocks == 100
        kv = executor._model.attention.kv
        assert sum(t.numel() * t.itemsize for layer in kv.layers.values() for t in layer) == 100 * 12 * 2**10

    def test_on_a_cpu_never_more_than_all_slots_can_use(self, make_executor):
        executor = make_executor("llama", num_blocks=None, max_num_seqs=3, max_model_len=100)
        assert executor.num_blocks == 3 * 7 + 1

    def test_half_precision_holds_twice_as_many(self, make_executor):
        executor = make_executor("llama", num_blocks=None, kv_cache_memory_gb=100 * 12 / 2**20, dtype="bfloat16")
        assert executor.num_blocks == 200

    def test_on_cuda_what_the_largest_step_leaves_is_shared_out(self, make_executor, monkeypatch):
        """The arithmetic, on made-up memory: 1000 blocks are free, and the largest step took 100."""
        block = 12 * 2**10
        executor = make_executor("llama", num_blocks=None)
        steps = []
        plan_prompts = kv_budget.plan_prompts
        monkeypatch.setattr(
            kv_budget, "plan_prompts", lambda rows, *rest: steps.append(rows) or plan_prompts(rows, *rest)
        )
        for name, value in {
            "reset_peak_memory_stats": None,
            "memory_allocated": 7 * block,
            "synchronize": None,
            "max_memory_allocated": 107 * block,
            "empty_cache": None,
            "mem_get_info": (1000 * block, 2000 * block),
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
        executor._model.attention.kv = None  # it is measured before there is one
        config = EngineConfig(max_num_seqs=12, max_num_batched_tokens=1100, gpu_memory_utilization=0.5)
        measured = (config, executor._model, 512, executor._sampling)
        assert kv_budget.measure_free_bytes(*measured, None) == 400 * block
        assert steps == [[512, 512, 76]]
        # Graphs share the memory of a step of the largest of them; the driver keeps some for each.
        graphs = SimpleNamespace(sizes=[1, 2, 3])
        monkeypatch.setattr(kv_budget, "DRIVER_BYTES", 5 * block)
        assert kv_budget.measure_free_bytes(*measured, graphs) == (400 - 100 - 15) * block
        assert steps[1:] == [[512, 512, 76], [1, 1, 1]]

    @pytest.mark.parametrize(
        ("settings", "source", "blocks"),
        [
            ({"num_blocks": 2**27 - 1}, "num_blocks", 2**27 - 1),
            ({"num_blocks": 10**7}, "num_blocks", 10**7),
            ({"num_blocks": None, "kv_cache_memory_gb": 100 * 12 / 2**20}, "kv_cache_memory_gb 0.00114441", 100),
        ],
    )
    def test_more_than_the_memory_that_is_available_is_refused_with_both_numbers_and_the_option(
        self, make_executor, monkeypatch, settings, source, blocks
    ):
        each = 12 * 2**10 + 4 * 16 + 64  # the KV, and what the core keeps
        monkeypatch.setattr(kv_budget, "available_bytes", lambda: 99 * each)
        with pytest.raises(ValueError, match=f"{source} asks for .* {blocks} blocks, {blocks * each} bytes") as caught:
            make_executor("llama", **settings)
        assert f"{99 * each} bytes of memory are available: num_blocks can be 99 at most" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_too_small_a_budget_is_refused_with_both_numbers(self, make_executor):
        with pytest.raises(ValueError, match=r"kv_cache_memory_gb .* 20 blocks.*max_model_len \(512\).* needs 33"):
            make_executor("llama", num_blocks=None, kv_cache_memory_gb=20 * 12 / 2**20)
        with pytest.raises(ValueError, match=r"num_blocks .* 32 blocks.*max_model_len \(512\).* needs 33"):
            make_executor("llama", num_blocks=32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_half_precision_follows_the_models_own_attention(name, dtype, make_executor, model_folder):
    """Tokens may differ by rounding; log-probabilities of the same text, chunked and decoded, may not by more."""
    executor = make_executor(name, dtype=dtype)
    driver = Driver(executor, executor.num_blocks)
    sequence = driver.sequence(0, range(20, 70), dataclasses.replace(GREEDY, logprobs=0))
    driver.run([sequence, driver.sequence(1, range(9, 39))], 12, budget=16)
    model = AutoModelForCausalLM.from_pretrained(
        model_folder(name), dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    with torch.inference_mode():
        log_probs = model(torch.tensor([sequence.tokens])).logits[0].float().log_softmax(-1)
    expected = log_probs[range(49, 61), sequence.output]
    found = torch.tensor([chosen for chosen, *_ in sequence.logprobs])
    assert float((found - expected).abs().median()) < 0.1
