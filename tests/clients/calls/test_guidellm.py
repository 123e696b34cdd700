"""guidellm, by its own command line: synthetic prompts, two at a time, to each endpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def report(server, tokenizer: str, endpoint: str, folder: Path, key: str | None = None) -> dict:
    backend = {
        "kind": "openai_http",
        "target": server.url,
        "model": server.model,
        "request_format": endpoint,
        "api_key": key or server.key,
    }
    subprocess.run(
        [
            *(str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"),
            *("--backend", ",".join(f"{name}={value}" for name, value in backend.items())),
            *("--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=6"),
            *("--tokenizer", f"kind=hf_auto,model={tokenizer}"),
            *("--data", "kind=synthetic_text,prompt_tokens=30,output_tokens=8"),
            *("--output", f"kind=json,path={folder / 'report.json'}"),
        ],
        check=True,
        timeout=240,
    )
    (benchmark,) = json.loads((folder / "report.json").read_text())["benchmarks"]
    return benchmark


@pytest.mark.shows("answer")
@pytest.mark.shows("streaming")
@pytest.mark.shows("usage in the stream")
@pytest.mark.shows("many at once")
def test_chats_have_the_length_that_is_asked_for(sums, tokenizer, tmp_path) -> None:
    assert_all_whole(report(sums, tokenizer, "/v1/chat/completions", tmp_path))


@pytest.mark.shows("completions")
def test_completions_have_the_length_that_is_asked_for(sums, tokenizer, tmp_path) -> None:
    assert_all_whole(report(sums, tokenizer, "/v1/completions", tmp_path))


@pytest.mark.shows("responses API")
def test_responses_are_measured(sums, tokenizer, tmp_path) -> None:
    assert report(sums, tokenizer, "/v1/responses", tmp_path)["metrics"]["request_totals"]["successful"] == 6


def assert_all_whole(benchmark: dict) -> None:
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (6, 0)
    assert {request["output_tokens"] for request in benchmark["requests"]["successful"]} == {8}
