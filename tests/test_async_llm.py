"""`AsyncLLM`: the face of `LLM` for asyncio programs, many answers at once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from headway import LLM, AsyncLLM, RequestError, SamplingParams
from headway.errors import EngineDeadError
from tests.managers.driving import PATIENCE

GREEDY = SamplingParams(temperature=0, max_tokens=16)
QUESTION = [{"role": "user", "content": "12+34="}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llm() -> AsyncIterator[AsyncLLM]:
    async with AsyncLLM(max_num_seqs=4, max_waiting=4, num_blocks=256, max_model_len=128) as llm:
        yield llm


async def idle(llm: AsyncLLM) -> None:
    """Until every request that has come has ended."""
    async with asyncio.timeout(PATIENCE):
        while llm.snapshot().num_requests_added != llm.snapshot().num_requests_ended:
            await asyncio.sleep(0.01)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_answers_come_in_the_order_of_the_prompts(llm: AsyncLLM) -> None:
    outputs = await llm.generate(["12+34=", {"prompt": "7+8="}], GREEDY)
    assert [output.outputs[0].text for output in outputs] == ["46", "15"]
    assert [output.prompt for output in outputs] == ["12+34=", "7+8="]


async def test_there_may_be_more_prompts_than_the_engine_holds(llm: AsyncLLM) -> None:
    outputs = await llm.generate([f"{i}+1=" for i in range(10, 50)], GREEDY)
    assert [output.outputs[0].text for output in outputs] == [str(i + 1) for i in range(10, 50)]


async def test_a_stream_gives_the_answer_delta_by_delta(llm: AsyncLLM) -> None:
    deltas = [delta async for delta in llm.stream("12+34=", GREEDY)]
    assert "".join(delta.text for delta in deltas) == "46"
    assert [delta.finished for delta in deltas] == [False] * (len(deltas) - 1) + [True]


async def test_many_streams_run_at_the_same_time(llm: AsyncLLM) -> None:
    async def text(prompt: str) -> str:
        return "".join([delta.text async for delta in llm.stream(prompt, GREEDY)])

    assert await asyncio.gather(*(text(f"{i}+{i}=") for i in range(11, 17))) == [str(2 * i) for i in range(11, 17)]


async def test_a_stream_that_is_closed_aborts_its_request(llm: AsyncLLM) -> None:
    endless = SamplingParams(max_tokens=100, ignore_eos=True)
    async with aclosing(llm.stream("12+34=", endless)) as deltas:
        async for _ in deltas:
            break
        assert llm.num_open == 1
    assert llm.num_open == 0
    await idle(llm)


async def test_a_task_that_is_cancelled_aborts_its_requests(llm: AsyncLLM) -> None:
    endless = SamplingParams(max_tokens=100, ignore_eos=True)
    task = asyncio.ensure_future(llm.generate(["12+34="] * 3, endless))
    async with asyncio.timeout(PATIENCE):
        while not llm.snapshot().num_running:
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert llm.num_open == 0
    await idle(llm)


async def test_a_conversation_is_answered_whole_and_streamed(llm: AsyncLLM) -> None:
    (output,) = await llm.chat(QUESTION, GREEDY)
    assert output.outputs[0].text == "46"
    assert "".join([delta.text async for delta in llm.stream_chat(QUESTION, GREEDY)]) == "46"


async def test_a_bad_prompt_is_named_before_any_request_is_added(llm: AsyncLLM) -> None:
    before = llm.snapshot().num_requests_added
    with pytest.raises(RequestError, match="prompt 1"):
        await llm.generate([[1, 2], [10**6]], GREEDY)
    with pytest.raises(RequestError, match="role"):
        await llm.chat([{"role": "pirate", "content": "12+34="}], GREEDY)
    assert llm.snapshot().num_requests_added == before


async def test_without_a_start_the_remedy_is_named() -> None:
    with pytest.raises(RuntimeError, match="async with AsyncLLM"):
        await AsyncLLM().generate("1+1=")


async def test_after_the_shutdown_a_request_in_progress_ends_with_an_error() -> None:
    llm = AsyncLLM(max_num_seqs=1, num_blocks=64, max_model_len=128)
    await llm.start()
    task = asyncio.ensure_future(llm.generate("12+34=", SamplingParams(max_tokens=100, ignore_eos=True)))
    async with asyncio.timeout(PATIENCE):
        while not llm.snapshot().num_running:
            await asyncio.sleep(0.001)
    await llm.shutdown()
    await llm.shutdown()
    with pytest.raises(EngineDeadError):
        await task


async def test_unknown_settings_are_named() -> None:
    with pytest.raises(TypeError, match="max_num_seqs"):
        AsyncLLM(max_num_seq=4)


@pytest.mark.parametrize("name", ["generate", "chat", "stream", "stream_chat"])
async def test_its_arguments_are_those_of_llm(name: str) -> None:
    """But for what makes no sense on an event loop, or is not served yet."""
    own = inspect.signature(getattr(AsyncLLM, name)).parameters
    theirs = inspect.signature(getattr(LLM, name)).parameters
    assert set(theirs) - set(own) <= {"use_tqdm", "kv_transfer_params"}
    assert set(own) <= set(theirs)
