"""Models of real sizes with random weights, only for measuring their speed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MAX_POSITIONS = 8_192
_EOS_TOKEN_ID = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder, and its workload.

    architecture: "llama" or "qwen3". dtype: torch's name. shortest, longest: prompt tokens. requests: numbers of
    requests at a time; each is a separate workload.
    """

    architecture: str
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    dtype: str
    requests: tuple[int, ...]
    shortest: int = 32
    longest: int = 512

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step of decodes reads: all matrices except the embedding, of which it reads few
        rows."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.key_heads)
        mlp = 3 * self.hidden * self.intermediate
        return (self.layers * (attention + mlp) + self.hidden * self.vocabulary) * self._itemsize

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.key_heads * self.head_dim * self._itemsize

    @property
    def _itemsize(self) -> int:
        return 4 if self.dtype == "float32" else 2

    def build(self, folder: Path, device: str, seed: int = 0) -> None:
        """Write the model into `folder`: config and weights, drawn at random on `device`. There is no tokenizer."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        from_config: Any = AutoModelForCausalLM.from_config
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            model = from_config(self._config(), dtype=getattr(torch, self.dtype))
        model.save_pretrained(folder)

    def _config(self) -> PretrainedConfig:
        from transformers import LlamaConfig, Qwen3Config

        kind: Any = {"llama": LlamaConfig, "qwen3": Qwen3Config}[self.architecture]
        config: PretrainedConfig = kind(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=_EOS_TOKEN_ID,
            pad_token_id=0,
        )
        return config


SHAPES = {
    "small": Shape(
        architecture="llama",
        hidden=256,
        layers=4,
        heads=4,
        key_heads=4,
        head_dim=64,
        intermediate=688,
        vocabulary=32_000,
        dtype="float32",
        requests=(64,),
    ),
    "qwen3-8b": Shape(
        architecture="qwen3",
        hidden=4_096,
        layers=36,
        heads=32,
        key_heads=8,
        head_dim=128,
        intermediate=12_288,
        vocabulary=151_936,
        dtype="bfloat16",
        requests=(1, 32, 256),
    ),
    "tiny": Shape(
        architecture="qwen3",
        hidden=64,
        layers=2,
        heads=4,
        key_heads=2,
        head_dim=16,
        intermediate=96,
        vocabulary=256,
        dtype="float32",
        requests=(4,),
        shortest=4,
        longest=24,
    ),
}
