"""A folder that cannot be served is refused in one line that says what is the matter and what to do.

Each case makes the smallest such folder from a tiny Llama.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from headway.config import EngineConfig
from headway.executor.loader import load_model
from headway.model_files import ModelFiles

WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"


def change_json(file: Path, **changes) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def change_config(**changes) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **changes)


def change_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return make


def only(name: str, **content) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        (folder / name).write_text(json.dumps(content))

    return make


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names if (folder / name).exists()]


def quantised(method: str, **more) -> Callable[[Path], None]:
    return change_config(quantization_config={"quant_method": method, **more})


def with_scales(weights: dict[str, torch.Tensor]) -> None:
    weights[UP] = weights[UP].to(torch.float8_e4m3fn)
    weights[f"{UP}_scale"] = torch.ones(1)


def _also(*makers: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda folder: [make(folder) for make in makers]


def _all_zero(weights: dict[str, torch.Tensor]) -> None:
    for weight in weights.values():
        weight.zero_()


def _nan(weights: dict[str, torch.Tensor]) -> None:
    weights[UP][3, 3] = torch.nan


CASES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    # S2: quantised weights
    "fp8 of modelopt": (
        _also(change_weights(with_scales), quantised("modelopt")),
        ("quantised by 'modelopt'", "config.json", "quantization_config.quant_method", "serve the checkpoint"),
    ),
    "fp8 told in hf_quant_config.json only": (
        _also(
            change_weights(with_scales),
            lambda folder: change_json(folder / "hf_quant_config.json", quantization={"quant_algo": "FP8"}),
        ),
        ("quantised by modelopt", "hf_quant_config.json", "quant_algo", "'FP8'", "serve the checkpoint"),
    ),
    "an unknown method": (quantised("wobble"), ("'wobble'", "quant_method", "serve the checkpoint")),
    "a method without a name": (change_config(quantization_config={"bits": 4}), ("names no quant_method", "config.json")),
    "scales that nothing tells of": (
        change_weights(with_scales),
        (WEIGHTS, UP, "no quantization_config", "complete config.json"),
    ),
    "float8 without scales": (
        change_weights(lambda weights: weights.update({UP: weights[UP].to(torch.float8_e4m3fn)})),
        (WEIGHTS, UP, "F8_E4M3"),
    ),
    **{
        method: (quantised(method, **more), (f"quantised by {named}", "quantization_config", "serve the checkpoint"))
        for method, named, more in (
            ("gptq", "gptq", {"bits": 4}),
            ("awq", "awq", {"bits": 4}),
            ("compressed-tensors", "compressed-tensors", {"format": "pack-quantized", "config_groups": {}}),
            ("torchao", "torchao", {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}),
            ("bitsandbytes", "bitsandbytes", {"load_in_4bit": True}),
            ("aqlm", "aqlm", {}),
        )
    },
    # S3 and its kind: config and checkpoint do not fit
    "fewer layers than the checkpoint": (
        change_config(num_hidden_layers=2),
        ("num_hidden_layers 2", WEIGHTS, "model.layers.2.", "correct config.json"),
    ),
    "a weight that nobody reads": (
        change_weights(lambda weights: weights.update({"model.layers.1.mlp.up_proj.bias": torch.zeros(96)})),
        ("1 weights are not read by LlamaForCausalLM", "model.layers.1.mlp.up_proj.bias", WEIGHTS),
    ),
    "a weight that is not there": (
        change_weights(lambda weights: weights.pop(UP)),
        ("lacks 1 weights", UP, "fetch it again"),
    ),
    "other sizes": (
        change_config(intermediate_size=80),
        ("other sizes", "model.layers.0.mlp.", WEIGHTS, "[64, 96] there, [64, 80] by config.json", "same model"),
    ),
    "weights that are no numbers": (change_weights(_nan), (UP, WEIGHTS, "NaN")),
    "weights that are all zero": (change_weights(_all_zero), (WEIGHTS, "all zero")),
    "no weights": (without(WEIGHTS), ("no weights", "model*.safetensors")),
    "damaged weights": (lambda folder: (folder / WEIGHTS).write_bytes(b"nonsense"), (WEIGHTS, "damaged", "fetch it again")),
    # folders of another kind
    "an adapter": (
        only("adapter_config.json", base_model_name_or_path="some/base", peft_type="LORA"),
        ("PEFT adapter", "adapter_config.json", "'some/base'", "merge_and_unload"),
    ),
    "an adapter beside the config of its base": (
        lambda folder: change_json(folder / "adapter_config.json", peft_type="LORA"),
        ("PEFT adapter", "merge_and_unload"),
    ),
    "GGUF": (only("model-Q4_K_M.gguf"), ("GGUF", "model-Q4_K_M.gguf", "*.safetensors")),
    "GGUF beside a config": (
        _also(without(WEIGHTS), lambda folder: (folder / "model-Q4_K_M.gguf").write_text("GGUF")),
        ("GGUF", "model-Q4_K_M.gguf", "*.safetensors"),
    ),
    "the format of Mistral": (only("params.json"), ("params.json", "config.json", "transformers")),
    "nothing": (without("config.json"), ("no config.json",)),
    # configs
    "code of its own": (
        change_config(model_type="mine", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}),
        ("brings code of its own", "auto_map", "trust_remote_code", "--trust-remote-code"),
    ),
    "an unknown kind": (change_config(model_type="mine"), ("'mine'", "not known", "update transformers")),
    "no kind": (change_config(model_type=None), ("model_type", "config.json")),
    "a rope of unknown type": (
        change_config(rope_parameters={"rope_type": "wibble", "rope_theta": 1e4}),
        ("rope_type 'wibble'", "not known", "config.json"),
    ),
    "an end that is no token": (
        lambda folder: change_json(folder / "generation_config.json", eos_token_id=[1, None]),
        ("generation_config.json", "eos_token_id", "[1, None]", "correct the file"),
    ),
    "a temperature out of range": (
        lambda folder: change_json(folder / "generation_config.json", temperature=-1),
        ("generation_config.json", "temperature", "-1", "correct the file"),
    ),
    "a top_p that is no number": (
        lambda folder: change_json(folder / "generation_config.json", top_p="much"),
        ("generation_config.json", "top_p", "'much'", "correct the file"),
    ),
    "no room for an answer": (
        lambda folder: change_json(folder / "generation_config.json", max_new_tokens=0),
        ("generation_config.json", "max_new_tokens", "0", "correct the file"),
    ),
    # tokenizers
    "no tokenizer": (
        without("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        ("cannot load a tokenizer", "tokenizer.model", "--tokenizer"),
    ),
    "a damaged tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        ("cannot load a tokenizer", "tokenizer"),
    ),
}


def complaint(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        files = ModelFiles.resolve(EngineConfig(model=str(folder)))
        load_model(files, torch.device("cpu"), "auto")
        files.load_tokenizer()
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_what_is_the_matter_and_what_to_do(case, model_folder, tmp_path):
    make, words = CASES[case]
    folder = shutil.copytree(model_folder("llama"), tmp_path / "model")
    make(folder)
    message = complaint(folder)
    print(message)
    assert "\n" not in message
    assert not message.endswith(":")
    for word in (str(folder), *words):
        assert word in message
