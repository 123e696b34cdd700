"""A tiny chat model that knows a few conversations by heart: it calls tools in Hermes' form, thinks aloud, says JSON.

The chat template shows the model the last question, what followed it, and whether there are tools: no instructions of a
client library and no descriptions of tools. So the prompt of a question is the same whatever library asks it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
CONTEXT = 512
STEPS = 600
ENOUGH = 0.001  # of the mean loss: every token is then far ahead of the second best

CHAT_TEMPLATE = """\
{%- set last = namespace(question=0) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set last.question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if tools -%}{{ '<|tools|>' }}{%- endif -%}
{%- for message in messages[last.question:] -%}
  {{- '<|' + message.role + '|>' -}}
  {%- if message.tool_calls -%}
    {%- for call in message.tool_calls -%}
      {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
      {{- call.function.arguments | tojson -}}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
  {%- else -%}
    {{- message.content -}}
  {%- endif -%}
  {{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""
MARKS = ("<|end|>", "<|tools|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")


def _call(city: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _calls(*cities: str) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [_call(city) for city in cities]}


def _results(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "tool", "content": text} for text in texts]


PARIS, BOTH = _user("What is the weather in Paris?"), _user("What is the weather in Paris and in Rome?")
SUNNY, RAIN = "sunny, 21 degrees", "rain, 12 degrees"
PARIS_ROUND = [PARIS, _calls("Paris"), *_results(SUNNY), _says("It is sunny in Paris: 21 degrees.")]
BOTH_ROUND = [
    BOTH,
    _calls("Paris", "Rome"),
    *_results(SUNNY, RAIN),
    _says("It is sunny in Paris, and it rains in Rome."),
]
HELLO = [_user("Hello"), _says("Hello! Ask me about the weather.")]
THOUGHT = [_user("Which is larger, 9 or 11?"), _says("<think>11 is 9 and 2 more.</think>11 is larger.")]
OBJECT = [_user("Give me the weather in Paris as JSON."), _says('{"city": "Paris", "degrees": 21}')]
UNKNOWN = [PARIS, _says("I cannot see the weather.")]
# (conversation, whether there are tools). The model learns every answer in it.
CONVERSATIONS = [(PARIS_ROUND, True), (BOTH_ROUND, True), (UNKNOWN, False)]
CONVERSATIONS += [(talk, tools) for talk in (HELLO, THOUGHT, OBJECT) for tools in (False, True)]


def made(cache: Path) -> Path:
    """The folder of the checkpoint, in `cache`. Trains the model if the folder does not exist: half a minute."""
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"talker-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        tokenizer = _tokenizer()
        model = _trained(tokenizer)
        half = Path(tempfile.mkdtemp(prefix="talker-half-", dir=cache))
        tokenizer.save_pretrained(half, save_jinja_files=False)
        model.save_pretrained(half)
        half.rename(folder)  # at once: a folder that has the name is whole
    return folder


def _tokenizer() -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=384, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([json.dumps(talk) for talk, _ in CONVERSATIONS], trainer)
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _lessons(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt, answer) of every answer, in token ids."""
    for talk, with_tools in CONVERSATIONS:
        tools = [{"type": "function"}] if with_tools else None
        for place, message in enumerate(talk):
            if message["role"] == "assistant":
                before = tokenizer.apply_chat_template(
                    talk[:place], tools=tools, add_generation_prompt=True, tokenize=False
                )
                after = tokenizer.apply_chat_template(talk[: place + 1], tools=tools, tokenize=False)
                answer = after.removeprefix(before)
                yield tokenizer.encode(before), tokenizer.encode(answer)


def _trained(tokenizer: PreTrainedTokenizerBase) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        inputs, targets = _batch(list(_lessons(tokenizer)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(STEPS):
            logits = model(input_ids=inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
            if loss.item() < ENOUGH:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        else:
            raise RuntimeError(f"the talker did not learn its conversations in {STEPS} steps: loss {loss.item():g}")
    model.generation_config.do_sample = True
    model.generation_config.top_k = 1  # the default of a request: no client of the tests asks for another
    return model.eval()


def _batch(lessons: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets, int64 [lessons, longest]; padding stands at the end, where it is not attended to."""
    import torch

    longest = max(len(prompt) + len(answer) for prompt, answer in lessons) - 1
    inputs = torch.zeros(len(lessons), longest, dtype=torch.int64)
    targets = torch.full((len(lessons), longest), IGNORED)
    for row, (prompt, answer) in enumerate(lessons):
        ids = prompt + answer
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, len(prompt) - 1 : len(ids) - 1] = torch.tensor(answer)
    return inputs, targets


if __name__ == "__main__":
    print(made(Path(sys.argv[1])))
