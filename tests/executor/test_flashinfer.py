"""Attention by FlashInfer, and decodes from graphs: through our code, on stand-ins for FlashInfer and CUDA graphs."""

from __future__ import annotations

import dataclasses
import gc
import sys
import weakref

import numpy as np
import pytest
import torch

from headway.accuracy import tiny_models
from headway.executor import decode_graphs, flashinfer_attention
from headway.executor.attention_plan import AttentionCall
from headway.executor.flashinfer_attention import PagePlan, why_not
from headway.executor.kv_tensors import LayerShape
from headway.executor.transfer import HostArrays
from headway.executor.transformers_executor import TransformersExecutor
from headway.sampling import SamplingParams
from tests.executor import fake_flashinfer
from tests.executor.conftest import NUM_OUTPUT
from tests.executor.driver import GREEDY, Driver
from tests.executor.recorded_graphs import NoHostWaits, RecordedGraphs
from tests.executor.test_attention import make_batch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def graphs(as_on_cuda) -> RecordedGraphs:
    """What captured the graphs of executors made from here on."""
    return as_on_cuda


@pytest.fixture
def make(make_executor):
    """Makes executors and their drivers, with attention by FlashInfer."""

    def make(name: str = "llama", **fields) -> Driver:
        executor = make_executor(name, **{"attention_backend": "flashinfer", **fields})
        return Driver(executor, executor.num_blocks, fields.get("block_size", 16))

    return make


def serve(driver, expected, num_output=NUM_OUTPUT, **how) -> list[list[int]]:
    sequences = [driver.sequence(slot, prompt) for slot, prompt in enumerate(expected.prompts)]
    driver.run(sequences, num_output, **how)
    return [sequence.output for sequence in sequences]


class TestTokens:
    @pytest.mark.parametrize(("budget", "enforce_eager"), [(17, True), (2048, False)])
    @pytest.mark.parametrize("name", tiny_models.SUPPORTED)
    def test_greedy_tokens_are_those_of_generate(self, name, budget, enforce_eager, make, reference, graphs):
        driver = make(name, enforce_eager=enforce_eager)
        assert driver.executor._backend.name == "flashinfer"
        assert serve(driver, reference(name), budget=budget) == reference(name).outputs
        assert (graphs.replays > 0) != enforce_eager

    @pytest.mark.parametrize("block_size", [1, 8, 64])
    def test_block_sizes_other_than_16(self, block_size, make, reference):
        driver = make("gemma2", block_size=block_size, num_blocks=None)
        assert serve(driver, reference("gemma2"), 5, budget=40) == [o[:5] for o in reference("gemma2").outputs]

    def test_half_precision_logprobs_are_near_those_of_torch(self, make, make_executor, reference):
        def logprobs(driver: Driver) -> list[float]:
            sequence = driver.sequence(0, range(20, 70), dataclasses.replace(GREEDY, logprobs=0))
            driver.run([sequence, driver.sequence(1, range(9, 39))], 12, budget=16)
            return [chosen for chosen, *_ in sequence.logprobs]

        plain = make_executor("gpt_oss", dtype="bfloat16", attention_backend="torch")
        found = np.array(logprobs(make("gpt_oss", dtype="bfloat16")))
        expected = np.array(logprobs(Driver(plain, plain.num_blocks)))
        assert np.median(np.abs(found - expected)) < 0.1


class TestGraphs:
    def test_one_is_captured_per_size(self, make, graphs):
        driver = make(max_num_seqs=11)
        assert driver.executor._graphs.sizes == [1, 2, 4, 8, 11]
        assert (graphs.captured, graphs.replays) == (5, 0)
        assert decode_graphs.graph_sizes(1) == [1]
        assert decode_graphs.graph_sizes(40) == [1, 2, 4, 8, 16, 24, 32, 40]

    def test_steps_of_decodes_run_from_them_and_others_do_not(self, make, graphs):
        driver = make()
        first, second = driver.sequence(0, [5, 6, 7]), driver.sequence(1, range(2, 42))
        driver.step([(first, 3)])
        driver.step([(first, 1), (second, 30)])
        assert graphs.replays == 0
        driver.step([(first, 1)])
        driver.step([(first, 1), (second, 10)])
        assert graphs.replays == 1
        driver.step([(first, 1), (second, 1)])
        assert graphs.replays == 2

    def test_tokens_do_not_depend_on_how_many_rows_come_and_go(self, make, reference, graphs):
        """A larger step leaves its inputs in the static tensors, and they are what pads the next."""
        driver, expected = make(max_num_seqs=12), reference("llama")
        sequences = [driver.sequence(slot, prompt) for slot, prompt in enumerate(expected.prompts)]
        for sequence in sequences:
            driver.step([(sequence, len(sequence.tokens))])
        for count in (10, 3, 7, 1, 5, 4, 2, 9, 6, 8):
            driver.step([(sequence, 1) for sequence in sequences[:count]])
            driver.step([(sequence, 1) for sequence in sequences[10 - count :]])
        assert graphs.replays == 20
        for sequence, output in zip(sequences, expected.outputs, strict=True):
            assert len(sequence.output) > 5 and sequence.output == output[: len(sequence.output)]

    def test_padding_touches_the_padding_block_alone(self, make):
        driver = make(max_num_seqs=8)
        sequences = [driver.sequence(slot, range(5, 15 + slot)) for slot in (0, 3, 7)]
        driver.step([(sequence, len(sequence.tokens)) for sequence in sequences])
        caches = [cache for layer in driver.executor._model.attention.kv.layers.values() for cache in layer]
        before = [cache.clone() for cache in caches]
        last_tokens = driver.executor._last_tokens.clone()
        driver.step([(sequence, 1) for sequence in sequences])
        for cache, was in zip(caches, before, strict=True):
            changed = (cache != was).flatten(2).any(2).nonzero()
            written = {(s.blocks[(s.computed - 1) // 16], (s.computed - 1) % 16) for s in sequences}
            assert {tuple(place) for place in changed.tolist()} - {(0, 0)} == written
        changed = (driver.executor._last_tokens != last_tokens).nonzero().flatten().tolist()
        assert set(changed) <= {0, 3, 7}
        assert not driver.executor._tables[8].any()

    def test_a_reused_slot_and_a_preemption(self, make, reference):
        driver, expected = make("qwen3"), reference("qwen3")
        for slot in (2, 2, 0):
            sequence = driver.sequence(slot, expected.prompts[-1])
            driver.run([sequence], 8, release=False)
            driver.preempt(sequence, slot=7)
            driver.run([driver.sequence(1, expected.prompts[3]), sequence], NUM_OUTPUT, budget=17)
            assert sequence.output == expected.outputs[-1]

    def test_a_model_that_cannot_be_captured_runs_without(self, make, reference, monkeypatch, caplog):
        plain = decode_graphs.DecodeGraphs.capture

        def capture(self, *args):
            forward = self._model.module.forward

            def waits(*args, **kwargs):
                answer = forward(*args, **kwargs)
                answer.logits.sum().item()
                return answer

            monkeypatch.setattr(self._model.module, "forward", waits)
            plain(self, *args)

        monkeypatch.setattr(decode_graphs.DecodeGraphs, "capture", capture)
        driver = make()
        assert driver.executor._graphs is None
        assert "without CUDA graphs" in caplog.text and "aten.item.default makes the host wait" in caplog.text
        assert serve(driver, reference("llama"), 5) == [output[:5] for output in reference("llama").outputs]

    def test_a_shutdown_frees_model_graphs_and_cache(self, make):
        executor = make().executor
        held = [
            weakref.ref(executor._model.module),
            weakref.ref(executor._graphs),
            weakref.ref(executor._model.attention.kv),
        ]
        executor.shutdown()
        gc.collect()
        assert [ref() for ref in held] == [None] * 3

    def test_a_failing_replay_fails_its_step_only(self, make, reference, monkeypatch):
        driver, expected = make(), reference("llama")
        sequence = driver.sequence(0, expected.prompts[5])
        driver.step([(sequence, len(sequence.tokens))])
        replays = driver.executor._graphs._replays

        def fail():
            raise RuntimeError("an illegal memory access was encountered")

        with monkeypatch.context() as patch:
            patch.setitem(replays, 1, fail)
            result = driver.step([(sequence, 1)])
        assert result.error == "RuntimeError: an illegal memory access was encountered"
        sequence.computed -= 1
        driver.run([sequence], NUM_OUTPUT)
        assert sequence.output == expected.outputs[5]


class TestChoice:
    def call(self, key_dim=16, value_dim=16) -> AttentionCall:
        shape = LayerShape(key_heads=2, key_dim=key_dim, value_heads=2, value_dim=value_dim)
        return AttentionCall(3, shape, query_heads=4, window=None, scaling=0.25, softcap=None, has_sinks=False)

    def test_what_it_cannot_do_is_named(self, monkeypatch):
        assert why_not([self.call()], CPU, torch.float32) is None
        assert why_not([self.call()], torch.device("meta"), torch.float32) == "it needs CUDA, and this is meta"
        assert "float16 or bfloat16, and this is float64" in why_not([self.call()], CPU, torch.float64)
        for dims in ((8, 8), (16, 24)):
            why = why_not([self.call(), self.call(*dims)], CPU, torch.float32)
            assert f"layer 3 has {dims[0]} numbers to a key and {dims[1]} to a value" in why
        monkeypatch.setitem(sys.modules, "flashinfer", None)
        assert "not installed (pip install 'headway[cuda]')" in why_not([self.call()], CPU, torch.float32)

    def test_auto_takes_it_where_it_can_and_torch_can_be_asked_for(self, make_executor):
        assert make_executor()._backend.name == "flashinfer"
        assert make_executor(attention_backend="torch")._backend.name == "torch"
        assert make_executor(dtype="float16", attention_backend="auto")._backend.name == "torch"

    def test_asked_for_where_it_cannot_be_had_it_is_refused(self, make_executor):
        with pytest.raises(ValueError, match=r"attention_backend flashinfer cannot be had: it needs .*this is float16"):
            make_executor(attention_backend="flashinfer", dtype="float16")

    def test_graphs_are_for_it_alone(self, make_executor, graphs):
        assert make_executor(attention_backend="torch")._graphs is None
        assert graphs.captured == 0


def spoil(monkeypatch, wrapper: str, **changes) -> None:
    """Make the library mean something else by its arguments."""
    real = getattr(fake_flashinfer, wrapper)

    class Spoilt(real):
        def plan(self, *args, **kwargs):
            super().plan(
                *args, **{name: changes.get(name, lambda value: value)(value) for name, value in kwargs.items()}
            )

        def run(self, *args, **kwargs):
            result = super().run(*args, **kwargs)
            return (result[0], changes["lse"](result[1])) if "lse" in changes and kwargs.get("return_lse") else result

    monkeypatch.setattr(fake_flashinfer, wrapper, Spoilt)


DECODE, PREFILL = "BatchDecodeWithPagedKVCacheWrapper", "BatchPrefillWithPagedKVCacheWrapper"


class TestProof:
    @pytest.mark.parametrize("wrapper", [DECODE, PREFILL])
    @pytest.mark.parametrize(
        "name, changes",
        [
            ("mistral", {"window_left": lambda left: left + 1}),
            ("mistral", {"window_left": lambda left: left - 1}),
            ("gemma2", {"logits_soft_cap": lambda cap: cap * 1.5}),
            ("llama", {"sm_scale": lambda scale: scale * 1.2}),
            ("gpt_oss", {"lse": lambda lse: lse * np.log(2)}),
        ],
    )
    def test_a_library_that_means_something_else_is_refused(self, wrapper, name, changes, make_executor, monkeypatch):
        spoil(monkeypatch, wrapper, **changes)
        with pytest.raises(ValueError, match=r"flashinfer cannot be had: for decodes.* in layer \d is off by"):
            make_executor(name, attention_backend="flashinfer")

    def test_chunks_that_see_too_much_are_noticed(self, make_executor, monkeypatch):
        spoil(monkeypatch, PREFILL, causal=lambda causal: False)
        with pytest.raises(ValueError, match="for decodes and chunks"):
            make_executor(attention_backend="flashinfer")

    def test_auto_goes_on_without_a_library_whose_kernels_fail(self, make_executor, monkeypatch):
        def no_compiler(*args, **kwargs):
            raise RuntimeError("nvcc: not found")

        monkeypatch.setattr(fake_flashinfer._Wrapper, "_attend", no_compiler)
        executor = make_executor(attention_backend="auto")
        assert executor._backend.name != "flashinfer" and executor._model.attention.flashinfer is None
        with pytest.raises(ValueError, match=r"its kernels fail: .*nvcc: not found"):
            make_executor(attention_backend="flashinfer")


def test_the_workspace_holds_the_parts_of_long_rows():
    kind = flashinfer_attention._Kind(32, 8, 128, None, None, 0.1)
    numbers = 32 * 129 * 4
    assert flashinfer_attention._workspace_bytes(kind, 256, 132) == 512 * 16 * numbers  # decodes from a graph
    assert flashinfer_attention._workspace_bytes(kind, 4, 132) == 33 * 128 * numbers  # a long chunk
    alone = dataclasses.replace(kind, key_heads=1)
    assert flashinfer_attention._workspace_bytes(alone, 256, 132) == 264 * 128 * numbers


class TestPagePlan:
    def test_rows_name_their_pages_and_how_full_the_last_is(self):
        batch = make_batch([0, 3, 4], [(2, 6), (0, 8)])  # slots 4 to 0, four tokens a block
        tables = np.arange(15, dtype=np.int32).reshape(5, 3) + 1
        arrays = HostArrays()
        plan = PagePlan(batch, tables, 4, arrays)
        arrays.send(CPU)
        assert plan.query_starts.tolist() == [0, 1, 2, 3, 9, 17]
        assert plan.page_starts.tolist() == [0, 1, 2, 4, 6, 8]
        assert plan.pages.tensor.tolist() == [13, 10, 7, 8, 4, 5, 1, 2]
        assert plan.last_lengths.tolist() == [1, 4, 1, 4, 4]
        assert plan.places.tensor.tolist()[:3] == [13 * 4, 10 * 4 + 3, 8 * 4]
        assert not plan.decodes_only
        assert {a.dtype for a in (plan.page_starts, plan.last_lengths, plan.query_starts)} == {np.dtype(np.int32)}


class TestHostWaits:
    """What a step puts on the device must not depend on anything that is there."""

    @pytest.mark.parametrize("fields", [{}, {"enforce_eager": True}, {"attention_backend": "torch"}])
    def test_no_step_makes_the_host_wait(self, fields, make, monkeypatch):
        monkeypatch.setattr("headway.executor.sampler._host_may_look", lambda device: False)
        monkeypatch.setattr("headway.executor.sampler._TOP_P_FIRST_TRY", 8)
        monkeypatch.setattr(fake_flashinfer._Wrapper, "_note", unwatched(fake_flashinfer._Wrapper._note))
        monkeypatch.setattr(fake_flashinfer, "int", unwatched(int), raising=False)
        enqueue, steps = TransformersExecutor._enqueue, []

        def watched(self, batch):
            steps.append(batch)
            with NoHostWaits():
                return enqueue(self, batch)

        monkeypatch.setattr(TransformersExecutor, "_enqueue", watched)
        driver = make(**fields)
        ways = (
            GREEDY,
            SamplingParams(temperature=0.8, seed=1, max_tokens=99),
            SamplingParams(temperature=0.8, top_p=0.9, seed=1, max_tokens=99),
            SamplingParams(temperature=0.8, top_p=0.9, top_k=5, min_p=0.01, logprobs=3, max_tokens=99),
            dataclasses.replace(GREEDY, repetition_penalty=1.3, frequency_penalty=0.2, logprobs=0),
            SamplingParams(temperature=0.5, min_tokens=4, logit_bias={7: 5.0}, presence_penalty=0.5, max_tokens=99),
        )
        sequences = [
            driver.sequence(slot, range(5, 15 + 7 * slot), way, stop_token_ids=(7,)) for slot, way in enumerate(ways)
        ]
        driver.run(sequences, 6, budget=24)
        assert len(steps) > 10


def unwatched(function):
    """FlashInfer reads its plans on the host, before they are copied; the stand-in looks at tensors for that."""

    def call(*args):
        with torch.utils._python_dispatch._disable_current_modes():
            return function(*args)

    return call
