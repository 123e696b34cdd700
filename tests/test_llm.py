"""`LLM`: prompts in, answers out, in one process. The engine is real; the device says the prompt again."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import headway
from headway import LLM, EngineDeadError, FinishReason, RequestError, SamplingParams, default_model
from headway.engine.engine import Engine
from headway.request import NewRequest
from headway.token_ids import pack
from tests.echo_model import EOS, MAX_MODEL_LEN, TOKENIZER, use_echo_model, wait_until, write_echo_model

LONG = SamplingParams(temperature=0, max_tokens=200)
SMALL = {"max_num_seqs": 4, "max_num_batched_tokens": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_echo_model(tmp_path_factory.mktemp("echo")))


class Gate:
    """Runs before each step of the device; a test may close it, or make it do something else."""

    def __init__(self):
        self.open = threading.Event()
        self.open.set()
        self.action = None

    def __call__(self, batch):
        if self.action is not None:
            self.action(batch)
        assert self.open.wait(60), "the gate was never opened"


@pytest.fixture
def gate(monkeypatch):
    gate = Gate()
    use_echo_model(monkeypatch, before_step=gate)
    yield gate
    gate.open.set()


@pytest.fixture
def llm(folder, gate):
    with LLM(folder, **SMALL) as llm:
        yield llm


def texts(outputs):
    return [output.outputs[0].text for output in outputs]


# Prompts and parameters -------------------------------------------------------------------------------------


def test_outputs_come_in_the_order_of_the_prompts(llm):
    prompts = [f"{'x' * (40 - i)} number {i}" for i in range(30)]
    outputs = llm.generate(prompts, LONG)
    assert texts(outputs) == prompts
    assert [o.prompt for o in outputs] == prompts
    assert [o.prompt_token_ids for o in outputs] == [TOKENIZER(p)["input_ids"] for p in prompts]
    assert all(o.finished and o.outputs[0].finish_reason is FinishReason.STOP for o in outputs)
    assert all(o.outputs[0].token_ids == [*o.prompt_token_ids, EOS] for o in outputs)
    assert len({o.request_id for o in outputs}) == 30


@pytest.mark.parametrize(
    ("prompts", "count"),
    [
        ("hi", 1),
        (TOKENIZER("hi")["input_ids"], 1),
        (tuple(TOKENIZER("hi")["input_ids"]), 1),
        (np.array(TOKENIZER("hi")["input_ids"]), 1),
        ({"prompt": "hi"}, 1),
        ({"prompt_token_ids": TOKENIZER("hi")["input_ids"]}, 1),
        (["hi", TOKENIZER("hi")["input_ids"], {"prompt": "hi"}], 3),
        ([np.array(TOKENIZER("hi")["input_ids"])] * 2, 2),
        ([], 0),
    ],
    ids=str,
)
def test_a_prompt_may_be_text_or_token_ids_alone_or_in_a_list(llm, prompts, count):
    assert texts(llm.generate(prompts, LONG)) == ["hi"] * count


def test_each_prompt_may_have_its_own_parameters(llm):
    outputs = llm.generate(["abcdef", "abcdef"], [SamplingParams(max_tokens=2), SamplingParams(stop=["e"])])
    assert texts(outputs) == ["ab", "abcd"]
    assert [o.outputs[0].finish_reason for o in outputs] == [FinishReason.LENGTH, FinishReason.STOP]
    assert outputs[1].outputs[0].stop_reason == "e"


def test_without_parameters_the_models_own_defaults_hold(folder, gate, tmp_path):
    model = write_echo_model(tmp_path / "warm")
    (model / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.25, "top_k": 7}')
    with LLM(str(model), **SMALL) as llm:
        assert llm.default_sampling_params() == SamplingParams(temperature=0.25, top_k=7)
        assert len(llm.generate("x" * 100)[0].outputs[0].token_ids) == 16


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([{}], "kv_transfer_params has 1 entries for 2 prompts"),
        ([None, "P"], "prompt 1: kv_transfer_params must be a mapping, got str"),
        ([None, {"do_remote_prefill": True, "x": "a" * 20_000}], "prompt 1: kv_transfer_params has 2.* at most 16384"),
    ],
    ids=["too few", "no mapping", "too large"],
)
def test_bad_parameters_of_a_transfer_are_refused_before_anything_starts(llm, params, message):
    with pytest.raises(ValueError, match=message):
        llm.generate(["a", "b"], LONG, kv_transfer_params=params)
    assert llm.snapshot().num_requests_added == 0


def test_an_engine_that_can_lend_nothing_answers_in_full_and_brings_no_parameters(llm):
    (lent,) = llm.generate(["a"], LONG, kv_transfer_params={"do_remote_decode": True})
    assert lent.kv_transfer_params is None and len(lent.outputs[0].token_ids) == 1
    (pulled,) = llm.generate(["a"], LONG, kv_transfer_params={"do_remote_prefill": True})
    assert pulled.outputs[0].token_ids == llm.generate(["a"], LONG)[0].outputs[0].token_ids


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            ["ok", "x" * MAX_MODEL_LEN],
            f"prompt 1: This model's maximum context length is {MAX_MODEL_LEN} tokens.* {MAX_MODEL_LEN} tokens",
        ),
        (["ok", ""], "prompt 1: the prompt is empty"),
        ([[]], "prompt 0: the prompt is empty"),
        ([[1, 2], [1, 99999]], f"prompt 1: .*99999; ids .* from 0 to {len(TOKENIZER) - 1}"),
        ([[1], [-1]], "prompt 1: .*-1"),
        (["ok", 7.5], "prompt 1 must be text or a list of token ids, got float"),
        (["ok", None], "prompt 1 must be .* got NoneType"),
        ([b"ok"], "prompt 0 must be .* got bytes"),
        ([[1, "a"]], "prompt 0 must be .* got list"),
        ([[True]], "prompt 0 must be"),
        (["\ud800"], "prompt 0 is no valid text"),
        ([{"text": "a"}], "prompt 0: .*'prompt_token_ids'.*'text'"),
        ([{"prompt": [1]}], "prompt 0: 'prompt' cannot be of type list"),
        ([{"prompt_token_ids": "a"}], "prompt 0: 'prompt_token_ids' cannot be of type str"),
        (7, "prompts must be text, .* got int"),
    ],
    ids=str,
)
def test_a_bad_prompt_is_refused_by_index_before_anything_starts(llm, prompts, message):
    with pytest.raises(ValueError, match=message):
        llm.generate(prompts, LONG)
    assert llm.snapshot().num_requests_added == 0
    assert texts(llm.generate("still here", LONG)) == ["still here"]


def test_bad_parameters_are_refused_before_anything_starts(llm):
    with pytest.raises(ValueError, match="sampling_params has 2 entries for 3 prompts"):
        llm.generate(["a", "b", "c"], [LONG, LONG])
    with pytest.raises(ValueError, match="priority has 1 entries for 2 prompts"):
        llm.generate(["a", "b"], LONG, priority=[1])
    with pytest.raises(RequestError, match="prompt 1: stop_token_ids contains token id 70000"):
        llm.generate(["a", "b"], [LONG, SamplingParams(stop_token_ids=[70000])])
    assert llm.snapshot().num_requests_added == 0


def test_a_setting_that_does_not_exist_is_named_with_the_one_that_may_be_meant():
    with pytest.raises(TypeError, match="no setting 'max_seqs'; did you mean 'max_num_seqs'"):
        LLM(max_seqs=3)
    with pytest.raises(TypeError, match=r"no setting 'qqq'; there are .*max_model_len"):
        LLM(qqq=3)


def test_a_model_that_is_not_there_is_a_value_error():
    with pytest.raises(ValueError, match="'/no/such/model' does not exist"):
        LLM("/no/such/model")


def test_settings_reach_the_engine(folder, gate):
    with LLM(folder, **SMALL, scheduler="v1", max_model_len=32, block_size=8, device=None, dtype=None) as llm:
        assert (llm.config.scheduler, llm.config.device, llm.config.dtype) == ("v1", "auto", "auto")
        limits = llm._engine.manager.config
        assert (limits.max_num_seqs, limits.max_model_len, limits.block_size) == (4, 32, 8)


# Answers ----------------------------------------------------------------------------------------------------


def test_n_answers_come_as_one_output(llm):
    outputs = llm.generate(["ab", "cd"], SamplingParams(n=3, max_tokens=2, seed=1))
    assert [[(a.index, a.text) for a in o.outputs] for o in outputs] == [
        [(0, "ab"), (1, "ab"), (2, "ab")],
        [(0, "cd"), (1, "cd"), (2, "cd")],
    ]


@pytest.mark.parametrize("scheduler", ["v0", "v1", "v2"])
def test_every_scheduler_serves_it(folder, gate, scheduler):
    with LLM(folder, scheduler=scheduler, **SMALL) as llm:
        assert texts(llm.generate(["one", "two", "three"] * 4, LONG)) == ["one", "two", "three"] * 4


def test_places_for_drafts_that_the_device_does_not_make_change_no_answer(folder, gate, llm):
    prompts, sampling = ["say this again", "and that", "ab"], SamplingParams(temperature=0, max_tokens=9)
    with LLM(folder, num_speculative_tokens=3, **SMALL) as with_places:
        answers = [output.outputs[0].text for output in with_places.generate(prompts, sampling)]
    assert answers == [output.outputs[0].text for output in llm.generate(prompts, sampling)]


def test_a_prefill_engine_gives_one_token(folder, gate):
    with LLM(folder, role="prefill", **SMALL) as llm:
        assert texts(llm.generate(["abc"], LONG)) == ["a"]


def test_equal_prefixes_are_computed_once(llm):
    (first,) = llm.generate("s" * 64, LONG)
    (second,) = llm.generate("s" * 64 + "more", LONG)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 64)


def test_a_cache_that_was_reset_helps_no_request(llm):
    llm.generate("s" * 64, LONG)
    assert llm.reset_prefix_cache() >= 4
    (again,) = llm.generate("s" * 64, LONG)
    assert again.num_cached_tokens == 0


def test_an_audit_finds_all_in_order(llm):
    llm.generate(["a" * 40, "b" * 40], LONG)
    report = llm.audit()
    assert report.ok and report.owners == () and report.num_requests == 0


def test_times_are_in_order(llm):
    metrics = llm.generate("abc", LONG)[0].metrics
    assert 0 < metrics.arrival_time <= metrics.first_token_time <= metrics.last_token_time <= metrics.finished_time


def test_more_prompts_than_the_queue_takes_are_fed_as_room_appears(folder, gate):
    with LLM(folder, max_num_seqs=2, max_num_batched_tokens=64, max_waiting=1) as llm:
        prompts = [f"prompt {i}" for i in range(50)]
        assert texts(llm.generate(prompts, LONG)) == prompts


def test_a_stop_string_ends_the_request_in_the_engine_too(llm):
    llm.generate("a" * 20 + "STOP" + "b" * 80, SamplingParams(stop=["STOP"], max_tokens=200))
    wait_until(lambda: not llm.snapshot().has_work)
    assert llm.snapshot().num_generation_tokens < 100


# Streaming --------------------------------------------------------------------------------------------------


def test_a_stream_gives_the_answer_in_pieces(llm):
    deltas = list(llm.stream("hello 🎉", LONG))
    assert "".join(d.text for d in deltas) == "hello 🎉"
    assert len(deltas) > 3
    assert [d.finish_reason for d in deltas] == [None] * (len(deltas) - 1) + [FinishReason.STOP]


def test_a_bad_prompt_is_refused_when_the_stream_is_made(llm):
    with pytest.raises(ValueError, match="prompt 0: the prompt is empty"):
        llm.stream("", LONG)


def test_closing_a_stream_aborts_its_request(llm):
    stream = llm.stream("x" * 100, LONG)
    next(stream)
    stream.close()
    wait_until(lambda: not llm.snapshot().has_work)
    assert llm.snapshot().num_generation_tokens < 100
    assert texts(llm.generate("next", LONG)) == ["next"]


def test_a_second_call_while_one_answers_is_refused(llm):
    stream = llm.stream("abc", LONG)
    next(stream)
    with pytest.raises(RuntimeError, match="one call at a time"):
        llm.generate("abc", LONG)
    assert "".join(d.text for d in stream) == "bc", "and the first goes on"


# Chat -------------------------------------------------------------------------------------------------------


def test_chat_writes_conversations_by_the_models_template(llm):
    conversation = [{"role": "user", "content": "hi"}]
    written = "<|user|>hi<|assistant|>"
    (output,) = llm.chat(conversation, LONG)
    assert (output.prompt, output.outputs[0].text) == (written, written)
    assert texts(llm.chat([conversation, conversation], LONG)) == [written] * 2
    assert "".join(d.text for d in llm.stream_chat(conversation, LONG)) == written
    assert texts(llm.chat(conversation, LONG, add_generation_prompt=False)) == ["<|user|>hi"]
    assert texts(llm.chat(conversation, LONG, chat_template="{{ mood }}", chat_template_kwargs={"mood": "good"})) == [
        "good"
    ]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ([[]], "at least one message"),
        ([{"content": "x"}], r"the field 'messages\[0\].role' is required"),
        ([{"role": "user", "content": "x"}, "y"], r"messages\[1\] must be a mapping with a role"),
        ([[{"role": "user", "content": "x"}], [{"role": "user"}]], "conversation 1: a message of role 'user' needs"),
    ],
    ids=str,
)
def test_messages_that_are_none_are_refused(llm, messages, message):
    with pytest.raises(ValueError, match=message):
        llm.chat(messages, LONG) if messages else llm.render_chat(messages)


def test_a_template_that_refuses_is_a_value_error(llm):
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="roles must alternate"):
        llm.chat([{"role": "user", "content": "x"}], LONG, chat_template=template)


def test_a_model_without_a_chat_template_says_so(gate, tmp_path):
    with LLM(str(write_echo_model(tmp_path, chat_template=False)), **SMALL) as llm:
        with pytest.raises(ValueError, match="no chat template"):
            llm.chat([{"role": "user", "content": "x"}])
        assert texts(llm.chat([{"role": "user", "content": "x"}], LONG, chat_template="{{ 'T' }}")) == ["T"]


# When things end early --------------------------------------------------------------------------------------


def test_a_failing_step_ends_its_requests_and_not_the_others(llm, gate):
    def fail_once(batch):
        gate.action = None
        raise RuntimeError("bit flip")

    gate.action = fail_once
    outputs = llm.generate(["a" * 60, "b" * 60, "c" * 60], LONG)  # one prompt fills a step
    reasons = [o.outputs[0].finish_reason for o in outputs]
    assert FinishReason.ERROR in reasons
    assert FinishReason.STOP in reasons
    failed = outputs[reasons.index(FinishReason.ERROR)].outputs[0]
    assert "bit flip" in failed.error


def test_an_engine_that_dies_raises_with_its_reason(folder, gate):
    with LLM(folder, **SMALL, step_timeout=0.1) as llm:
        gate.open.clear()
        with pytest.raises(EngineDeadError, match="did not answer within step_timeout"):
            llm.generate(["a", "b"], LONG)
        with pytest.raises(EngineDeadError):
            llm.generate("c", LONG)


def test_closing_a_stream_whose_engine_has_stopped_is_no_error(llm):
    stream = llm.stream("x" * 100, LONG)
    next(stream)
    llm.shutdown()
    stream.close()


def test_an_engine_that_stops_before_it_hears_of_a_stop_string_is_an_error(llm, monkeypatch):
    def over(uids):
        raise EngineDeadError("it is over")

    monkeypatch.setattr(llm._engine.manager, "finish", over)
    with pytest.raises(EngineDeadError, match="it is over"):
        llm.generate("abcdef", SamplingParams(max_tokens=200, stop=["c"]))


def test_an_interrupt_aborts_what_was_handed_in(llm, gate):
    gate.action = lambda batch: batch.step_id == 5 and signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["x" * 120] * 8, LONG)
    gate.action = None
    wait_until(lambda: not llm.snapshot().has_work)
    assert texts(llm.generate("again", LONG)) == ["again"]


def test_after_shutdown_it_says_so_and_a_second_shutdown_does_nothing(llm):
    llm.shutdown()
    llm.shutdown()
    with pytest.raises(EngineDeadError, match="shutting down"):
        llm.generate("x", LONG)


def test_an_llm_that_goes_out_of_use_stops_its_engine(folder, gate):
    llm = LLM(folder, **SMALL)
    llm.generate("x", LONG)
    engine, gone = llm._engine, weakref.ref(llm)
    del llm
    gc.collect()
    assert gone() is None
    with pytest.raises(EngineDeadError):
        engine.add(NewRequest(request_id="r", prompt=pack([1], 9), sampling=LONG))


def test_a_program_that_forgets_to_shut_down_exits(folder):
    program = f"""
import pytest
from tests.echo_model import use_echo_model
from headway import default_model, LLM, SamplingParams
use_echo_model(pytest.MonkeyPatch())
llm = LLM({folder!r}, max_num_seqs=4)
print(llm.generate("bye", SamplingParams(max_tokens=9))[0].outputs[0].text)
stream = llm.stream("x" * 100, SamplingParams(max_tokens=100))
next(stream)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")


# Progress ---------------------------------------------------------------------------------------------------


def test_progress_is_shown_on_terminals_only(llm, monkeypatch, capsys):
    llm.generate(["a", "b"], LONG)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    llm.generate(["a", "b"], LONG, use_tqdm=False)
    assert capsys.readouterr() == ("", "")
    llm.generate(["a", "b"], LONG)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2/2" in shown.err


# The model that comes with Headway --------------------------------------------------------------------------


def test_the_embedded_model_says_what_generate_says_on_its_held_out_problems_and_is_right():
    problems = default_model.held_out()[::5]
    prompts = [problem.prompt for problem in problems]
    greedy = SamplingParams(temperature=0, max_tokens=32, logprobs=2)
    with LLM(kv_cache_memory_gb=0.05, max_num_seqs=32, max_num_batched_tokens=256) as llm:
        outputs = llm.generate(prompts, greedy)
        question = [{"role": "user", "content": prompts[0]}]
        streamed = "".join(delta.text for delta in llm.stream_chat(question, SamplingParams(temperature=0)))
        assert streamed == texts(llm.chat(question, SamplingParams(temperature=0)))[0]
    assert [output.outputs[0].token_ids for output in outputs] == generated(prompts, max_new_tokens=32)
    right = sum(text == problem.answer for text, problem in zip(texts(outputs), problems, strict=True))
    assert right >= 0.95 * len(problems)
    first = outputs[0].outputs[0]
    for token, position in zip(first.token_ids, first.logprobs, strict=True):
        assert position[token].rank == 1, "greedy takes the likeliest token"
        assert len(position) == 2


def generated(prompts: list[str], max_new_tokens: int) -> list[list[int]]:
    """Token ids by transformers' own generate, the end token included."""
    tokenizer = AutoTokenizer.from_pretrained(default_model.PATH, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(default_model.PATH, dtype=torch.float32)
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    answers = model.generate(**inputs, max_new_tokens=max_new_tokens)[:, inputs.input_ids.shape[1] :].tolist()
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    for answer in answers:
        while answer[-1] == pad:
            answer.pop()
        assert end not in answer[:-1]
    return answers


# The package ------------------------------------------------------------------------------------------------


def test_importing_the_package_brings_neither_torch_nor_transformers():
    program = """
import sys
import headway
headway.SamplingParams, headway.LLM, headway.EngineConfig
print({"torch", "transformers"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"


def test_every_public_name_is_there():
    for name in headway.__all__:
        assert getattr(headway, name) is not None
    assert set(headway.__all__) == set(dir(headway))
    with pytest.raises(AttributeError, match="nothing"):
        headway.nothing  # noqa: B018
    assert issubclass(headway.RequestError, ValueError)
    assert Engine.from_config
