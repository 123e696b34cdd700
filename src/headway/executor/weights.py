"""Reading a model's weights: every weight of the checkpoint is used, and none is made up."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils import logging as transformers_logging

from headway.checkpoint import says_quantised
from headway.error_text import first_line
from headway.model_files import ModelFiles, auto_class, rope_types

# Weights in a checkpoint that no model reads any longer: buffers that older versions saved, and the layers that guess
# further tokens.
_LEFT_OVER = re.compile(
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|(^|\.)rope\.freqs$|\.(attn|attention)\.(masked_)?bias$"
    r"|position_ids$|num_batches_tracked$|(^|\.)(mtp|nextn|eagle)(\.|_)"
)
_OF_OTHER_SENSES = re.compile(r"vision|visual|audio|image|projector|speech|(^|[._])vit[._]", re.IGNORECASE)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_SCALES = re.compile(
    r"\.(\w*weight_scale\w*|\w*input_scale|qweight|qzeros|g_idx|scales|weight_packed|absmax|quant_map|SCB|\w+_scales)$"
)
_PACKED_TYPES = ("F8_", "F4", "F6_")


def read_weights(files: ModelFiles, device: torch.device, dtype: str, num_ranks: int = 1) -> nn.Module:
    """The model of `files` on `device`, with the attention of transformers. dtype: "auto" is that of the checkpoint.
    num_ranks: processes of a process group, all of which call this; each gets its part of the weights.

    A checkpoint that takes images too comes whole; its text model is inside.
    Raises ValueError, naming the model, and the file and the key of a weight that is wrong.
    """
    checkpoint = _Weights(files.path)
    if files.quantisation is None:
        checkpoint.check_not_quantised()
    try:
        from_pretrained = auto_class(files.hf_config).from_pretrained
    except ValueError as error:
        raise checkpoint.wrong(str(error)) from error
    transformers_logging.disable_progress_bar()  # it writes to standard error, also without a terminal
    try:
        # The config is read again: transformers writes the name of the attention into it, and `files` may be shared.
        module, info = from_pretrained(
            files.path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=files.trust_remote_code,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below
            **_cut_into(num_ranks),
        )
        module.to(device)
    except Exception as error:  # model classes, formats and remote code raise many types
        raise checkpoint.wrong(_why(error, files)) from error
    _check_all_used(info, module, checkpoint, files.hf_config)
    if files.quantisation is None:
        _check_values(module, checkpoint)
    loaded: nn.Module = module.eval()
    return loaded


def _cut_into(num_ranks: int) -> dict[str, Any]:
    """What makes transformers cut a model by its own plan."""
    if num_ranks == 1:
        return {}
    from transformers.distributed import DistributedConfig

    # It would name on each rank the layers that every rank has whole.
    logging.getLogger("transformers.distributed.tensor_parallel").setLevel(logging.ERROR)
    return {"distributed_config": DistributedConfig(tp_size=num_ranks)}


def local_part(tensor: Tensor) -> Tensor:
    """The part of a weight that this rank holds; a weight that is not cut, as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _why(error: Exception, files: ModelFiles) -> str:
    """What to say of an error of transformers."""
    if files.quantisation is not None:
        return f"{says_quantised(files.quantisation)} (transformers says: {first_line(error)})"
    if isinstance(error, KeyError) and (unknown := rope_types(files.hf_config.get_text_config()) & set(error.args)):
        return (
            f"config.json has the rope_type {unknown.pop()!r}, which is not known to the installed transformers: "
            "update transformers, if the model is newer"
        )
    return f"{'' if isinstance(error, ValueError | OSError) else f'{type(error).__name__}: '}{first_line(error)}"


class _Weights:
    """The files of weights in a model folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            raise self.wrong(
                "its folder has no weights, neither model*.safetensors nor pytorch_model*.bin: copy them there"
            )

    def wrong(self, what: str) -> ValueError:
        return ValueError(f"cannot load model {str(self._path)!r}: {what}")

    def file_of(self, key: str) -> str:
        """The name of the file with the weight `key`; "its checkpoint" if that is not known. Models may load a weight
        under a name that differs at the beginning."""
        tail = ".".join(key.split(".")[-4:])
        for file in sorted(self._path.glob("*.safetensors")):
            with self._opened(file) as content:
                if any(name.endswith(tail) for name in content.keys()):  # noqa: SIM118  no mapping
                    return file.name
        return "its checkpoint"

    def check_not_quantised(self) -> None:
        """Raise ValueError if weights need scales, of which the configuration says nothing."""
        for file in sorted(self._path.glob("*.safetensors")):
            with self._opened(file) as content:
                for key in content.keys():  # noqa: SIM118  no mapping
                    kind = content.get_slice(key).get_dtype()
                    if _SCALES.search(key) or kind.startswith(_PACKED_TYPES):
                        raise self.wrong(
                            f"{file.name} holds the quantised weight {key} ({kind}), and config.json has no "
                            "quantization_config that says how to read it: complete config.json, or serve the "
                            "checkpoint that it was made from"
                        )

    def _opened(self, file: Path) -> Any:
        try:
            return safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise self.wrong(f"{file.name} is damaged or incomplete ({first_line(error)}): fetch it again") from error


def _check_all_used(info: dict[str, Any], module: nn.Module, checkpoint: _Weights, config: PretrainedConfig) -> None:
    if wrong := sorted(info["mismatched_keys"]):
        key, found, wanted = wrong[0]
        raise checkpoint.wrong(
            f"{len(wrong)} weights have other sizes than config.json says, such as {key} in {checkpoint.file_of(key)}: "
            f"{list(found)} there, {list(wanted)} by config.json; the two are not of the same model"
        )
    if missing := sorted(info["missing_keys"]):
        raise checkpoint.wrong(
            f"its checkpoint lacks {len(missing)} weights, such as {missing[0]}: fetch it again, or correct config.json"
        )
    text = config.get_text_config()
    known = [key for key in sorted(info["unexpected_keys"]) if not _LEFT_OVER.search(key)]
    if text is not config:
        known = [key for key in known if not _OF_OTHER_SENSES.search(key)]
    layers = int(getattr(text, "num_hidden_layers", None) or 1 << 30)
    guessing = int(getattr(text, "num_nextn_predict_layers", None) or 0)
    unread = [key for key in known if not layers <= _layer(key) < layers + guessing]
    if not unread:
        return
    beyond = max(unread, key=_layer)
    if _layer(beyond) >= layers:
        raise checkpoint.wrong(
            f"config.json says num_hidden_layers {layers}, and {checkpoint.file_of(beyond)} has the layer "
            f"{_layer(beyond)} ({beyond}): correct config.json"
        )
    raise checkpoint.wrong(
        f"{len(unread)} weights are not read by {type(module).__name__}, such as {unread[0]} in "
        f"{checkpoint.file_of(unread[0])}: config.json does not fit the checkpoint, or its kind of weights is not known"
    )


def _layer(key: str) -> int:
    """The number of the layer that a weight belongs to; -1 if it belongs to none."""
    found = _LAYER.search(key)
    return int(found[1]) if found else -1


def _check_values(module: nn.Module, checkpoint: _Weights) -> None:
    """Raise ValueError for weights that are no numbers, or that are all zero in matrices."""
    weights = [(name, local_part(weight)) for name, weight in module.named_parameters()]
    matrices = [(name, weight) for name, weight in weights if weight.dim() > 1]
    for name, weight in weights:
        if not weight.is_floating_point():
            continue
        if not torch.isfinite(weight.sum(dtype=torch.float32)):
            raise checkpoint.wrong(
                f"the weight {name} in {checkpoint.file_of(name)} holds NaN or infinity: fetch it again"
            )
    if matrices and not any(weight.any() for _, weight in matrices):
        raise checkpoint.wrong(
            f"its weights are all zero, such as {matrices[0][0]} in {checkpoint.file_of(matrices[0][0])}: fetch it "
            "again"
        )
