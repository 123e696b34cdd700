"""Batch files, answered by the application in front of a fake engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headway.errors import EngineDeadError
from headway.server import batch_files
from headway.server.batch_files import Progress, partial_file, run_batch
from headway.wire import to_engine
from tests.server.conftest import Api
from tests.server.fakes import ANSWER, settled

MakeApi = Callable[..., Api]
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES = [{"role": "user", "content": "hi"}]


def line(name: Any, url: Any = COMPLETIONS, method: Any = "POST", **body: Any) -> str:
    return json.dumps({"custom_id": name, "method": method, "url": url, "body": body or {"prompt": "a"}})


class Files:
    def __init__(self, folder: Path, *lines: str) -> None:
        self.source, self.target = folder / "in.jsonl", folder / "out.jsonl"
        self.source.write_text("".join(f"{text}\n" for text in lines))
        self.progress = Progress()

    async def run(self, api: Api, concurrency: int = 2, **more: Any) -> list[dict[str, Any]]:
        await run_batch(api.app, self.source, self.target, concurrency=concurrency, progress=self.progress, **more)
        assert not partial_file(self.target).exists()
        return [json.loads(text) for text in self.target.read_text().splitlines()]


async def test_each_line_is_answered_by_its_route(api: Api, tmp_path: Path) -> None:
    files = Files(tmp_path, line("a", CHAT, messages=MESSAGES), line("b"), line("c", RESPONSES, input="hi"))
    answers = await files.run(api)
    assert [answer["custom_id"] for answer in answers] == ["a", "b", "c"]
    assert all(answer["error"] is None and answer["response"]["status_code"] == 200 for answer in answers)
    assert all(answer["id"].startswith("batch_req_") and answer["response"]["request_id"] for answer in answers)
    bodies = [answer["response"]["body"] for answer in answers]
    assert [body["object"] for body in bodies] == ["chat.completion", "text_completion", "response"]
    assert bodies[0]["choices"][0]["message"]["content"] == bodies[1]["choices"][0]["text"] == ANSWER
    assert (files.progress.num_lines, files.progress.num_errors, files.progress.share) == (3, 0, 1.0)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("{", "invalid_json"),
        ("[1]", "invalid_request"),
        (line(None), "invalid_request"),
        (line("x", method="GET"), "invalid_request"),
        (line("x", url="/v1/embeddings"), "invalid_url"),
        (json.dumps({"custom_id": "x", "method": "POST", "url": COMPLETIONS, "body": 3}), "invalid_request"),
        (line("x", prompt="a", stream=True), "invalid_request"),
        (line("first"), "duplicate_custom_id"),
    ],
)
async def test_a_line_that_is_no_request_leaves_the_others_alone(api: Api, tmp_path: Path, bad: str, code: str) -> None:
    files = Files(tmp_path, line("first"), "", bad, line("last"))
    first, refused, last = await files.run(api)
    assert (first["custom_id"], last["custom_id"]) == ("first", "last")
    assert first["error"] is None and last["error"] is None
    assert refused["response"] is None and refused["error"]["code"] == code
    assert refused["error"]["message"].startswith("line 3: ") and files.progress.num_errors == 1


async def test_a_request_that_is_refused_has_the_refusal_as_its_answer(api: Api, tmp_path: Path) -> None:
    files = Files(tmp_path, line("a", prompt="a", temperature=-1), line("b", prompt="a", model="other"))
    answers = await files.run(api)
    assert [answer["response"]["status_code"] for answer in answers] == [400, 404]
    assert "temperature" in answers[0]["response"]["body"]["error"]["message"]


async def test_answers_keep_the_order_of_the_lines_and_no_more_run_at_once_than_asked(
    make_api: MakeApi, tmp_path: Path
) -> None:
    api = make_api(silent=True)
    files = Files(tmp_path, *(line(f"{i}", prompt=f"{i}", max_tokens=1) for i in range(6)))
    batch = asyncio.create_task(files.run(api, concurrency=2))
    seen = 0
    while not batch.done():
        await settled()
        groups = api.link.sent_of(to_engine.AddGroup)
        assert len(groups) - seen <= 2
        for group in reversed(groups[seen:]):  # the later of two ends first
            api.link.step([group.requests[0].uid], api.link.tokens[:1])
            api.link.step([], [], [api_end(group)])
            await settled()
        seen = len(groups)
    assert [answer["custom_id"] for answer in await batch] == [f"{i}" for i in range(6)]


def api_end(group: Any) -> Any:
    from headway.request import FinishReason
    from headway.scheduler.effects import RequestEnd

    return RequestEnd(group.requests[0].uid, "", FinishReason.LENGTH)


async def test_a_full_queue_is_waited_for(make_api: MakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = make_api(refuse=("queue_full", "the queue is full"))
    waits = 0

    async def wait(_: float) -> None:
        nonlocal waits
        waits += 1
        api.link.refuse = None  # a place is free

    monkeypatch.setattr(batch_files, "_wait", wait)
    (answer,) = await Files(tmp_path, line("a")).run(api)
    assert answer["response"]["status_code"] == 200 and waits == 1


async def test_the_end_of_the_engine_ends_the_batch_and_the_output_is_not_complete(
    make_api: MakeApi, tmp_path: Path
) -> None:
    api = make_api(silent=True)
    files = Files(tmp_path, line("a"), line("b"))
    batch = asyncio.create_task(files.run(api))
    while not api.link.sent:
        await asyncio.sleep(0)
    await settled()
    api.link.end("killed by SIGKILL")
    with pytest.raises(EngineDeadError):
        await batch
    assert not files.target.exists() and partial_file(files.target).exists()


async def test_a_batch_that_is_interrupted_keeps_what_it_has_under_another_name(
    make_api: MakeApi, tmp_path: Path
) -> None:
    api = make_api()
    files = Files(tmp_path, *(line(f"{i}") for i in range(100)))
    files.target.write_text("of an earlier run")
    batch = asyncio.create_task(
        files.run(api, on_line=lambda: batch.cancel() if files.progress.num_lines == 3 else None)
    )
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert files.target.read_text() == "of an earlier run"
    kept = [json.loads(text) for text in partial_file(files.target).read_text().splitlines()]
    assert [answer["custom_id"] for answer in kept] == ["0", "1", "2"]
    assert api.client.num_open == 0


async def test_the_requests_are_never_overwritten(api: Api, tmp_path: Path) -> None:
    files = Files(tmp_path, line("a"))
    files.target = files.source
    with pytest.raises(ValueError, match="both input and output"):
        await files.run(api)
    assert files.source.read_text().startswith("{")


async def test_a_line_that_is_too_long_is_an_error_of_its_own(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_files, "MAX_BODY", 200)
    files = Files(tmp_path, line("a", prompt="x" * 1000), line("b"))
    long, short = await files.run(api)
    assert long["error"]["code"] == "too_long" and short["response"]["status_code"] == 200
