"""What a model says by transformers' own `generate`: the truth that the engine is compared with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headway.model_files import auto_class

Draw = Callable[[random.Random], list[int]]
"""Makes a prompt."""

MIN_MARGIN = 1e-5
"""A smaller lead of the best token over the second is decided by rounding: such a prompt proves nothing."""

_MAX_DRAWS = 50


@dataclass(frozen=True, slots=True)
class Reference:
    """Prompts and their greedy continuations, token ids."""

    prompts: list[list[int]]
    outputs: list[list[int]]


def generate_greedily(
    folder: Path, draws: Sequence[Draw], num_output: int, seed: int = 0, min_margin: float = MIN_MARGIN
) -> Reference:
    """One prompt of each draw and the `num_output` tokens that follow it, end-of-sequence tokens ignored.

    In float32, with transformers' plain attention, one prompt at a time. A prompt is drawn anew while anywhere in its
    continuation the best token leads by less than `min_margin`. Raises ValueError if none is found.
    """
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model_class = auto_class(AutoConfig.from_pretrained(folder))
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    rng = random.Random(seed)

    def continuation(prompt: list[int]) -> list[int] | None:
        answer = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=num_output,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.cat(answer.logits).topk(2).values
        if float((best[:, 0] - best[:, 1]).min()) < min_margin:
            return None
        tokens: list[int] = answer.sequences[0, len(prompt) :].tolist()
        return tokens

    reference = Reference([], [])
    for draw in draws:
        for _ in range(_MAX_DRAWS):
            prompt = draw(rng)
            output = continuation(prompt)
            if output is not None:
                break
        else:
            raise ValueError(f"{folder.name}: {_MAX_DRAWS} prompts in a row whose continuation rounding decides")
        reference.prompts.append(prompt)
        reference.outputs.append(output)
    return reference
