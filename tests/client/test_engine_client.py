"""The engine client with an engine process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headway.client.engine_client import EngineClient, PendingRequest, Update
from headway.config import EngineConfig
from headway.errors import DuplicateRequestError, EngineDeadError, EnginePausedError, QueueFullError, RequestError
from headway.outputs import RequestOutput
from headway.request import FinishReason, NewRequest
from headway.sampling import SamplingParams
from tests.managers.driving import PATIENCE
from tests.server.running import save_without_weights

SIMULATED = ("--executor", "simulated", "--base-s", "0.01")  # 250 tokens take 2.5 seconds
LONG = SamplingParams(max_tokens=250, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_without_weights(folder)
    return folder


@pytest.fixture
async def client(model: Path) -> AsyncIterator[EngineClient]:
    config = EngineConfig(model=str(model), max_num_seqs=2, max_num_batched_tokens=64, max_waiting=1)
    client = await EngineClient.start(config, engine_args=SIMULATED)
    yield client
    await client.shutdown()


def submit(
    client: EngineClient, prompts: list[list[int]], sampling: SamplingParams, *, request_id: str, stream: bool
) -> PendingRequest:
    """Prompt i of several is known as "<request_id>-<i>"."""
    ids = [request_id] if len(prompts) == 1 else [f"{request_id}-{i}" for i in range(len(prompts))]
    requests = [
        NewRequest(request_id=one, prompt=client.pack(prompt), sampling=sampling) for one, prompt in zip(ids, prompts)
    ]
    return client.submit(requests, stream=stream)


async def idle(client: EngineClient) -> None:
    """Until the engine says that it has nothing to do."""
    async with asyncio.timeout(PATIENCE):
        while client.snapshot.has_work or client.snapshot.num_requests_added != client.snapshot.num_requests_ended:
            await asyncio.sleep(0.01)


async def ended(client: EngineClient, count: int) -> None:
    """Until the engine says that so many requests have ended since its start."""
    async with asyncio.timeout(PATIENCE):
        while client.snapshot.num_requests_ended < count:
            await asyncio.sleep(0.01)


async def all_updates(client: EngineClient, request_id: str, *, stream: bool, **sampling: object) -> list[Update]:
    params = SamplingParams(**{"max_tokens": 5, **sampling})
    prompts = [[1, 2, 3], [4, 5]]
    with submit(client, prompts, params, request_id=request_id, stream=stream) as pending:
        return [update async for updates in pending for update in updates]


async def test_a_stream_brings_deltas_and_a_whole_the_output(client: EngineClient) -> None:
    outputs = await all_updates(client, "whole", stream=False)
    assert sorted(update.prompt_index for update in outputs) == [0, 1]
    deltas = await all_updates(client, "stream", stream=True)
    for output in outputs:
        assert isinstance(output.output, RequestOutput) and output.output.finished
        mine = [update.output for update in deltas if update.prompt_index == output.prompt_index]
        assert [token for delta in mine for token in delta.token_ids] == output.output.outputs[0].token_ids
        assert [delta.finished for delta in mine] == [False] * (len(mine) - 1) + [True]
    assert client.num_open == 0


async def test_leaving_early_aborts(client: EngineClient) -> None:
    with submit(client, [[1]], LONG, request_id="a", stream=True) as pending:
        await anext(pending)
        assert client.num_open == 1
    assert client.num_open == 0
    await idle(client)
    assert client.snapshot.num_generation_tokens < 250


async def test_what_the_engine_refuses_is_raised(client: EngineClient) -> None:
    async def refused(prompts: list[list[int]], sampling: SamplingParams = LONG, request_id: str = "x") -> None:
        with submit(client, prompts, sampling, request_id=request_id, stream=True) as pending:
            await anext(pending)

    with pytest.raises(RequestError, match=r"256 tokens\. However, the prompt is too long: it has 300 tokens"):
        await refused([[1] * 300])
    with submit(client, [[1]] * 3, LONG, request_id="full", stream=True) as pending:
        await anext(pending)
        with pytest.raises(QueueFullError, match="3 requests inside"):
            await refused([[1]])
    await ended(client, 3)
    with pytest.raises(RequestError, match="99999"):
        await refused([[99_999]])
    with submit(client, [[1]], LONG, request_id="same", stream=True) as pending:
        with pytest.raises(DuplicateRequestError):
            await refused([[1]], request_id="same")
        await anext(pending)  # which has not been disturbed
    await idle(client)


async def test_stop_strings_end_a_request_in_the_engine_too(client: EngineClient) -> None:
    (before, _) = await all_updates(client, "free", stream=False, max_tokens=40, ignore_eos=True)
    text = before.output.outputs[0].text
    stop = text[5:8]
    await idle(client)
    steps = client.snapshot.step_id
    (stopped, _) = await all_updates(client, "stopped", stream=False, max_tokens=40, ignore_eos=True, stop=stop)
    answer = stopped.output.outputs[0]
    assert (answer.text, answer.finish_reason, answer.stop_reason) == (text[: text.index(stop)], "stop", stop)
    await idle(client)
    assert client.snapshot.step_id - steps <= 50


async def test_a_pause_gives_what_there_is_and_a_resume_goes_on(client: EngineClient) -> None:
    pending = submit(client, [[1]], LONG, request_id="a", stream=True)
    updates = await anext(pending)
    await client.pause()
    assert await client.is_paused()
    updates += [update async for updates in pending for update in updates]
    assert updates[-1].output.finish_reason is FinishReason.ABORT
    assert sum(len(update.output.token_ids) for update in updates) < 250
    with pytest.raises(EnginePausedError), submit(client, [[1]], LONG, request_id="b", stream=True) as refused:
        await anext(refused)
    await client.resume()
    assert not await client.is_paused()
    assert await all_updates(client, "c", stream=False)


async def test_a_cache_that_was_reset_helps_no_request(client: EngineClient) -> None:
    async def cached() -> int:
        params = SamplingParams(max_tokens=1)
        with submit(client, [[7] * 40], params, request_id="a", stream=False) as pending:
            ((update,),) = [updates async for updates in pending]
        assert isinstance(update.output, RequestOutput)
        return update.output.num_cached_tokens

    assert (await cached(), await cached()) == (0, 32)
    assert await client.reset_prefix_cache() >= 2
    assert (await client.audit()).num_blocks_evictable == 0
    assert await cached() == 0


async def test_a_killed_engine_fails_what_is_open_and_what_comes(client: EngineClient) -> None:
    whole = submit(client, [[1]], LONG, request_id="a", stream=False)
    stream = submit(client, [[2]], LONG, request_id="b", stream=True)
    await anext(stream)
    os.kill(client.engine_pid, signal.SIGKILL)
    for pending in (whole, stream):
        with pytest.raises(EngineDeadError, match=r"the engine process has ended \(killed by SIGKILL\)"):
            async for _ in pending:
                pass
    assert client.num_open == 0
    assert "SIGKILL" in (client.why_unhealthy() or "")
    with pytest.raises(EngineDeadError, match="SIGKILL"):
        submit(client, [[1]], LONG, request_id="c", stream=True)
    with pytest.raises(EngineDeadError, match="SIGKILL"):
        await client.audit()


async def test_a_shutdown_fails_what_is_open(client: EngineClient) -> None:
    pending = submit(client, [[1]], LONG, request_id="a", stream=True)
    await anext(pending)
    await client.shutdown()
    with pytest.raises(EngineDeadError, match="shutting down"):
        async for _ in pending:
            pass
    with pytest.raises(EngineDeadError):
        submit(client, [[1]], LONG, request_id="b", stream=True)


async def test_finish_reasons_arrive(client: EngineClient) -> None:
    (first, _) = await all_updates(client, "a", stream=False, max_tokens=4)
    assert first.output.outputs[0].finish_reason is FinishReason.LENGTH
    token = first.output.outputs[0].token_ids[1]
    (second, _) = await all_updates(client, "b", stream=False, max_tokens=4, stop_token_ids=(token,))
    answer = second.output.outputs[0]
    assert (answer.finish_reason, answer.stop_reason, len(answer.token_ids)) == (FinishReason.STOP, token, 2)


async def test_a_model_that_is_not_there_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        await EngineClient.start(EngineConfig(model="/no/such/model"), engine_args=SIMULATED)
    assert list(tmp_path.iterdir()) == []


async def test_a_long_temp_folder_is_no_problem(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    client = await EngineClient.start(EngineConfig(model=str(model)), engine_args=SIMULATED)
    assert await all_updates(client, "a", stream=False)
    await client.shutdown()
    assert list(deep.iterdir()) == []
