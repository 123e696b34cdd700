"""Tiny models with random weights, one for each thing a decoder may do differently.

They are for comparing an engine with `model.generate`, not for reading what they say: weights are large enough that
every earlier token matters to the next, so that a wrong block of the KV cache shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway import tiny_random
from headway.model_files import auto_class

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

VOCAB_SIZE = 256
MAX_LENGTH = 512
EOS_TOKEN_ID = 1


def build(name: str, folder: Path, seed: int = 0, head_dim: int | None = None) -> Path:
    """Write model `name` (one of `NAMES`) into `folder` and return it: config, float32 weights, and a tokenizer whose
    words are "t0" to "t255". The same seed gives the same weights. head_dim: another than the model's own. Raises
    ValueError for an unknown name."""
    if name not in _CONFIGS:
        raise ValueError(f"unknown tiny model {name!r}; known are {', '.join(NAMES)}")
    config = _CONFIGS[name]()
    if head_dim is not None:
        config.head_dim = head_dim
    tiny_random.save(tiny_random.random_model(auto_class(config), config, seed), folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _gpt2() -> PretrainedConfig:
    """Learned positions, no separate KV heads."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=MAX_LENGTH,
        n_embd=64,
        n_layer=3,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=EOS_TOKEN_ID,
    )


def _mistral() -> PretrainedConfig:
    """A window in every layer."""
    from transformers import MistralConfig

    return MistralConfig(**_common(), num_key_value_heads=2, sliding_window=20)


def _gpt_oss() -> PretrainedConfig:
    """Attention sinks, windows in every other layer, experts."""
    from transformers import GptOssConfig

    return GptOssConfig(
        **_common(),
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=24,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


def _llama4() -> PretrainedConfig:
    """Layers without rotary positions, whose attention grows colder with the position; experts."""
    from transformers import Llama4TextConfig

    return Llama4TextConfig(
        **_common(),
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size_mlp=96,
        num_local_experts=2,
        num_experts_per_tok=1,
        no_rope_layers=[1, 0, 1],
        floor_scale=32,
        attn_scale=1.0,
        attention_chunk_size=MAX_LENGTH,
    )


def _bloom() -> PretrainedConfig:
    """Does not go through the attention interface: an engine built on it must refuse this one."""
    from transformers import BloomConfig

    return BloomConfig(
        vocab_size=VOCAB_SIZE,
        seq_length=MAX_LENGTH,
        hidden_size=64,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=EOS_TOKEN_ID,
    )


def _falcon() -> PretrainedConfig:
    """Refused for the same reason."""
    from transformers import FalconConfig

    return FalconConfig(**_common())


def _gptj() -> PretrainedConfig:
    """Refused for the same reason."""
    from transformers import GPTJConfig

    return GPTJConfig(
        vocab_size=VOCAB_SIZE,
        n_positions=MAX_LENGTH,
        n_embd=64,
        n_layer=2,
        n_head=4,
        rotary_dim=8,
        bos_token_id=0,
        eos_token_id=EOS_TOKEN_ID,
    )


def _llava() -> PretrainedConfig:
    """The next take images too: their text model is inside."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(**_common(), num_key_value_heads=2)
    return LlavaConfig(text_config=text, vision_config=CLIPVisionConfig(**_vision()), image_token_index=_IMAGE)


def _mistral3() -> PretrainedConfig:
    from transformers import Mistral3Config, MistralConfig, PixtralVisionConfig

    text = MistralConfig(**_common(), num_key_value_heads=2, head_dim=16, sliding_window=None)
    return Mistral3Config(text_config=text, vision_config=PixtralVisionConfig(**_vision()), image_token_index=_IMAGE)


def _paligemma() -> PretrainedConfig:
    """Embeddings that are tied and scaled; positions that begin at 1."""
    from transformers import GemmaConfig, PaliGemmaConfig, SiglipVisionConfig

    text = GemmaConfig(**_common() | {"tie_word_embeddings": True}, num_key_value_heads=2, head_dim=16)
    vision = SiglipVisionConfig(**_vision(), vision_use_head=False)
    return PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=_IMAGE, projection_dim=64, hidden_size=64
    )


def _qwen2_vl() -> PretrainedConfig:
    """Three positions for every token, which are equal for text."""
    from transformers import Qwen2VLConfig

    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    return Qwen2VLConfig(text_config=_mrope_text(), vision_config=vision, **_MARKS)


def _qwen2_5_vl() -> PretrainedConfig:
    from transformers import Qwen2_5_VLConfig

    vision = _QWEN_VISION | {"fullatt_block_indexes": [0]}
    return Qwen2_5_VLConfig(text_config=_mrope_text(), vision_config=vision, **_MARKS)


def _qwen3_vl() -> PretrainedConfig:
    from transformers import Qwen3VLConfig

    text = _mrope_text(mrope_interleaved=True) | {"head_dim": 16}
    vision = _QWEN_VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **_MARKS)


_IMAGE = 250
_MARKS = {"image_token_id": _IMAGE, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}
_QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 32,
    "patch_size": 4,
}

_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: tiny_random.llama(**_common()),
    "qwen3": lambda: tiny_random.qwen3(**_common()),
    "gemma2": lambda: tiny_random.gemma2(**_common()),
    "gpt2": _gpt2,
    "mixtral": lambda: tiny_random.mixtral(**_common()),
    "mistral": _mistral,
    "gpt_oss": _gpt_oss,
    "llama4": _llama4,
    "llava": _llava,
    "mistral3": _mistral3,
    "paligemma": _paligemma,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "bloom": _bloom,
    "falcon": _falcon,
    "gptj": _gptj,
}
NAMES = tuple(_CONFIGS)
SUPPORTED = NAMES[: NAMES.index("bloom")]


def _common() -> dict[str, Any]:
    return tiny_random.common(VOCAB_SIZE, MAX_LENGTH, bos_token_id=0, eos_token_id=EOS_TOKEN_ID)


def _vision() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }


def _mrope_text(**rope: Any) -> dict[str, Any]:
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], **rope}
    return {**_common(), "num_key_value_heads": 2, "rope_parameters": parameters}


def _tokenizer() -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {f"t{index}": index for index in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="t2"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    wrapped: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="t0", eos_token="t1", unk_token="t2", pad_token="t0"
    )
    return wrapped
