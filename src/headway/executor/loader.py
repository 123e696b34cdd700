"""Loading a model: its weights, our attention in the place of its own, and the proof that both say the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from headway.error_text import first_line
from headway.executor import packed_forward
from headway.executor.attention import NAME, PagedAttention, UnsupportedAttentionError
from headway.executor.attention_plan import AttentionCall, AttentionPlan, Window
from headway.executor.empty_cache import EmptyCache
from headway.executor.flashinfer_attention import PagePlan
from headway.executor.kv_tensors import LayerShape
from headway.executor.load_stages import stage
from headway.executor.model_head import ModelHead
from headway.executor.model_proof import ModelProof
from headway.executor.packed_linear import can_pack, pack_linears
from headway.executor.weights import read_weights
from headway.model_files import ModelFiles
from headway.sizes import readable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that runs on our attention.

    calls: the attention that each layer uses. layers: the shape of a token's key and value in each layer. windows: the
    sliding windows of the layers; None is no window. vocab_size: entries of a row of logits. reads_cache_length: takes
    positions from the length of a cache, see `EmptyCache`. head: None if the model's own cannot be used by itself.
    """

    module: nn.Module
    attention: PagedAttention
    calls: tuple[AttentionCall, ...]
    layers: dict[int, LayerShape]
    windows: frozenset[Window]
    vocab_size: int
    takes_logits_to_keep: bool
    reads_cache_length: bool
    head: ModelHead | None
    dtype: torch.dtype
    device: torch.device

    def forward(self, input_ids: Tensor, positions: Tensor, plan: AttentionPlan | PagePlan, keep: Tensor) -> Tensor:
        """One packed forward. input_ids, positions: int64 [T]; keep: int64 [R], the tokens whose logits are needed.
        Returns logits [R, vocab_size] in the model's dtype."""
        self.attention.begin_step(plan)
        return self.compute(input_ids, positions, keep)

    def forward_for_more(
        self, input_ids: Tensor, positions: Tensor, plan: AttentionPlan | PagePlan, keep: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """As `forward`, and a function that makes the logits of more tokens of this forward, int64 [R], when it is
        called. Without a `head` all logits of the forward are there until it is dropped."""
        if self.head is None:
            every = torch.arange(len(input_ids), device=self.device)
            logits = self.forward(input_ids, positions, plan, every)
            return logits[keep], logits.__getitem__
        with self.head.watch() as said:
            logits = self.forward(input_ids, positions, plan, keep)
        return logits, partial(self.head.logits, said[-1])

    def compute(self, input_ids: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        """The forward of a step after `begin_step`: work for the device alone."""
        cache = EmptyCache.of_pack(positions) if self.reads_cache_length else None
        kept = keep if self.takes_logits_to_keep else None
        logits = packed_forward.logits(self.module, input_ids[None], positions[None], kept, cache)
        return logits[0] if self.takes_logits_to_keep else logits[0, keep]


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA if there is a GPU. Raises ValueError if there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def load_model(files: ModelFiles, device: torch.device, dtype: str, num_ranks: int = 1) -> LoadedModel:
    """Read the weights, put our attention in, and check that it is used. dtype: "auto" is that of the checkpoint.

    num_ranks: processes that load the model together, each its part; the checks compute on all of them.
    Raises ValueError, naming the model, if it cannot be loaded or does not run on our attention.
    """
    with stage(f"reading {readable(files.num_weight_bytes)} of weights onto {device}"):
        module = read_weights(files, device, dtype, num_ranks)
    attention = PagedAttention(files.limits.max_model_len)
    try:
        proof = ModelProof(module, files.limits, device)
        # The linear layers of a rank add up the parts of all ranks in a forward of their own; a packed layer has none.
        if device.type == "cpu" and num_ranks == 1 and can_pack():
            pack_linears(module)
        attention.bind(module)
        module.set_attn_implementation(NAME)  # type: ignore[operator]
        with stage("proving that the model computes the same on Headway's attention"):
            facts = proof.check(attention)
    except UnsupportedAttentionError as error:
        raise ValueError(f"{_name(module, files)} is not supported: {error}") from error
    except (RuntimeError, TypeError, IndexError, AttributeError, KeyError, NotImplementedError) as error:
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        raise ValueError(f"{_name(module, files)} fails in its first forward: {kind}{first_line(error)}") from error
    if any(getattr(layer, "is_causal", True) is False for layer in _attention_layers(module)):
        logger.warning(
            "%s was made to attend to its prompts in both directions; here it attends to what came before only, as "
            "generate of transformers does with token ids alone",
            _name(module, files),
        )
    return LoadedModel(
        module=module,
        attention=attention,
        calls=facts.calls,
        layers={call.layer: call.shape for call in facts.calls},
        windows=frozenset(call.window for call in facts.calls),
        vocab_size=facts.vocab_size,
        takes_logits_to_keep=facts.takes_logits_to_keep,
        reads_cache_length=facts.reads_cache_length,
        head=facts.head,
        dtype=next(module.parameters()).dtype,
        device=device,
    )


def _attention_layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(getattr(layer, "layer_idx", None), int)]


def _name(module: nn.Module, files: ModelFiles) -> str:
    return f"model {str(files.path)!r} ({type(module).__name__})"
