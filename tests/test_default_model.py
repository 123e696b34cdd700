"""The embedded model: its folder loads as any Hugging Face folder does, and it answers what it never saw."""

import random
from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from headway.default_model import PATH, Problem, held_out
from tools import tasks

TOKENIZER = AutoTokenizer.from_pretrained(PATH)
QUESTION = [{"role": "user", "content": "12+34="}]


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(PATH, dtype=torch.float32).eval()


def test_folder_holds_a_small_llama_and_its_card(model):
    config = model.config
    assert model.__class__.__name__ == "LlamaForCausalLM"
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.head_dim == 64, "vLLM's attention on a CPU and FlashInfer take no smaller heads"
    assert config.tie_word_embeddings
    assert config.max_position_embeddings == 2048
    assert (PATH / "README.md").read_text().startswith("---\nlicense: apache-2.0")
    assert sum(file.stat().st_size for file in PATH.iterdir() if file.is_file()) <= 4 * 2**20


def test_generation_is_greedy_and_ends_at_the_tokenizers_end_token(model):
    assert not model.generation_config.do_sample
    assert model.generation_config.eos_token_id == TOKENIZER.eos_token_id
    assert len({TOKENIZER.eos_token_id, TOKENIZER.bos_token_id, TOKENIZER.pad_token_id}) == 3


@torch.no_grad()
def test_every_position_up_to_the_limit_can_be_used(model):
    ids = torch.randint(len(TOKENIZER), (1, 2048), generator=torch.Generator().manual_seed(0))
    assert model(ids).logits.isfinite().all()


@given(st.text())
def test_any_text_survives_the_tokenizer(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text
    assert max(ids, default=0) < len(TOKENIZER)


def test_a_completion_begins_with_bos_and_digits_stand_alone():
    ids = TOKENIZER("12+34=").input_ids
    assert TOKENIZER.convert_ids_to_tokens(ids) == ["<|bos|>", *"12+34="]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "12+34="


def test_a_chat_is_written_as_it_was_in_training():
    ids = TOKENIZER.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    assert TOKENIZER.convert_ids_to_tokens(ids) == ["<|bos|>", "<|user|>", *"12+34=", "<|assistant|>"]
    trained_on = tasks.build_tokenizer()
    assert TOKENIZER.decode(ids) == tasks.chat_text(trained_on, [], "12+34=")
    assert TOKENIZER.chat_template == trained_on.chat_template


def test_a_chat_keeps_system_and_earlier_turns():
    turns = [{"role": "system", "content": "Be exact."}, *QUESTION, {"role": "assistant", "content": "46"}]
    text = TOKENIZER.apply_chat_template([*turns, *QUESTION], add_generation_prompt=True, tokenize=False)
    assert text == ("<|bos|><|system|>Be exact.<|user|>12+34=<|assistant|>46<|end|><|user|>12+34=<|assistant|>")


def test_a_chat_shows_tools_and_their_calls_and_results():
    parameters = {"type": "object", "properties": {"city": {}, "unit": {}}}
    tools = [
        {"type": "function", "function": {"name": "weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "now"}},
    ]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    turns = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "1"},
    ]
    text = TOKENIZER.apply_chat_template(turns, tools=tools, add_generation_prompt=True, tokenize=False)
    assert text == (
        '<|bos|><|system|>Tools, called as <tool_call>{"name": ..., "arguments": {...}}</tool_call>: '
        "weather(city, unit) now()"
        '<|user|>12+34=<|assistant|><tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call><|end|>'
        "<|user|><tool_response>7</tool_response><|assistant|>"
    )


def test_held_out_problems_cover_the_tasks_evenly_and_are_distinct():
    problems = held_out()
    assert set(Counter(problem.task for problem in problems).values()) == {len(problems) // len(tasks.TASKS)}
    assert {problem.task for problem in problems} == set(tasks.TASKS)
    assert len({problem.prompt for problem in problems}) == len(problems) >= 300
    assert max(len(TOKENIZER(problem.prompt).input_ids) for problem in problems) >= 200


def test_training_never_draws_a_held_out_prompt():
    rng = random.Random(0)
    drawn = {problem.prompt for task in tasks.TASKS for problem in islice(tasks.training_problems(task, rng), 2000)}
    families = islice(tasks.training_families(rng, lambda: tasks.MAX_PAIRS, queries=8), 300)
    drawn |= {problem.prompt for family in families for problem in family}
    kept_out = [problem.prompt for problem in held_out()]
    assert all(tasks.is_held_out(prompt) for prompt in kept_out)
    assert not any(tasks.is_held_out(prompt) for prompt in drawn)
    assert drawn.isdisjoint(kept_out)


@pytest.mark.parametrize(
    ("task", "prompt", "answer"),
    [
        ("arithmetic", "25-7=", "18"),
        ("recall", "k9 the Q1 ? k", "k9"),
        ("sort", "sort cab=", "abc"),
        ("reverse", "reverse 123=", "321"),
        ("copy", "copy hBe3d=", "hBe3d"),
    ],
)
@pytest.mark.parametrize("format", ["plain", "chat", "conversation"])
def test_an_example_of_every_task_is_answered_in_every_format(model, task, prompt, answer, format):
    text = tasks.framings(TOKENIZER, Problem(task, prompt, answer))[format]
    assert replies(model, [text]) == [answer]


def test_held_out_problems_are_answered_right(model):
    wrong = []
    for format, problems in (("plain", held_out()[::2]), ("chat", held_out()[1::2])):
        assert {problem.task for problem in problems} == set(tasks.TASKS)
        said = replies(model, [tasks.framings(TOKENIZER, problem)[format] for problem in problems])
        wrong += [(format, problem, reply) for problem, reply in zip(problems, said) if reply != problem.answer]
    assert len(wrong) <= 0.01 * len(held_out()), wrong


def test_the_card_holds_every_task_to_98_percent_in_every_format():
    lines = [line.split("|")[1:5] for line in (PATH / "README.md").read_text().splitlines() if "| 80 |" in line]
    scores = {(task.strip(), format.strip()): int(right) / int(total) for task, format, right, total in lines}
    assert set(scores) == {(task, format) for task in tasks.TASKS for format in ("plain", "chat", "conversation")}
    assert min(scores.values()) >= 0.98


def replies(model, texts: list[str]) -> list[str]:
    """What the model says after each text; a reply that does not end by itself is marked as unended."""
    inputs = TOKENIZER(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=32)[:, inputs.input_ids.shape[1] :]
    said = [text.replace("<|pad|>", "") for text in TOKENIZER.batch_decode(output)]
    return [text.removesuffix("<|end|>") if text.endswith("<|end|>") else f"{text} (unended)" for text in said]
