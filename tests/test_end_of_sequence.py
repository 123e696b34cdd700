"""The end-of-sequence token that only the tokenizer knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headway import LLM, SamplingParams
from headway.config import EngineConfig
from headway.end_of_sequence import end_of_sequence_id
from headway.model_files import ModelFiles
from tests.client.tokenizers import word_tokenizer
from tests.echo_model import EOS, use_echo_model, write_echo_model


def set_eos(folder: Path, value: Any) -> None:
    for name in ("config.json", "generation_config.json"):
        file = folder / name
        if file.is_file():
            file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": value}))


@pytest.mark.parametrize(("named", "expected"), [(None, (EOS,)), (5, (5, EOS)), (EOS, (EOS,))])
def test_it_ends_answers_beside_the_tokens_that_the_model_names(
    tmp_path: Path, named: int | None, expected: tuple[int, ...]
) -> None:
    set_eos(write_echo_model(tmp_path), named)
    assert ModelFiles.resolve(EngineConfig(model=str(tmp_path))).limits.eos_token_ids == expected


def test_an_answer_of_a_model_that_names_none_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_echo_model(monkeypatch)
    set_eos(write_echo_model(tmp_path), None)
    with LLM(str(tmp_path), max_num_seqs=2) as llm:
        (output,) = llm.generate("ab", SamplingParams(temperature=0, max_tokens=9), use_tqdm=False)
    (answer,) = output.outputs
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("ab", "stop", None)


def test_a_token_that_the_model_does_not_have_is_left_out(tmp_path: Path) -> None:
    write_echo_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"vocab_size": EOS, "eos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ModelFiles.resolve(EngineConfig(model=str(tmp_path))).limits.eos_token_ids == ()


def test_the_files_of_a_tokenizer_name_it_as_the_loaded_tokenizer_does(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(None)
    tokenizer.save_pretrained(tmp_path)
    assert end_of_sequence_id(str(tmp_path)) == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"eos_token": None}, "special_tokens_map.json": {}}, None),
        ({"tokenizer_config.json": {"eos_token": "b"}}, None),
        ({"tokenizer_config.json": {"eos_token": "b", "added_tokens_decoder": {"7": {"content": "b"}}}}, 7),
        ({"tokenizer_config.json": {"eos_token": {"content": "b"}},
          "tokenizer.json": {"added_tokens": [{"id": 3, "content": "b"}]}}, 3),
        ({"special_tokens_map.json": {"eos_token": "b"}, "tokenizer.json": {"model": {"vocab": {"a": 0, "b": 1}}}}, 1),
        ({"special_tokens_map.json": {"eos_token": "b"},
          "tokenizer.json": {"model": {"vocab": [["a", 0.0], ["b", -1.0]]}}}, 1),
    ],
)  # fmt: skip
def test_where_files_name_it(tmp_path: Path, files: dict[str, Any], expected: int | None) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert end_of_sequence_id(str(tmp_path)) == expected


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
        end_of_sequence_id(str(tmp_path))
