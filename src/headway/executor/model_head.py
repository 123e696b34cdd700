"""The head of a model: from hidden states to logits, for a few tokens at a time.

A model's own forward makes the logits, with all that belongs to them: scale, softcap, bias. Only its decoder is left
out: in its place stands what the decoder said before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from headway.executor import packed_forward


class ModelHead:
    """Makes logits from what `decoder`, a part of `module`, says of tokens. For one thread."""

    def __init__(self, module: nn.Module, decoder: nn.Module) -> None:
        self._module = module
        self._decoder = decoder

    @staticmethod
    def candidates(module: nn.Module) -> list[ModelHead]:
        """Heads that may be right: a forward shows which is. The outermost decoder comes first."""
        decoders = [*module.children(), module.get_decoder()]  # type: ignore[operator]
        return [ModelHead(module, decoder) for decoder in dict.fromkeys(decoders) if decoder is not module]

    @contextmanager
    def watch(self) -> Iterator[list[ModelOutput]]:
        """The list gets what the decoder says in each forward inside."""
        said: list[ModelOutput] = []
        handle = self._decoder.register_forward_hook(lambda _module, _given, output: said.append(output))
        try:
            yield said
        finally:
            handle.remove()

    def logits(self, said: ModelOutput, tokens: Tensor) -> Tensor:
        """Logits [R, vocabulary] in the model's dtype. said: of one packed forward. tokens: int64 [R], of this forward.

        Raises AttributeError if the decoder did not say hidden states.
        """
        answer = type(said)(last_hidden_state=said.last_hidden_state[:, tokens])
        self._decoder.forward = lambda *_given, **_options: answer
        try:
            return packed_forward.logits(self._module, torch.zeros_like(tokens)[None])[0]
        finally:
            del self._decoder.forward  # leaves that of its class
