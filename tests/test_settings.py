"""The settings of `LLM` and `AsyncLLM`, as editors and type checkers see them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

import headway
from headway import LLM, AsyncLLM, EngineConfig, EngineSettings

# A function with the keyword arguments of the two classes.
SOURCE = Path(headway.__file__).parent
SNIPPET = """
from typing import Unpack
from headway.settings import EngineSettings

def llm(**settings: Unpack[EngineSettings]) -> None: ...

llm(max_num_seqs=64, dtype=None, scheduler="v2", kv_cache_memory_gb=2)
llm(max_num_seq=64)
llm(max_num_seqs="64")
llm(scheduler="v3")
"""


@pytest.mark.parametrize("face", [LLM, AsyncLLM])
def test_both_classes_take_these_settings(face: type) -> None:
    assert inspect.signature(face).parameters["settings"].annotation == "Unpack[EngineSettings]"


def test_the_settings_are_the_fields_of_the_configuration_with_its_types() -> None:
    expected = get_type_hints(EngineConfig)
    expected = {field.name: expected[field.name] for field in fields(EngineConfig) if field.name != "model"}
    for name in ("device", "dtype"):  # None is "auto", as in other engines
        expected[name] |= None
    assert get_type_hints(EngineSettings) == expected


def test_a_type_checker_refuses_a_wrong_name_and_a_wrong_value(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET)
    # With the modules of the settings alone: what the package imports beside them, torch among it, takes minutes.
    modules = [f"{SOURCE}/{name}.py" for name in ("settings", "config", "kv_events_config")]
    options = ["--follow-imports=skip", "--no-error-summary", "--config-file=", f"--cache-dir={tmp_path}"]
    command = [sys.executable, "-m", "mypy", *options, *modules, str(file)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=250).stdout.splitlines()
    errors = [line.partition("error: ")[2] for line in said if ": error: " in line]
    assert len(errors) == 3, said
    assert 'Unexpected keyword argument "max_num_seq" for "llm"' in errors[0]
    assert '"max_num_seqs" to "llm" has incompatible type "str"' in errors[1]
    assert '"scheduler" to "llm" has incompatible type' in errors[2]
