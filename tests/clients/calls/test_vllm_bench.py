"""`vllm bench serve`, of the environment in which `make adapters` runs vLLM."""

import json
import os
import subprocess

import pytest

VLLM = os.environ["HEADWAY_CLIENTS_VLLM"]
pytestmark = pytest.mark.skipif(not VLLM, reason="vLLM is not installed: `make adapters` installs it")


def report(server, tokenizer: str, backend: str, endpoint: str, folder, *more: str) -> dict:
    subprocess.run(
        [
            *(VLLM, "bench", "serve", "--backend", backend, "--base-url", server.url, "--endpoint", endpoint),
            *("--model", server.model, "--tokenizer", tokenizer, "--dataset-name", "random"),
            *("--random-input-len", "40", "--random-output-len", "12", "--num-prompts", "8"),
            *("--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", "report.json"),
            *more,
        ],
        env={**os.environ, "OPENAI_API_KEY": server.key},
        check=True,
        timeout=240,
    )
    return json.loads((folder / "report.json").read_text())


@pytest.mark.shows("answer")
@pytest.mark.shows("streaming")
@pytest.mark.shows("usage in the stream")
@pytest.mark.shows("many at once")
def test_chats_are_measured(sums, tokenizer, tmp_path) -> None:
    told = report(sums, tokenizer, "openai-chat", "/v1/chat/completions", tmp_path)
    assert (told["completed"], told["failed"]) == (8, 0) and all(told["generated_texts"])


@pytest.mark.shows("completions")
def test_completions_have_the_length_that_is_asked_for(sums, tokenizer, tmp_path) -> None:
    told = report(sums, tokenizer, "openai", "/v1/completions", tmp_path, "--ignore-eos")
    assert (told["completed"], told["total_output_tokens"]) == (8, 8 * 12)
