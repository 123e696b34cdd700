"""A model runs on our attention, or it is refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig, OPTConfig, Phi3Config, PhimoeConfig
from transformers.models.llama import modeling_llama

from headway.accuracy import tiny_models
from headway.config import EngineConfig
from headway.executor.attention import NAME
from headway.executor.loader import choose_device, load_model
from headway.model_files import ModelFiles


def save(config, folder):
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def load(folder, **fields):
    files = ModelFiles.resolve(EngineConfig(model=str(folder), **fields))
    return load_model(files, torch.device("cpu"), "auto")


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def test_bloom_does_not_go_through_the_interface(model_folder):
    with pytest.raises(ValueError, match=r"bloom.*BloomForCausalLM.*not supported"):
        load(model_folder("bloom"))


def test_mamba_has_no_attention(tmp_path):
    folder = save(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2), tmp_path)
    with pytest.raises(ValueError, match=r"MambaForCausalLM.*not supported"):
        load(folder, max_model_len=64)


def test_a_model_whose_layers_do_not_all_come_is_refused(model_folder, monkeypatch):
    def skip(self, hidden_states, *args, **kwargs):
        return hidden_states, None

    forward = modeling_llama.LlamaAttention.forward
    monkeypatch.setattr(
        modeling_llama.LlamaAttention,
        "forward",
        lambda self, *args, **kwargs: (skip if self.layer_idx == 1 else forward)(self, *args, **kwargs),
    )
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*1 of 3 do not \(layer 1 did 0 times\)"):
        load(model_folder("llama"))


def test_a_window_told_to_the_mask_only_is_refused(tmp_path):
    settings = {**SMALL, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    folder = save(PhimoeConfig(**settings, sliding_window=24), tmp_path)
    with pytest.raises(ValueError, match=r"PhimoeForCausalLM.*sliding window of 24"):
        load(folder)
    assert load(folder, max_model_len=24).windows == {None}  # nothing is farther away than the window


def test_a_window_that_hides_nothing_is_no_window(model_folder):
    assert load(model_folder("gemma2")).windows == {None, 24}
    assert load(model_folder("gemma2"), max_model_len=24).windows == {None}


@pytest.mark.parametrize(
    "kind, fields, message",
    [
        (
            "chunked_attention",
            {"attention_chunk_size": 32},
            r"chunks of 32 tokens, which max_model_len \(512\) exceeds",
        ),
        ("indexed_attention", {}, "layer 1 is of kind indexed_attention"),
    ],
)
def test_layers_of_a_kind_that_only_the_mask_would_show_are_refused(kind, fields, message, model_folder, tmp_path):
    folder = shutil.copytree(model_folder("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"layer_types": ["full_attention", kind, "full_attention"], **fields}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"LlamaForCausalLM.*{message}"):
        load(folder)
    if kind == "chunked_attention":
        assert load(folder, max_model_len=32).windows == {None}  # one chunk holds every request


def test_a_model_that_answers_differently_with_our_attention_is_refused(model_folder, monkeypatch):
    """For example because it adds something to the scores without saying so."""
    eager = modeling_llama.eager_attention_forward

    def with_a_slope(module, query, key, *args, **kwargs):
        return eager(module, query, key * torch.linspace(0, 2, key.shape[2])[:, None], *args, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", with_a_slope)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*logits are not those of its own attention"):
        load(model_folder("llama"))


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"is_causal": False}, "not causal"),
        ({"attention_mask": torch.zeros(1)}, "mask of its own"),
    ],
)
def test_what_our_attention_cannot_do_is_refused(extra, message, model_folder, monkeypatch):
    interface = modeling_llama.ALL_ATTENTION_FUNCTIONS.get_interface

    def get_interface(name, default):
        function = interface(name, default)
        if name == "eager":
            return function

        def call(module, query, key, value, attention_mask, **kwargs):
            arguments = {"attention_mask": attention_mask, **kwargs, **extra}
            return function(module, query, key, value, **arguments)

        return call

    monkeypatch.setattr(modeling_llama.ALL_ATTENTION_FUNCTIONS, "get_interface", get_interface)
    with pytest.raises(ValueError, match=f"LlamaForCausalLM.*{message}"):
        load(model_folder("llama"))


def test_a_model_that_reads_positions_from_the_length_of_the_cache_is_given_one(model_folder):
    """Llama 4 scales its attention by such positions. Answers are compared in test_generation.py."""
    assert load(model_folder("llama4")).reads_cache_length
    assert not load(model_folder("llama")).reads_cache_length


def test_a_model_that_asks_for_the_length_to_make_a_mask_is_given_none(tmp_path):
    """Only layers need it. A length for each token of a pack would break such a mask."""
    settings = {name: SMALL[name] for name in SMALL if name != "intermediate_size"}
    folder = save(OPTConfig(**settings, ffn_dim=48, word_embed_proj_dim=32), tmp_path)
    assert not load(folder).reads_cache_length


def test_positions_that_are_wrong_far_from_the_beginning_only_are_noticed(model_folder, monkeypatch):
    """At positions 0 to 7 this model is right, as Llama 4 was."""
    forward = modeling_llama.LlamaModel.forward

    def near(self, position_ids=None, **kwargs):
        if position_ids is not None and self.config._attn_implementation == NAME:
            position_ids = position_ids.clamp(max=200)
        return forward(self, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", near)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*logits are not those of its own .* from position 252 on"):
        load(model_folder("llama"))


def test_a_model_that_breaks_in_its_first_forward_is_refused(model_folder, monkeypatch):
    def broken(self, hidden_states, **kwargs):
        raise RuntimeError("shapes do not match\nat all")

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", broken)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.* fails in its first forward: shapes do not match$"):
        load(model_folder("llama"))


def test_a_model_that_cannot_keep_chosen_logits_gives_them_all(model_folder, monkeypatch):
    whole = load(model_folder("llama"))
    assert whole.takes_logits_to_keep
    forward = modeling_llama.LlamaForCausalLM.forward

    def plain(self, input_ids=None, position_ids=None, use_cache=None, **kwargs):
        return forward(self, input_ids=input_ids, position_ids=position_ids, use_cache=use_cache, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "forward", plain)
    assert not load(model_folder("llama")).takes_logits_to_keep


def test_layers_may_differ_in_heads_and_dims(tmp_path):
    loaded = load(save(Phi3Config(**SMALL, num_key_value_heads=1), tmp_path))
    assert sorted(loaded.layers) == [0, 1]
    assert {(s.key_heads, s.key_dim, s.value_heads, s.value_dim) for s in loaded.layers.values()} == {(1, 8, 1, 8)}


class TestWeights:
    @pytest.fixture
    def folder(self, model_folder, tmp_path):
        return shutil.copytree(model_folder("llama"), tmp_path / "model")

    def test_the_old_format_is_read(self, folder):
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        assert isinstance(load(folder).module, nn.Module)

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(ValueError, match=r"cannot load model .*model"):
            load(folder)

    def test_broken_weights(self, folder):
        (folder / "model.safetensors").write_bytes(b"nonsense")
        with pytest.raises(ValueError, match=r"cannot load model .*model"):
            load(folder)

    def test_weights_that_are_not_all_there_are_not_made_up(self, folder):
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks 1 weights, such as model.layers.1.mlp.up_proj.weight"):
            load(folder)

    def test_dtype_auto_is_the_checkpoints(self, folder):
        config = LlamaConfig(**SMALL)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        assert load(folder).dtype == torch.bfloat16


class TestDevice:
    def test_auto_is_what_there_is(self):
        assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")

    @pytest.mark.parametrize("name", ["tpu9", "meta", "cuda:99"])
    def test_others_are_refused_by_name(self, name):
        with pytest.raises(ValueError, match=name):
            choose_device(name)


def test_the_same_seed_builds_the_same_model(tmp_path):
    first, second, third = (tiny_models.build("llama", tmp_path / str(i), seed) for i, seed in enumerate((1, 1, 2)))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "model.safetensors").read_bytes() != (third / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="'lama'; known are llama"):
        tiny_models.build("lama", tmp_path)
