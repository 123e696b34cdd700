"""What cannot be cut is refused before a process is started, by its name and with what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headway.config import EngineConfig
from headway.executor import loader
from headway.executor.packed_linear import PackedLinear
from headway.executor.ranks import cutting
from headway.executor.weights import read_weights
from headway.model_files import ModelFiles

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def with_accelerate(monkeypatch):
    monkeypatch.setattr(cutting, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        ("gpt2", 2, "no plan of tensor parallelism for the kind 'gpt2'"),
        ("llama, one KV head", 2, "num_key_value_heads is 1, which 2 does not divide"),
        ("llama", 3, "num_attention_heads is 4, which 3 does not divide"),
        ("llama, narrow", 2, "intermediate_size is 95, which 2 does not divide"),
        ("mixtral", 4, "num_key_value_heads is 2, which 4 does not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(name, size, why, settings):
    files = ModelFiles.resolve(settings(name, size))
    with pytest.raises(ValueError, match=why) as refusal:
        cutting.check_cut(files, size, CPU)
    assert str(files.path) in str(refusal.value) and "tensor_parallel_size" in str(refusal.value)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3", "mixtral"])
def test_other_models_are_not_refused(name, settings):
    cutting.check_cut(ModelFiles.resolve(settings(name)), 2, CPU)


def test_heads_that_are_gathered_need_not_divide(settings):
    """Every rank of a Phi-3 has all heads."""
    cutting.check_cut(ModelFiles.resolve(settings("phi3", 3)), 3, CPU)


def test_quantised_weights_are_refused(settings):
    files = replace(ModelFiles.resolve(settings("llama")), quantisation="awq")
    with pytest.raises(ValueError, match="it is quantised by awq"):
        cutting.check_cut(files, 2, CPU)


def test_more_ranks_than_devices_are_refused(settings, monkeypatch):
    files = ModelFiles.resolve(settings("llama"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="tensor_parallel_size is 2, and torch sees 1 CUDA devices"):
        cutting.check_cut(files, 2, CUDA)
    with pytest.raises(ValueError, match="choose devices by CUDA_VISIBLE_DEVICES"):
        cutting.check_cut(files, 2, torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="sees no CUDA devices"):
        cutting.check_cut(files, 2, CPU)


def test_the_package_that_is_missing_is_named(settings, monkeypatch):
    monkeypatch.setattr(cutting, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"accelerate .*headway\[tp\]"):
        cutting.check_cut(ModelFiles.resolve(settings("llama")), 2, CPU)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_roles_that_move_kv_are_refused(role):
    with pytest.raises(ValueError, match="does not travel between engines yet; use the role mixed"):
        EngineConfig(tensor_parallel_size=2, role=role)


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="tensor_parallel_size must be at least 1"):
        EngineConfig(tensor_parallel_size=0)


def test_linear_layers_of_a_rank_stay_as_transformers_made_them(settings, monkeypatch):
    """A packed layer computes the part of its rank, and adds up nothing."""
    monkeypatch.setattr(loader, "can_pack", lambda: True)
    monkeypatch.setattr(loader, "read_weights", lambda files, device, dtype, ranks: read_weights(files, device, dtype))
    files = ModelFiles.resolve(settings("llama"))
    model = loader.load_model(files, CPU, "float32", num_ranks=2)
    assert not any(isinstance(module, PackedLinear) for module in model.module.modules())
