"""`headway run-batch`, with a fake engine in the place of a process."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from headway import cli
from headway.client.engine_client import EngineClient
from headway.server.batch_files import partial_file
from headway.wire import to_engine
from tests.server.fakes import ANSWER, FakeLink, fake_client


def line(name: str, **body: Any) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {"prompt": "a", **body}})


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    source = tmp_path / "in.jsonl"
    source.write_text(f"{line('a')}\n{line('b', temperature=-1)}\nnonsense\n")
    return source, tmp_path / "out.jsonl"


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> list[FakeLink]:
    """The engines that have been started."""
    started: list[FakeLink] = []

    async def start(*_: Any, **__: Any) -> EngineClient:
        client, link = fake_client()
        started.append(link)
        return client

    monkeypatch.setattr(EngineClient, "start", start)
    return started


def run(source: Path | str, target: Path | str, *more: str) -> int:
    return cli.main(["run-batch", "-i", str(source), "-o", str(target), *more])


def test_a_file_is_answered_and_the_end_tells_how_many_lines_have_errors(
    files: tuple[Path, Path], links: list[FakeLink], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = files
    assert run(source, target, "--concurrency", "1") == 0 and len(links) == 1
    answers = [json.loads(text) for text in target.read_text().splitlines()]
    assert answers[0]["response"]["body"]["choices"][0]["text"] == ANSWER
    assert [answer["error"] is None for answer in answers] == [True, True, False]
    assert capsys.readouterr().err.splitlines()[-1] == f"headway run-batch: 3 lines, 2 with errors: {target}"


def test_an_interrupt_leaves_the_answers_so_far_and_says_where(
    files: tuple[Path, Path],
    links: list[FakeLink],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = files
    source.write_text(f"{line('a')}\n{line('never')}\n")
    submit = EngineClient.submit

    def interrupted(client: EngineClient, requests: Any, **options: Any) -> Any:
        links[0].silent = len(links[0].sent_of(to_engine.AddGroup)) == 1
        if links[0].silent:
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        return submit(client, requests, **options)

    monkeypatch.setattr(EngineClient, "submit", interrupted)
    assert run(source, target, "--concurrency", "1") == 130
    assert not target.exists()
    kept = partial_file(target)
    assert [json.loads(text)["custom_id"] for text in kept.read_text().splitlines()] == ["a"]
    assert f"interrupted after 1 lines, 0 with errors, which are in {kept}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("no_such_file", "out", "No such file"),
        ("in.jsonl", "no_such_folder/out", "no folder"),
        ("in.jsonl", "in.jsonl", "both input and output"),
        ("in.jsonl", "out --tool-call-parser none_such", "none_such"),
        ("https://example.com/in", "out", "local files"),
        ("in.jsonl", "http://example.com/out", "local files"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path,
    links: list[FakeLink],
    capsys: pytest.CaptureFixture[str],
    source: str,
    target: str,
    why: str,
) -> None:
    (tmp_path / "in.jsonl").write_text(line("a"))
    target, *more = target.split()
    paths = [name if "://" in name else str(tmp_path / name) for name in (source, target)]
    assert run(paths[0], paths[1], *more) == cli.BAD_INPUT
    (complaint,) = capsys.readouterr().err.splitlines()
    assert why in complaint
