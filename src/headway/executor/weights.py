"""Reading a model's weights: all of them, and nothing made up or left over."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from headway.error_text import first_line
from headway.model_files import ModelFiles


def read_weights(files: ModelFiles, device: torch.device, dtype: str) -> nn.Module:
    """The model of `files` on `device`, with the attention of transformers. dtype: "auto" is that of the checkpoint.

    Raises ValueError, naming the model.
    """
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    transformers_logging.disable_progress_bar()  # it writes to standard error, also without a terminal
    try:
        # The config is read again: transformers writes the name of the attention into it, and `files` may be shared.
        module, info = from_pretrained(
            files.path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=files.trust_remote_code,
            attn_implementation="eager",
            output_loading_info=True,
        )
        module.to(device)
    except Exception as error:  # model classes, formats and remote code raise many types
        raise ValueError(f"cannot load model {str(files.path)!r}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"cannot load model {str(files.path)!r}: its checkpoint lacks {len(missing)} weights, such as {missing[0]}"
        )
    loaded: nn.Module = module.eval()
    return loaded
