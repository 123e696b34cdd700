"""`tiny-random:FAMILY`: a tiny model with random weights, made on this machine, for trying options and load.

A model of a family takes the same way through the engine as the large models of that family. What it answers means
nothing. The weights depend on the family alone, so that all processes and machines have the same.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PREFIX = "tiny-random:"
MAX_LENGTH = 4096  # tokens: room for the requests of most load tests

_SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def llama(**common: Any) -> PretrainedConfig:
    from transformers import LlamaConfig

    return LlamaConfig(**common, num_key_value_heads=2)


def qwen3(**common: Any) -> PretrainedConfig:
    """Norms of queries and keys; heads that are wider than their share of the hidden size."""
    from transformers import Qwen3Config

    return Qwen3Config(**common, num_key_value_heads=1, head_dim=24)


def gemma2(**common: Any) -> PretrainedConfig:
    """Softcap, and every other layer with a window shorter than most sequences."""
    from transformers import Gemma2Config

    return Gemma2Config(
        **common,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=24,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=10.0,
    )


def mixtral(**common: Any) -> PretrainedConfig:
    """A mixture of experts."""
    from transformers import MixtralConfig

    return MixtralConfig(**common, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)


FAMILIES: Mapping[str, Callable[..., PretrainedConfig]] = {
    "llama": llama,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "mixtral": mixtral,
}


def is_name(model: str) -> bool:
    """Whether `model` names a model of this kind; its family need not be known."""
    return model.startswith(PREFIX) or model == PREFIX[:-1]


def folder(model: str) -> Path:
    """The folder of the model "tiny-random:FAMILY", in the user's cache (XDG_CACHE_HOME, else ~/.cache). It is made
    where it does not exist; two processes may do so at once. Raises ValueError, with a message of one line, for an
    unknown family, and for a cache that cannot be written."""
    family = model.removeprefix(PREFIX)
    if family not in FAMILIES:
        raise ValueError(
            f"model {model!r} names no family that tiny random models are made of: use "
            f"{', '.join(PREFIX + known for known in FAMILIES)}"
        )
    tokenizer = _tokenizer()
    config = FAMILIES[family](**common(len(tokenizer), MAX_LENGTH, tokenizer.bos_token_id, tokenizer.eos_token_id))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "headway" / "tiny-random"
    # Another version of Headway or transformers may make another model: its folder has another name.
    contents = config.to_json_string() + tokenizer.backend_tokenizer.to_str() + _CHAT_TEMPLATE
    target = cache / f"{family}-{hashlib.sha256(contents.encode()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{family}-", dir=cache, ignore_cleanup_errors=True) as made:
            save(_random_causal_model(config), Path(made))
            tokenizer.save_pretrained(made)
            _move(Path(made), target)
    except OSError as error:
        raise ValueError(
            f"model {model!r} cannot be made in {str(cache)!r} ({error.strerror}): let XDG_CACHE_HOME name a folder "
            "that can be written"
        ) from error
    return target


def common(vocab_size: int, max_length: int, bos_token_id: int, eos_token_id: int) -> dict[str, Any]:
    """What the configs of all families say in the same way. max_length: tokens.

    Weights are large enough that every earlier token matters to the next.
    """
    return {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": max_length,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": bos_token_id,
    }


def random_model(kind: Any, config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A model with random float32 weights; the same seed gives the same weights. kind: the auto class of transformers
    that makes it."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms, biases and sinks start at a constant that would hide their misuse
                parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def save(model: PreTrainedModel, path: Path) -> None:
    """Write config and weights, without the progress bar of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(path)
    finally:
        if shown:
            logging.enable_progress_bar()


def _random_causal_model(config: PretrainedConfig) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    return random_model(AutoModelForCausalLM, config, seed=0)


def _move(made: Path, target: Path) -> None:
    """Give the folder its name at once, whole. Another process may have been faster: its folder has the same files."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _tokenizer() -> PreTrainedTokenizerBase:
    """Any text is a sequence of its bytes; syllables, most of them longer, make answers that can be read aloud."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [(consonant, vowel) for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
    merges += [("Ġ", first + second) for first, second in merges]  # Ġ is a space
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL_TOKENS])
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|begin|>"
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
