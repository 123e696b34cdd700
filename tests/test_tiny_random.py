"""Models made on this machine by the name tiny-random:FAMILY."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headway import LLM, SamplingParams, tiny_random
from headway.accuracy import tiny_models
from headway.config import EngineConfig
from headway.model_files import ModelFiles

FAMILIES = ["llama", "qwen3", "gemma2", "mixtral"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "headway" / "tiny-random"


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_answers_any_text_and_conversation_under_its_name(family: str) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with LLM(f"tiny-random:{family}", num_blocks=64, max_model_len=256) as llm:
        assert llm.files.name == f"tiny-random:{family}" and llm.files.hf_config.model_type == family
        answers = [*llm.generate("héllo 你好", sampling), *llm.chat([{"role": "user", "content": "hi"}], sampling)]
    assert [len(answer.outputs[0].token_ids) for answer in answers] == [4, 4]
    assert answers[1].prompt == "<|begin|><|user|>hi<|end|><|assistant|>"


def test_any_text_comes_back_from_its_tokens() -> None:
    tokenizer = ModelFiles.resolve(EngineConfig(model="tiny-random:llama")).load_tokenizer()
    text = "bad tofu — 你好\n\t<b>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_model_is_made_once_and_the_same_on_another_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny_random.folder("tiny-random:llama")
    made_ns = (first / "config.json").stat().st_mtime_ns
    torch.manual_seed(7)
    assert tiny_random.folder("tiny-random:llama") == first
    assert (first / "config.json").stat().st_mtime_ns == made_ns
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "other"))
    other = tiny_random.folder("tiny-random:llama")
    weights, same = (load_file(folder / "model.safetensors") for folder in (first, other))
    assert first.name == other.name and all(torch.equal(weights[name], same[name]) for name in weights)


def test_two_that_make_it_at_once_have_one_whole_folder(cache: Path) -> None:
    ModelFiles.resolve(EngineConfig(model="tiny-random:llama"))  # what transformers loads lazily is loaded once
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(tiny_random.folder, ["tiny-random:qwen3"] * 2))
    assert folders[0] == folders[1]
    assert sorted(path.name.split("-")[0] for path in cache.iterdir()) == ["llama", "qwen3"]


def test_a_maker_that_comes_second_keeps_the_first_folder(tmp_path: Path) -> None:
    made, target = tmp_path / "made", tmp_path / "target"
    for folder, text in ((made, "second"), (target, "first")):
        folder.mkdir()
        (folder / "config.json").write_text(text)
    tiny_random._move(made, target)
    assert (target / "config.json").read_text() == "first"


@pytest.mark.parametrize("name", ["tiny-random:gpt5", "tiny-random:", "tiny-random"])
def test_an_unknown_family_is_refused_with_the_names_of_all_families(name: str) -> None:
    with pytest.raises(ValueError) as refusal:
        ModelFiles.resolve(EngineConfig(model=name))
    message = str(refusal.value)
    assert "\n" not in message and repr(name) in message
    assert all(f"tiny-random:{family}" in message for family in FAMILIES)


def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(ValueError, match=r"cannot be made in .*file.*XDG_CACHE_HOME"):
        tiny_random.folder("tiny-random:llama")


def test_the_models_of_the_accuracy_command_share_their_families(tmp_path: Path) -> None:
    for family in FAMILIES:
        made = tiny_models._CONFIGS[family]().to_dict()
        own = tiny_random.FAMILIES[family](**tiny_models._common()).to_dict()
        assert made == own
