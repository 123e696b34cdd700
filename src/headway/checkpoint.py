"""What lies in a model folder, as far as names of files and small JSON files tell: a model, an adapter, another format,
quantised weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headway.error_text import first_line

CONFIG = "config.json"
_ADAPTER = "adapter_config.json"
_OTHER_FORMATS = {  # a file that shows it -> what to say
    "*.gguf": "holds GGUF weights ({file}), the format of llama.cpp, which is not read: take the repository that the "
    "GGUF file was made from, with config.json and *.safetensors",
    _ADAPTER: "is a PEFT adapter ({file}), not a model: merge it into its base model {base}(peft: "
    "merge_and_unload, then save_pretrained) and serve the folder that was saved",
    "params.json": "has no config.json but {file}, the format of Mistral or Meta: take the files in the format of "
    "transformers (config.json and model*.safetensors)",
}
_WHAT_TO_DO = "serve the checkpoint that it was made from, or save it dequantised"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file. Raises ValueError, naming the file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"cannot read {str(path)!r}: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must contain a JSON object, got {type(content).__name__}")
    return content


def check_folder(path: Path) -> None:
    """Raise ValueError if there is no model in the folder, naming what is there instead."""
    has_config = (path / CONFIG).is_file()
    has_weights = any(any(path.glob(pattern)) for pattern in ("*.safetensors", "*.bin"))
    # A model may bring its weights a second time in another format; an adapter may bring the config of its base.
    there = {_ADAPTER: True, "*.gguf": not (has_config and has_weights), "params.json": not has_config}
    for pattern, counts in there.items():
        if counts and (found := sorted(path.glob(pattern))):
            base = read_json(found[0]).get("base_model_name_or_path") if pattern == _ADAPTER else None
            told = _OTHER_FORMATS[pattern].format(file=found[0].name, base=f"{base!r} " if base else "")
            raise ValueError(f"model folder {str(path)!r} {told}")
    if not has_config:
        raise ValueError(
            f"model folder {str(path)!r} has no config.json: give the folder or repository that holds config.json and "
            "model*.safetensors (GGUF files are not read)"
        )


def quantisation(path: Path) -> str | None:
    """The method by which the weights are quantised, where transformers can read that; None: not quantised.

    Raises ValueError for a method that it would not notice, naming file and key.
    """
    config = read_json(path / CONFIG)
    told: Any = None
    for key in ("quantization_config", "compression_config"):
        inner = config.get("text_config")
        told = config.get(key) or (inner.get(key) if isinstance(inner, Mapping) else None)
        if told:
            break
    if not told:
        _check_of_modelopt(path)
        return None
    if not isinstance(told, Mapping):
        raise ValueError(f"{key} in {str(path / CONFIG)!r} must be an object, got {type(told).__name__}")
    if told.get("load_in_4bit") or told.get("load_in_8bit"):
        return "bitsandbytes"
    method = told.get("quant_method", "compressed-tensors" if key == "compression_config" else None)
    if method is None:
        raise ValueError(f"{key} in {str(path / CONFIG)!r} names no quant_method: {_WHAT_TO_DO}")
    if method not in _known_methods():
        raise ValueError(
            f"model {str(path)!r} is quantised by {method!r:.100} ({CONFIG}: {key}.quant_method), which is not "
            f"supported: {_WHAT_TO_DO}"
        )
    return str(method)


def says_quantised(method: str) -> str:
    """What to say of a model that is quantised by a known method and could not be loaded."""
    return (
        f"it is quantised by {method} ({CONFIG}: quantization_config), whose packages or device are missing, or which "
        f"is not supported: {_WHAT_TO_DO}; further packages may not be enough"
    )


def _check_of_modelopt(path: Path) -> None:
    file = path / "hf_quant_config.json"
    told = read_json(file).get("quantization")
    if file.is_file():
        method = told.get("quant_algo") if isinstance(told, Mapping) else None
        raise ValueError(
            f"model {str(path)!r} is quantised by modelopt ({file.name}: quantization.quant_algo {method!r:.100}), "
            f"which is not supported: {_WHAT_TO_DO}"
        )


def _known_methods() -> set[str]:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return {*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"}
