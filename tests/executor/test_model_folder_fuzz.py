"""Whatever stands in the JSON files of a model folder: the folder is described and its tokenizer loads, or it is
refused by a ValueError of one line that names the folder.

A longer run: HEADWAY_FUZZ=20 multiplies the number of cases.
"""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from headway.config import EngineConfig
from headway.errors import RequestError
from headway.executor.loader import load_model
from headway.model_files import ModelFiles

FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
CASES = 60 * int(os.environ.get("HEADWAY_FUZZ", "1"))
KEYS = (
    "model_type", "architectures", "vocab_size", "max_position_embeddings", "num_hidden_layers", "hidden_size",
    "eos_token_id", "rope_parameters", "rope_scaling", "layer_types", "sliding_window", "quantization_config",
    "compression_config", "auto_map", "text_config", "is_encoder_decoder", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "max_new_tokens", "tokenizer_class", "chat_template", "added_tokens_decoder",
    "quant_method", "rope_type", "original_max_position_embeddings", "torch_dtype", "num_attention_heads",
)  # fmt: skip

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 1e400, -1e400, float("nan"), 1e-300]),
    st.floats(),
    st.sampled_from(["", "llama", "wibble", "dynamic", "longrope", "bert", "t5", "llava", "fp8", "\x00", "é" * 300]),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
changes = st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=3)


def damage(text: bytes, place: int, byte: int) -> bytes:
    place %= len(text)
    return text[:place] + bytes([byte]) + text[place + 1 :]


@pytest.fixture(scope="module")
def base(model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(model_folder("llama"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def described_or_refused(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            files = ModelFiles.resolve(EngineConfig(model=str(folder)))
            files.load_tokenizer()
        except ValueError as error:
            assert not isinstance(error, RequestError), "no request is to blame"
            message = str(error)
            assert "\n" not in message and len(message) < 2000
            assert str(folder) in message
        else:
            assert files.limits.vocab_size > 0 and files.limits.max_model_len > 1


bounded = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", FILES)
@bounded
@given(change=changes)
def test_changed_values(name, change, base):
    file = base / name
    before = file.read_bytes() if file.exists() else None
    try:
        file.write_text(json.dumps(json.loads(before or b"{}") | change))
        described_or_refused(base)
    finally:
        file.unlink() if before is None else file.write_bytes(before)


@pytest.mark.parametrize("name", [*FILES, "tokenizer.json"])
@bounded
@given(place=st.integers(0, 2**16), byte=st.integers(0, 255))
def test_a_damaged_byte(name, place, byte, base):
    file = base / name
    before = file.read_bytes() if file.exists() else None
    try:
        file.write_bytes(damage(before or b'{"eos_token_id": [1, 2], "temperature": 0.5}', place, byte))
        described_or_refused(base)
    finally:
        file.unlink() if before is None else file.write_bytes(before)


@pytest.fixture(scope="module")
def sharded(model_folder, tmp_path_factory) -> Path:
    """A model whose weights lie in two files, with an index."""
    folder = tmp_path_factory.mktemp("fuzz") / "sharded"
    shutil.copytree(model_folder("llama"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    LlamaForCausalLM.from_pretrained(model_folder("llama")).save_pretrained(folder, max_shard_size="300KB")
    assert (folder / INDEX).exists()
    return folder


INDEX = "model.safetensors.index.json"
shards = st.sampled_from(
    ["model-00001-of-00002.safetensors", "gone.safetensors", "config.json", "", None, 3, [], "../x"]
)


@settings(bounded, max_examples=CASES // 2)
@given(
    index=st.one_of(
        values,
        st.fixed_dictionaries({}, optional={"metadata": values, "weight_map": values}),
        st.dictionaries(
            st.sampled_from(["model.embed_tokens.weight", "lm_head.weight", "other"]), shards, max_size=3
        ).map(lambda changed: ("weight_map", changed)),
    )
)
def test_a_changed_index_of_weights(index, sharded):
    file = sharded / INDEX
    before = file.read_bytes()
    if isinstance(index, tuple):
        index = json.loads(before) | {"weight_map": json.loads(before)["weight_map"] | index[1]}
    try:
        file.write_text(json.dumps(index))
        loaded_or_refused(sharded)
    finally:
        file.write_bytes(before)


@settings(bounded, max_examples=CASES // 2)
@given(place=st.integers(0, 1500), byte=st.integers(0, 255))
def test_a_damaged_byte_at_the_head_of_the_weights(place, byte, sharded):
    file = sorted(sharded.glob("*.safetensors"))[0]
    before = file.read_bytes()
    try:
        file.write_bytes(damage(before, place, byte))
        loaded_or_refused(sharded)
    finally:
        file.write_bytes(before)


def loaded_or_refused(folder: Path) -> None:
    try:
        load_model(ModelFiles.resolve(EngineConfig(model=str(folder))), torch.device("cpu"), "auto")
    except ValueError as error:
        assert "\n" not in str(error)
        assert str(folder) in str(error)
