"""`headway bench serve` from the command line, against a stand-in for the server."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from headway.bench import serve
from headway.bench.datasets import Dataset, Workload
from headway.cli import main
from headway.default_model import Problem

PROBLEMS = [Problem("count", "count", "x" * 256), Problem("sort", "sort", "never")]


@pytest.fixture(autouse=True)
def problems(monkeypatch):
    monkeypatch.setattr("headway.default_model.held_out", lambda: PROBLEMS)


@dataclass
class Result:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[dict]:
        assert self.exit_code == 0, self.stderr
        return [json.loads(line) for line in self.stdout.splitlines()]


@pytest.fixture
def bench(capsys):
    """Runs `headway bench serve` with the arguments given."""

    def run(*arguments: str) -> Result:
        return Result(main(["bench", "serve", *arguments]), *capsys.readouterr())

    return run


def test_each_rate_is_a_run_and_a_flat_row(bench, fake_server, tmp_path):
    file = tmp_path / "rows.jsonl"
    arguments = ["--base-url", fake_server.base_url, "--num-prompts", "3", "--request-rate", "50,200,inf"]
    arguments += ["--dataset", "heldout"]
    made = bench(*arguments, "--json", "--save-result", str(file)).rows
    assert [row["request_rate_req_per_s"] for row in made] == [50.0, 200.0, None]
    for row in made:
        assert row["benchmark"] == "serve"
        assert (row["dataset"], row["model"]) == ("heldout", "fake")
        assert (row["num_prompts"], row["successful_requests"], row["failed_requests"]) == (3, 3, 0)
        assert row["right_answers"] + row["wrong_answers"] == 3
        assert row["p99_ttft_ms"] is None
        assert not any(isinstance(value, dict | list) for value in row.values())
    assert [json.loads(line) for line in file.read_text().splitlines()] == made


def test_it_draws_what_few_requests_have_figures_for(bench, fake_server, tmp_path):
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    file = tmp_path / "serve.svg"
    arguments = ["--base-url", fake_server.base_url, "--num-prompts", "1", "--request-rate", "50,inf"]
    assert bench(*arguments, "--json", "--plot", str(file)).exit_code == 0
    assert "50 requests/s" in file.read_text() and "all at once" in file.read_text()


def test_the_picture_has_panels_for_throughput_first_tokens_and_the_times_between(bench, fake_server, tmp_path):
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    file = tmp_path / "serve.svg"
    arguments = ["--base-url", fake_server.base_url, "--num-prompts", "4", "--output-len", "4"]
    assert bench(*arguments, "--plot", str(file)).exit_code == 0
    picture = file.read_text()
    for panel in ("Throughput", "tokens per second", "Time to first token", "Time between pieces (ITL)", "median"):
        assert panel in picture
    assert "up to p99" not in picture  # which takes 100 requests


@pytest.mark.parametrize(("model", "dataset"), [("headway-default", "heldout"), ("fake", "random")])
def test_only_the_embedded_model_is_asked_its_problems_unless_they_are_named(model, dataset):
    assert Workload().for_model(model).dataset == dataset
    assert Workload(dataset=Dataset.MOONCAKE, trace=Path(__file__)).for_model(model).dataset is Dataset.MOONCAKE


def test_another_model_is_asked_random_prompts_without_being_told(bench, fake_server):
    arguments = ["--base-url", fake_server.base_url, "--num-prompts", "2", "--input-len", "9", "--json"]
    (row,) = bench(*arguments).rows
    assert row["dataset"] == "random" and row["ignore_eos"] and "right_answers" not in row
    assert [len(body["prompt"]) for body in fake_server.requests] == [9, 9, 9]


def test_without_json_it_prints_the_block(bench, fake_server):
    result = bench("--base-url", fake_server.base_url, "--num-prompts", "2")
    assert result.exit_code == 0
    assert result.stdout.startswith("============ Serving Benchmark Result ============")


def test_random_prompts_are_token_ids_of_plain_text_with_a_shared_prefix(bench, fake_server):
    lengths = ["--input-len", "20", "--output-len", "4", "--prefix-len", "16", "--range-ratio", "0.5"]
    made = bench(
        "--base-url", fake_server.base_url, "--dataset", "random", "--num-prompts", "40", *lengths, "--json"
    ).rows
    sent = fake_server.requests[1:]  # the first one warms up
    assert made[0]["total_generated_tokens"] == sum(body["max_tokens"] for body in sent)
    assert {len(body["prompt"]) for body in sent} <= set(range(26, 47))
    assert {body["max_tokens"] for body in sent} == {2, 3, 4, 5, 6}
    assert len({tuple(body["prompt"][:16]) for body in sent}) == 1
    assert all(chr(token).isalnum() or token == 32 for body in sent for token in body["prompt"])
    assert all(body["ignore_eos"] for body in sent)


@pytest.mark.parametrize(("dataset", "minutes", "count"), [("azure", "1", 63), ("mooncake", "0.1", 23)])
def test_a_trace_is_replayed_at_its_times_within_the_models_length(bench, fake_server, dataset, minutes, count):
    arguments = ["--dataset", dataset, "--minutes", minutes, "--time-scale", "0.001", "--json"]
    (row,) = bench("--base-url", fake_server.base_url, *arguments).rows
    assert row["num_prompts"] == row["successful_requests"] == count
    assert row["request_rate_req_per_s"] is None
    assert max(len(body["prompt"]) + body["max_tokens"] for body in fake_server.requests) <= 256


def test_mooncake_prefixes_stay_shared(bench, fake_server):
    bench("--base-url", fake_server.base_url, "--dataset", "mooncake", "--num-prompts", "200", "--time-scale", "0")
    first_tokens = [tuple(body["prompt"][:8]) for body in fake_server.requests[1:] if len(body["prompt"]) > 8]
    assert len(set(first_tokens)) < len(first_tokens)


def test_any_trace_of_a_known_format_can_be_named(bench, fake_server, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,7,2\n")
    (row,) = bench("--base-url", fake_server.base_url, "--dataset", "azure", "--trace", str(file), "--json").rows
    assert (row["total_input_tokens"], row["total_generated_tokens"]) == (7, 2)


def test_a_server_that_does_not_tell_its_length_can_be_told_it(bench, fake_server):
    del fake_server.card["max_model_len"]
    arguments = ["--base-url", fake_server.base_url, "--dataset", "azure", "--num-prompts", "2", "--json"]
    result = bench(*arguments)
    assert result.exit_code == 2
    assert "give --max-model-len" in result.stderr
    assert bench(*arguments, "--max-model-len", "64").rows[0]["successful_requests"] == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--num-prompts", "0"], "--num-prompts must be at least 1, got 0"),
        (["--request-rate", "0"], "must be numbers above 0, or inf, with commas between them, got '0'"),
        (["--request-rate", "5,fast"], "must be numbers above 0, or inf, with commas between them, got '5,fast'"),
        (["--burstiness", "0"], "--burstiness must be above 0 and finite, got 0.0"),
        (["--max-concurrency", "0"], "--max-concurrency must be at least 1, got 0"),
        (["--minutes", "2"], "--trace and --minutes need --dataset azure or mooncake\n"),
        (
            ["--dataset", "random", "--minutes", "2"],
            "--trace and --minutes need --dataset azure or mooncake, got random",
        ),
        (["--dataset", "azure", "--minutes", "0"], "--minutes must be above 0, got 0.0"),
        (["--dataset", "azure", "--time-scale", "-1"], "--time-scale must be at least 0 and finite, got -1.0"),
        (["--dataset", "azure", "--trace", "/no/such"], "no such trace: /no/such"),
        (["--dataset", "azure", "--request-rate", "3"], "--request-rate does not go with a trace"),
        (["--dataset", "random", "--input-len", "0"], "--input-len and --output-len must be at least 1, got 0, 32"),
        (["--dataset", "random", "--prefix-len", "-1"], "--prefix-len must be at least 0, got -1"),
        (["--dataset", "random", "--range-ratio", "1"], "--range-ratio must be in [0, 1), got 1.0"),
        (["--dataset", "random", "--input-len", "300"], "come to 332 tokens, more than the model's 256"),
        (["--max-model-len", "1"], "--max-model-len must be at least 2, got 1"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--model", "other"], "the server does not serve 'other'; it serves fake"),
        (["--serve-args", "--scheduler v1"], "--serve-args is for a server started here"),
        (["--save-result", "/no/such/folder/f"], "--save-result: no such folder: /no/such/folder"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(bench, fake_server, arguments, complaint):
    result = bench("--base-url", fake_server.base_url, *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert fake_server.requests == []


def test_a_trace_that_cannot_be_read_names_file_line_and_value(bench, fake_server, tmp_path):
    file = tmp_path / "bad.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,many,2\n")
    result = bench("--base-url", fake_server.base_url, "--dataset", "azure", "--trace", str(file))
    assert result.exit_code == 2
    assert f"{file}, line 2: ContextTokens must be a whole number of at least 0, got 'many'" in result.stderr


def test_a_tokenizer_that_knows_no_text_is_refused(bench, fake_server):
    fake_server.tokens = lambda text: [2] * len(text)
    result = bench("--base-url", fake_server.base_url, "--dataset", "random")
    assert result.exit_code == 2
    assert "prompts made for it would all be alike" in result.stderr


def test_a_server_that_answers_something_else_is_exit_code_1(bench, fake_server):
    fake_server.card = {"name": "no id"}
    result = bench("--base-url", fake_server.base_url)
    assert result.exit_code == 1
    assert "does not answer as it should: KeyError" in result.stderr


def test_a_server_that_does_not_answer_is_exit_code_1(bench, unused_tcp_port):
    result = bench("--base-url", f"http://127.0.0.1:{unused_tcp_port}")
    assert result.exit_code == 1
    assert "does not answer as it should: ConnectError" in result.stderr


def test_a_first_request_that_fails_ends_it(bench, fake_server, monkeypatch):
    monkeypatch.setattr("headway.default_model.held_out", lambda: [Problem("x", "refuse", "")])
    result = bench("--base-url", fake_server.base_url, "--dataset", "heldout")
    assert result.exit_code == 1
    assert "a first request failed: HTTP 400" in result.stderr
    assert len(fake_server.requests) == 1


def test_failures_are_told_with_their_reason_and_their_number(bench, fake_server, monkeypatch):
    one_good = [Problem("x", "good", "")] + [Problem("x", "refuse", "")] * 3
    monkeypatch.setattr("headway.default_model.held_out", lambda: one_good)
    monkeypatch.setattr("numpy.random.default_rng", _in_order(len(one_good)))
    result = bench("--base-url", fake_server.base_url, "--dataset", "heldout", "--num-prompts", "4")
    assert result.exit_code == 0
    assert "3 failed: HTTP 400" in result.stderr


def _in_order(n):
    class InOrder:
        def permutation(self, size):
            return range(n)

    return lambda seed: InOrder()


def test_it_starts_a_server_of_its_own_with_the_arguments_given(bench, fake_server, monkeypatch):
    started = []

    class Started:
        def __init__(self, arguments):
            started.append(arguments)

        def __enter__(self):
            self.base_url = fake_server.base_url
            return self

        def __exit__(self, *error):
            started.append("stopped")

    monkeypatch.setattr(serve, "ServerProcess", Started)
    monkeypatch.setattr(serve, "exit_on_sigterm", lambda: None)
    result = bench("--num-prompts", "1", "--model", "some/model", "--serve-args", "--scheduler v1")
    assert result.exit_code == 0
    assert started == [["some/model", "--scheduler", "v1"], "stopped"]
