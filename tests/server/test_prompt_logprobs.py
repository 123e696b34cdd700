"""Log-probabilities of prompts over HTTP: in the forms of OpenAI (`echo` with `logprobs`) and of vLLM
(`prompt_logprobs`), whole and streamed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from headway.client import text_pool
from headway.request import FinishReason, Transfer
from headway.scheduler.effects import Effects, RequestEnd
from headway.wire import to_client, to_engine
from tests.server.conftest import Api
from tests.server.fakes import ANSWER, settled

CHAT = "/v1/chat/completions"


async def post(api: Api, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
    start = {"messages": [{"role": "user", "content": "ab"}]} if path == CHAT else {"prompt": "abcde"}
    response = await api.post(path, json={**start, **fields})
    assert response.status_code == 200, response.text
    return response


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    *lines, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(line) for line in lines]


def entry(rank: int, logprob: float, text: str) -> dict[str, Any]:
    return {"logprob": logprob, "rank": rank, "decoded_token": text}


async def test_an_echo_with_logprobs_and_no_answer_is_the_prompt_with_its_logprobs(api: Api) -> None:
    body = (await post(api, prompt="abc", echo=True, logprobs=1, max_tokens=0)).json()
    (choice,) = body["choices"]
    assert choice["text"] == "abc" and choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 0 and body["usage"]["total_tokens"] == 3
    other = [api.client.tokenizer.decode([token]) for token in (1, 2)]
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -1.0, -2.0],
        "top_logprobs": [None, {"b": -1.0, other[0]: 0.0}, {"c": -2.0, other[1]: 0.0}],
        "text_offset": [0, 1, 2],
    }
    assert "prompt_logprobs" not in choice


async def test_an_echo_goes_on_with_the_logprobs_of_the_answer(api: Api) -> None:
    (choice,) = (await post(api, prompt="abc", echo=True, logprobs=0, max_tokens=2)).json()["choices"]
    assert choice["text"] == "abche"
    assert choice["logprobs"] == {
        "tokens": [*"abche"],
        "token_logprobs": [None, -1.0, -2.0, -1.0, -1.0],
        "top_logprobs": [None, {"b": -1.0}, {"c": -2.0}, {"h": -1.0}, {"e": -1.0}],
        "text_offset": [0, 1, 2, 3, 4],
    }


async def test_a_prompt_of_one_token_has_no_logprob(api: Api) -> None:
    (choice,) = (await post(api, prompt="a", echo=True, logprobs=0, max_tokens=0)).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None] and choice["logprobs"]["tokens"] == ["a"]


async def test_max_tokens_0_without_an_echo_is_an_empty_answer(api: Api) -> None:
    body = (await post(api, max_tokens=0, logprobs=1)).json()
    assert body["choices"][0]["text"] == "" and body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["logprobs"]["tokens"] == [] and body["usage"]["completion_tokens"] == 0


async def test_max_tokens_0_ends_by_length_although_the_engine_saw_the_end_of_sequence(make_api: Any) -> None:
    api = make_api(reason=FinishReason.STOP)
    for stream in (False, True):
        response = await post(api, max_tokens=0, echo=True, stream=stream)
        choices = [one["choices"][0] for one in (chunks(response) if stream else [response.json()])]
        assert "".join(choice["text"] for choice in choices) == "abcde"
        assert choices[-1]["finish_reason"] == "length"


async def test_prompt_logprobs_of_a_completion_have_vllms_form(api: Api) -> None:
    (choice,) = (await post(api, prompt="abc", prompt_logprobs=1, max_tokens=1)).json()["choices"]
    ids = api.client.tokenizer.encode("abc")
    other = [api.client.tokenizer.decode([token]) for token in (1, 2)]
    assert choice["prompt_logprobs"] == [
        None,
        {str(ids[1]): entry(5, -1.0, "b"), "1": entry(1, 0.0, other[0])},
        {str(ids[2]): entry(5, -2.0, "c"), "2": entry(1, 0.0, other[1])},
    ]
    assert choice["text"] == "h" and choice["logprobs"] is None


async def test_prompt_logprobs_and_an_echo_show_each_as_many_alternatives_as_were_asked_for(api: Api) -> None:
    (choice,) = (await post(api, echo=True, logprobs=0, prompt_logprobs=3, max_tokens=0)).json()["choices"]
    assert [len(top) for top in choice["logprobs"]["top_logprobs"][1:]] == [1] * 4
    assert [len(found) for found in choice["prompt_logprobs"][1:]] == [4] * 4


async def test_a_chat_completion_has_them_beside_its_choices(api: Api) -> None:
    body = (await post(api, CHAT, prompt_logprobs=0, max_tokens=1)).json()
    assert len(body["prompt_logprobs"]) == body["usage"]["prompt_tokens"]
    assert body["prompt_logprobs"][0] is None and all(len(found) == 1 for found in body["prompt_logprobs"][1:])
    silent = (await post(api, CHAT, max_tokens=1)).json()
    assert "prompt_logprobs" not in silent


async def test_every_choice_of_every_prompt_has_the_logprobs_of_its_prompt(api: Api) -> None:
    body = (await post(api, prompt=["ab", "cdef"], n=2, echo=True, logprobs=0, max_tokens=1)).json()
    tokens = {choice["index"]: "".join(choice["logprobs"]["tokens"]) for choice in body["choices"]}
    assert tokens == {0: "abh", 1: "abh", 2: "cdefh", 3: "cdefh"}
    (group,) = api.link.sent_of(to_engine.AddGroup)
    asked = {add.request_id.partition("-")[2]: add.sampling.prompt_logprobs for add in group.requests}
    assert sorted(map(str, asked.values())) == ["0", "0", "None", "None"]  # once for each prompt


@pytest.mark.parametrize("most_short", [text_pool.SHORT, 0])  # 0: the text is made on a thread
async def test_a_stream_begins_with_the_prompt_and_its_logprobs(
    api: Api, monkeypatch: pytest.MonkeyPatch, most_short: int
) -> None:
    monkeypatch.setattr(text_pool, "SHORT", most_short)
    fields = {"prompt": ["abc", "de"], "n": 2, "echo": True, "logprobs": 1, "prompt_logprobs": 0, "max_tokens": 3}
    whole = {choice["index"]: choice for choice in (await post(api, **fields)).json()["choices"]}
    streamed: dict[int, dict[str, Any]] = {}
    for chunk in chunks(await post(api, **fields, stream=True)):
        (choice,) = chunk["choices"]
        so_far = streamed.get(choice["index"])
        if so_far is None:
            streamed[choice["index"]] = choice
            assert choice["text"] in ("abc", "de") and choice["logprobs"]["token_logprobs"][0] is None
            assert len(choice["prompt_logprobs"]) == len(choice["text"])
            continue
        assert "prompt_logprobs" not in choice
        so_far["text"] += choice["text"]
        so_far["finish_reason"] = choice["finish_reason"]
        for name, column in choice["logprobs"].items():
            so_far["logprobs"][name] += column
    assert streamed == whole


async def test_a_stream_of_a_chat_begins_with_them(api: Api) -> None:
    first, *rest = chunks(await post(api, CHAT, prompt_logprobs=0, max_tokens=2, stream=True))
    assert first["prompt_logprobs"][0] is None and len(first["prompt_logprobs"]) > 1
    assert not any("prompt_logprobs" in chunk for chunk in rest)


async def test_an_answer_that_is_ahead_of_its_prompt_waits_for_it(make_api: Any) -> None:
    """Answer 1 finds the prompt in the cache; answer 0 computes it for its log-probabilities."""
    api = make_api(silent=True)
    fields = {"prompt": "abc", "n": 2, "echo": True, "logprobs": 0, "max_tokens": 1, "stream": True}
    client, link = api.client, api.link
    answering = asyncio.create_task(post(api, **fields))
    while not link.sent_of(to_engine.AddGroup):
        await asyncio.sleep(0)
    (group,) = link.sent_of(to_engine.AddGroup)
    first, second = group.requests
    token = client.tokenizer.encode("h")[0]
    link.step([second.uid], [token], [RequestEnd(second.uid, second.request_id, FinishReason.LENGTH)])
    await settled()
    link.judge(first.uid, 1, 2, 0)
    link.step([first.uid], [token], [RequestEnd(first.uid, first.request_id, FinishReason.LENGTH)])
    seen: dict[int, list[Any]] = {0: [], 1: []}
    for chunk in chunks(await answering):
        (choice,) = chunk["choices"]
        seen[choice["index"]] += choice["logprobs"]["token_logprobs"]
    assert seen == {0: [None, -1.0, -2.0, -1.0], 1: [None, -1.0, -2.0, -1.0]}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_cut_short_before_its_prompt_was_computed_has_no_logprobs_of_it(
    make_api: Any, stream: bool
) -> None:
    api = make_api(silent=True)
    fields = {"prompt": "abc", "echo": True, "logprobs": 0, "prompt_logprobs": 0, "stream": stream}
    answering = asyncio.create_task(post(api, **fields))
    while not api.link.sent_of(to_engine.AddGroup):
        await asyncio.sleep(0)
    ((add,),) = [group.requests for group in api.link.sent_of(to_engine.AddGroup)]
    api.link.judge(add.uid, 1, 1, 0)
    api.link.say(to_client.Step.of(Effects(ended=[RequestEnd(add.uid, add.request_id, FinishReason.ABORT)])))
    response = await answering
    choices = [one["choices"][0] for one in (chunks(response) if stream else [response.json()])]
    assert choices[-1]["finish_reason"] == "abort"
    assert not any("prompt_logprobs" in choice for choice in choices)
    assert not any(choice["logprobs"]["tokens"] for choice in choices if choice["logprobs"])


async def test_a_prompt_with_an_added_special_token_has_the_offsets_of_the_text_that_is_echoed(api: Api) -> None:
    ids = api.client.tokenizer.encode("abc")
    eos = api.client.tokenizer.eos_token_id
    (shown,) = (await post(api, prompt=[eos, *ids], echo=True, logprobs=0, max_tokens=0)).json()["choices"]
    name = api.client.tokenizer.decode([eos])
    assert shown["text"] == f"{name}abc"
    assert shown["logprobs"]["text_offset"] == [0, len(name), len(name) + 1, len(name) + 2]


async def test_what_asks_for_logprobs_of_a_prompt_computes_it_here(api: Api) -> None:
    wants = {"do_remote_prefill": True, "remote_engine_id": "p"}
    await post(api, prompt_logprobs=0, kv_transfer_params=wants)
    await post(api, kv_transfer_params=wants)
    asking, pulling = (group.requests[0] for group in api.link.sent_of(to_engine.AddGroup))
    assert asking.transfer is None and pulling.transfer is Transfer.PULL


@pytest.mark.parametrize("value", [-1, 21, "1", True])
async def test_other_numbers_are_refused_by_name(api: Api, value: Any) -> None:
    for path, start in (("/v1/completions", {"prompt": "a"}), (CHAT, {"messages": [{"role": "user", "content": "a"}]})):
        response = await api.post(path, json={**start, "prompt_logprobs": value})
        assert response.status_code == 400 and "prompt_logprobs" in response.json()["error"]["message"]


async def test_an_answer_without_them_is_as_it_was(api: Api) -> None:
    (choice,) = (await post(api, echo=True)).json()["choices"]
    assert choice["text"] == f"abcde{ANSWER}" and choice["logprobs"] is None and "prompt_logprobs" not in choice
