"""A folder that cannot be served is refused in one line that says what is the matter and what to do.

Each case makes the smallest such folder from a tiny Llama.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV32Config, VoxtralConfig, ZambaConfig

from headway.accuracy import tiny_models
from headway.config import EngineConfig
from headway.executor.loader import load_model
from headway.model_files import ModelFiles, auto_class

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
    # quantised weights
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
    "a method without a name": (
        change_config(quantization_config={"bits": 4}),
        ("names no quant_method", "config.json"),
    ),
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
            ("fp8", "fp8", {"activation_scheme": "dynamic", "weight_block_size": [32, 32]}),
            ("fbgemm_fp8", "fbgemm_fp8", {}),
            ("mxfp4", "mxfp4", {}),
            ("hqq", "hqq", {}),
            ("quark", "quark", {}),
        )
    },
    # config and checkpoint do not fit
    "fewer layers than the checkpoint": (
        change_config(num_hidden_layers=2),
        ("num_hidden_layers 2", WEIGHTS, "model.layers.2.", "correct config.json"),
    ),
    "a weight that the model does not read": (
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
    "weights that are no numbers": (change_weights(_nan), (UP, WEIGHTS, "NaN", "fetch it again")),
    "weights that are all zero": (change_weights(_all_zero), (WEIGHTS, "all zero", "fetch it again")),
    "no weights": (without(WEIGHTS), ("no weights", "model*.safetensors", "copy them there")),
    "damaged weights": (
        lambda folder: (folder / WEIGHTS).write_bytes(b"nonsense"),
        (WEIGHTS, "damaged", "fetch it again"),
    ),
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
    "a kind that generates no text for a prompt of text": (
        change_config(**VoxtralConfig(architectures=["VoxtralForConditionalGeneration"]).to_dict()),
        ("no class that generates text", "'voxtral'", "answer a text with a text"),
    ),
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
        ("cannot read", "tokenizer.json", "line 1"),
    ),
}


FAMILIES = {
    "falcon": ("FalconForCausalLM", "computes attention itself"),
    "gptj": ("GPTJForCausalLM", "computes attention itself"),
    "bloom": ("BloomForCausalLM", "takes no position_ids"),
}


def complaint(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        files = ModelFiles.resolve(EngineConfig(model=str(folder)))
        load_model(files, torch.device("cpu"), "auto")
        files.load_tokenizer()
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_what_is_the_matter_and_what_to_do(case, model_folder, tmp_path, monkeypatch):
    make, words = CASES[case]
    for method in ("finegrained_fp8", "mxfp4"):  # with accelerate transformers dequantises these, and they are served
        monkeypatch.setattr(f"transformers.quantizers.quantizer_{method}.is_accelerate_available", lambda: False)
    folder = shutil.copytree(model_folder("llama"), tmp_path / "model")
    make(folder)
    message = complaint(folder)
    print(message)
    assert "\n" not in message
    assert not message.endswith(":")
    for word in (str(folder), *words):
        assert word in message


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_that_cannot_be_served_is_refused_by_name_and_reason(name, model_folder):
    message = complaint(model_folder(name))
    assert "\n" not in message
    for word in ("is not supported", *FAMILIES[name]):
        assert word in message


def test_a_model_with_an_indexer_is_refused_by_that(tmp_path):
    settings = tiny_models._common() | {"num_hidden_layers": 1}
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    experts = {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_shared_experts": 1, "moe_intermediate_size": 16}
    indexer = {"index_topk": 8, "index_n_heads": 2, "index_head_dim": 16}
    config = DeepseekV32Config(**settings, **ranks, **experts, **indexer, n_group=1, topk_group=1)
    auto_class(config).from_config(config).save_pretrained(tmp_path)
    message = complaint(tmp_path)
    assert "DeepseekV32ForCausalLM" in message and "indexer" in message and "index_topk" in message


def test_a_model_with_state_beside_keys_and_values_is_refused_by_the_kind_of_the_layer(tmp_path):
    settings = {"attn_layer_period": 3, "attn_layer_offset": 2, "use_mamba_kernels": False}
    config = ZambaConfig(**tiny_models._common(), **settings)
    auto_class(config).from_config(config).save_pretrained(tmp_path)
    message = complaint(tmp_path)
    assert "ZambaForCausalLM" in message and "layer 0 is of kind linear_attention" in message


@pytest.mark.parametrize(
    "key", ["model.layers.0.self_attn.rotary_emb.inv_freq", "mtp.layers.0.weight", "model.layers.3.embed.weight"]
)
def test_a_weight_that_no_model_reads_any_longer_does_not_matter(key, model_folder, tmp_path):
    """Buffers of older versions, and layers that guess further tokens."""
    folder = shutil.copytree(model_folder("llama"), tmp_path / "model")
    change_weights(lambda weights: weights.update({key: torch.ones(2)}))(folder)
    change_json(folder / "config.json", num_nextn_predict_layers=1)
    files = ModelFiles.resolve(EngineConfig(model=str(folder)))
    assert load_model(files, torch.device("cpu"), "auto").vocab_size == 256


def test_the_vision_of_a_model_that_is_served_without_it_does_not_matter(model_folder, tmp_path):
    """Of a checkpoint with images, some classes read the text alone."""
    folder = shutil.copytree(model_folder("llava"), tmp_path / "model")
    change_weights(lambda weights: weights.update({"vision_tower.more.weight": torch.ones(2)}))(folder)
    files = ModelFiles.resolve(EngineConfig(model=str(folder)))
    assert load_model(files, torch.device("cpu"), "auto").vocab_size == 256
