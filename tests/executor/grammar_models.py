"""A model of random weights that writes bytes, and a compiler of grammars for it without a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from headway.engine.grammar_process import Job, Vocabulary, compile_form, token_infos
from headway.executor.grammar import Grammar, JsonTokens
from headway.structured_outputs import StructuredOutputs
from tests.tiny_tokenizer import CHAT_TEMPLATE, byte_tokenizer

TOKENIZER = byte_tokenizer(CHAT_TEMPLATE)
EOS: int = TOKENIZER.eos_token_id
PADDED = len(TOKENIZER) + 26  # the model has logits for more tokens than the tokenizer has


def byte_model(folder: Path) -> Path:
    """Weights large enough that a token depends on all tokens before it."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=PADDED,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=EOS,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


VOCABULARY = Vocabulary(
    tokenizer="", trust_remote_code=False, size=PADDED, stop_token_ids=(EOS,), seconds=10.0, memory=1 << 30
)


@cache
def infos() -> dict[bool, Any]:
    return token_infos(TOKENIZER, VOCABULARY)


@cache
def grammar_of(form: StructuredOutputs) -> Grammar:
    """The grammar of a form. Raises what the compiler raises."""
    from xgrammar import GrammarCompiler

    tagged = form.kind == "structural_tag"
    compiler = GrammarCompiler(infos()[tagged], max_threads=1, cache_enabled=False)
    compiled = compile_form(compiler, Job(form.kind, form.text, form.disable_any_whitespace, tagged))
    of_json = JsonTokens.of(infos()[tagged].decoded_vocab) if form.kind in ("json", "json_object") else None
    return Grammar(compiled, of_json)


class HereCompiler:
    """Compiles in this process."""

    def compile(self, form: StructuredOutputs) -> Grammar:
        return grammar_of(form)

    def close(self) -> None:
        pass


def text_of(tokens: Sequence[int]) -> str:
    """What an answer says."""
    return str(TOKENIZER.decode([token for token in tokens if token < len(TOKENIZER)], skip_special_tokens=True))
