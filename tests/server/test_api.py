"""The routes, in front of an engine that spells "hello": what answers look like, and what errors become."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from headway.request import FinishReason
from headway.scheduler.effects import RequestEnd
from headway.wire import to_client, to_engine
from tests.server.conftest import Api
from tests.server.fakes import ANSWER, MAX_MODEL_LEN, MODEL, settled, status

MakeApi = Callable[..., Api]
USER = [{"role": "user", "content": "hi"}]


async def post(api: Api, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    if path == "/v1/completions":
        body = {"prompt": "ab", **body}
    elif path == "/v1/chat/completions":
        body = {"messages": USER, **body}
    return await api.post(path, json=body)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream that ended properly."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, last = response.text.strip().split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


# -- answers


async def test_a_completion(api: Api) -> None:
    response = await post(api)
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "text_completion" and body["model"] == MODEL and body["id"].startswith("cmpl-")
    assert body["choices"] == [
        {"index": 0, "text": ANSWER, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ]
    assert body["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 5,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


async def test_choices_are_numbered_prompt_by_prompt(api: Api) -> None:
    body = (await post(api, prompt=["a", "bcd"], n=2, echo=True)).json()
    texts = {choice["index"]: choice["text"] for choice in body["choices"]}
    assert texts == {0: "ahello", 1: "ahello", 2: "bcdhello", 3: "bcdhello"}
    # A prompt counts once, however many answers it has.
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (4, 20)


async def test_token_ids_are_taken_as_they_are(api: Api) -> None:
    tokens = (await post(api, "/tokenize", prompt="xyz")).json()["tokens"]
    body = (await post(api, prompt=tokens, echo=True)).json()
    assert body["choices"][0]["text"] == "xyzhello"
    (group,) = api.link.sent_of(to_engine.AddGroup)
    assert group.requests[0].prompt.tolist() == tokens


async def test_logprobs_of_a_completion(api: Api) -> None:
    logprobs = (await post(api, max_tokens=2, logprobs=1)).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["h", "e"],
        "token_logprobs": [-1.0, -1.0],
        "top_logprobs": [{"h": -1.0}, {"e": -1.0}],
        "text_offset": [0, 1],
    }


async def test_a_streamed_completion_is_the_same_text_in_pieces(api: Api) -> None:
    chunks = events(await post(api, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "length"]
    assert all("usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_offsets_of_streamed_logprobs_go_on_from_chunk_to_chunk(api: Api) -> None:
    chunks = events(await post(api, stream=True, logprobs=0, max_tokens=3))
    offsets = [offset for chunk in chunks for offset in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == [0, 1, 2]


async def test_a_stream_tells_its_usage_at_the_end_if_asked(api: Api) -> None:
    chunks = events(await post(api, stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 5


async def test_a_stream_tells_its_usage_all_along_if_asked(api: Api) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(await post(api, stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]  # deltas that wait become one
    assert counts == sorted(counts) and counts[0] == 1 and counts[-2:] == [5, 5]


async def test_a_streamed_echo_begins_with_the_prompt(api: Api) -> None:
    chunks = events(await post(api, prompt=["a", "b"], echo=True, stream=True))
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "ahello", 1: "bhello"}


async def test_a_chat_completion(api: Api) -> None:
    body = (await post(api, "/v1/chat/completions", max_tokens=4, logprobs=True, top_logprobs=1)).json()
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-")
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "hell", "refusal": None}
    assert choice["logprobs"]["content"][0] == {
        "token": "h",
        "logprob": -1.0,
        "bytes": [104],
        "top_logprobs": [{"token": "h", "logprob": -1.0, "bytes": [104]}],
    }
    (group,) = api.link.sent_of(to_engine.AddGroup)
    prompt = group.requests[0].prompt
    assert api.client.tokenizer.decode(prompt) == "<|user|>hi<|assistant|>"


async def test_a_streamed_chat_begins_with_the_role(api: Api) -> None:
    chunks = events(await post(api, "/v1/chat/completions", stream=True, n=2))
    for number in (0, 1):
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"][0]["index"] == number]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == ANSWER
        assert all("role" not in delta for delta in deltas[1:])
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


async def test_a_stop_string_ends_the_answer_and_tells_the_engine(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    task = asyncio.create_task(post(api, stop=["l"]))
    while not api.link.sent:
        await asyncio.sleep(0)
    (group,) = api.link.sent_of(to_engine.AddGroup)
    uid = group.requests[0].uid
    for token in api.link.tokens[:4]:  # "hell": the second l is past the stop
        api.link.step([uid], [token])
    choice = (await task).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("he", "stop", "l")
    assert api.link.sent_of(to_engine.Finish) == [to_engine.Finish([uid])]
    assert not api.link.sent_of(to_engine.Abort)


async def test_the_models_own_sampling_defaults_are_used(api: Api) -> None:
    await post(api)
    await post(api, temperature=0.9)
    temperatures = [group.requests[0].sampling.temperature for group in api.link.sent_of(to_engine.AddGroup)]
    assert temperatures == [0.5, 0.9]


async def test_seeded_answers_of_one_request_differ(api: Api) -> None:
    await post(api, n=2, seed=7)
    (group,) = api.link.sent_of(to_engine.AddGroup)
    assert [add.sampling.seed for add in group.requests] == [7, 8]


async def test_the_rest_of_what_the_engine_is_told(api: Api) -> None:
    response = await post(api, request_id="mine", priority=-2, cache_salt="s", stop_token_ids=[3])
    assert response.json()["id"] == "mine"
    (add,) = api.link.sent_of(to_engine.AddGroup)[0].requests
    assert (add.request_id, add.priority, add.cache_salt) == ("mine", -2, "s")
    assert add.sampling.stop_token_ids == (3,)


async def test_models(api: Api) -> None:
    (card,) = (await api.get("/v1/models")).json()["data"]
    assert card["id"] == MODEL and card["max_model_len"] == MAX_MODEL_LEN and card["object"] == "model"
    assert (await api.get(f"/v1/models/{MODEL}")).json() == card
    assert (await api.get("/v1/models/other")).status_code == 404


async def test_tokenize_and_detokenize_are_inverse(api: Api) -> None:
    body = (await post(api, "/tokenize", prompt="grüß", return_token_strs=True)).json()
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"]) == 6
    assert body["max_model_len"] == MAX_MODEL_LEN
    assert (await post(api, "/detokenize", tokens=body["tokens"])).json() == {"prompt": "grüß"}


async def test_a_conversation_can_be_tokenized(api: Api) -> None:
    body = (await post(api, "/tokenize", messages=USER)).json()
    text = (await post(api, "/detokenize", tokens=body["tokens"])).json()["prompt"]
    assert text == "<|user|>hi<|assistant|>"


async def test_a_long_text_is_tokenized_like_a_short_one(api: Api) -> None:
    body = (await post(api, "/tokenize", prompt="ab" * 10_000)).json()
    assert body["count"] == 20_000


async def test_version_and_documentation(api: Api) -> None:
    assert set((await api.get("/version")).json()) == {"version"}
    schema = (await api.get("/openapi.json")).json()
    body = schema["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].rsplit("/", 1)[1] in schema["components"]["schemas"]
    assert (await api.get("/openapi.json")).json() == schema


# -- errors


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/completions", {"use_beam_search": True}, "the field 'use_beam_search' is not supported"),
        ("/v1/completions", {"prompt": 3}, "prompt must be a string"),
        ("/v1/completions", {"temperature": -1}, "temperature must be in [0, 100], got -1"),
        ("/v1/completions", {"top_p": 0}, "top_p must be in (0, 1], got 0"),
        ("/v1/completions", {"n": 0}, "n must be in [1, 128], got 0"),
        ("/v1/completions", {"max_tokens": -5}, "max_tokens must be at least 0, got -5"),
        ("/v1/completions", {"logprobs": 99}, "logprobs must be in [0, 20], got 99"),
        ("/v1/completions", {"stop": ""}, "stop must not contain an empty string"),
        ("/v1/completions", {"prompt": [2**40]}, str(2**40)),
        ("/v1/completions", {"echo": True, "prompt": [999_999]}, "999999"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"functions": [{}]}, "functions is not supported"),
        ("/v1/chat/completions", {"chat_template_kwargs": {"tokenize": True}}, "must not set 'tokenize'"),
        ("/tokenize", {"prompt": 1}, "prompt: Input should be a valid string, got 1"),
        ("/detokenize", {"tokens": [-1]}, "-1"),
        ("/detokenize", {"tokens": [100_000]}, "100000"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
async def test_bad_values_are_a_400_that_names_them(api: Api, path: str, body: Any, message: str) -> None:
    response = await post(api, path, **body)
    assert response.status_code == 400
    error = error_of(response)
    assert message in error["message"] and error["type"] == "invalid_request_error"
    assert not api.link.sent, "nothing of it may reach the engine"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "http://localhost/video.mp4"}},
    ],
)
async def test_an_image_in_a_message_is_refused_by_its_type(api: Api, path: str, part: dict[str, Any]) -> None:
    """Models that take images too are served, for their text."""
    content = [{"type": "text", "text": "What is this?"}, part]
    response = await post(api, path, messages=[{"role": "user", "content": content}])
    assert response.status_code == 400
    message = error_of(response)["message"]
    assert f"content parts of type {part['type']!r} are not served" in message and "type 'text'" in message
    assert not api.link.sent


@pytest.mark.parametrize("content", [b'{"prompt": "\xff"}', b"{", b"", b"\x00\x01"])
async def test_a_body_that_is_not_json_in_utf8_is_a_400(api: Api, content: bytes) -> None:
    response = await api.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "not valid JSON in UTF-8" in error_of(response)["message"]


async def test_a_body_of_another_type_is_a_415(api: Api) -> None:
    response = await api.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 415 and "text/plain" in error_of(response)["message"]


async def test_a_body_without_end_is_a_413(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.server.body.MAX_BODY", 100)
    response = await post(api, prompt="a" * 200)
    assert response.status_code == 413 and "100" in error_of(response)["message"]


async def test_unknown_paths_and_methods_answer_in_the_same_form(api: Api) -> None:
    assert (await api.get("/nowhere")).status_code == 404
    response = await api.get("/v1/completions")
    assert response.status_code == 405 and error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
async def test_an_unknown_model_is_a_404(api: Api, path: str) -> None:
    body = {"model": "gpt-x", "prompt": "a"} if path == "/tokenize" else {"model": "gpt-x"}
    response = await post(api, path, **body)
    assert response.status_code == 404 and error_of(response)["code"] == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "code", "name"),
    [
        ("invalid", 400, None),
        ("duplicate", 409, "duplicate_request_id"),
        ("context_length", 400, "context_length_exceeded"),
        ("queue_full", 503, "queue_full"),
        ("paused", 503, "engine_paused"),
        ("dead", 503, "engine_dead"),
        ("internal", 500, "internal_error"),
    ],
)
async def test_what_the_engine_refuses_becomes_the_status_even_of_a_stream(
    make_api: MakeApi, kind: str, code: int, name: str | None, stream: bool
) -> None:
    response = await post(make_api(refuse=(kind, "because of 7 and 8")), stream=stream)
    assert response.status_code == code
    error = error_of(response)
    assert error["code"] == name
    assert kind == "internal" or error["message"] == "because of 7 and 8"
    assert response.headers.get("retry-after") == {"queue_full": "1", "paused": "5"}.get(kind)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_group_of_which_one_is_refused_is_refused_whole(make_api: MakeApi, stream: bool) -> None:
    api = make_api(refuse=("paused", "paused"), refuse_after=2)
    assert (await post(api, n=2)).status_code == 200
    response = await post(api, prompt=["a", "b", "c"], stream=stream)
    assert response.status_code == 503
    uids = [add.uid for add in api.link.sent_of(to_engine.AddGroup)[-1].requests]
    assert api.link.sent[-1] == to_engine.Abort(uids) and api.client.num_open == 0


# Acceptance and outputs come from two threads of the engine process, so either may be first.


async def submitted_group(api: Api, *, stream: bool) -> tuple[asyncio.Task[httpx.Response], list[int]]:
    task = asyncio.create_task(post(api, n=2, max_tokens=2, stream=stream))
    while not api.link.sent:
        await asyncio.sleep(0)
    return task, [add.uid for add in api.link.sent_of(to_engine.AddGroup)[0].requests]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_group_shows_nothing_before_the_engine_has_said_what_it_takes(make_api: MakeApi, stream: bool) -> None:
    api = make_api(silent=True, accept=False)
    task, uids = await submitted_group(api, stream=stream)
    api.link.step(uids[:1], api.link.tokens[:1])
    api.link.step([], [], [RequestEnd(uids[0], "", FinishReason.LENGTH)])
    await settled()
    assert not task.done()
    api.link.say(to_client.Refused(uids[0], 1, "paused", "paused"))
    assert (await task).status_code == 503
    assert api.client.num_open == 0 and api.link.sent[-1] == to_engine.Abort(uids[1:])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_group_may_be_complete_before_it_is_known_to_be_accepted(make_api: MakeApi, stream: bool) -> None:
    api = make_api(silent=True, accept=False)
    task, uids = await submitted_group(api, stream=stream)
    api.link.step(uids, api.link.tokens[:1] * 2)
    api.link.step(uids, api.link.tokens[1:2] * 2, [RequestEnd(uid, "", FinishReason.LENGTH) for uid in uids])
    await settled()
    assert not task.done() and api.client.num_open == 1
    api.link.say(to_client.Accepted(uids[0]))
    response = await task
    assert response.status_code == 200 and api.client.num_open == 0
    texts = {0: "", 1: ""}
    for body in events(response) if stream else [response.json()]:
        for choice in body["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "he", 1: "he"}


async def test_an_id_that_is_in_use_is_a_409(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    first = asyncio.create_task(post(api, request_id="same"))
    while not api.link.sent:
        await asyncio.sleep(0)
    response = await post(api, request_id="same")
    assert response.status_code == 409 and error_of(response)["code"] == "duplicate_request_id"
    assert len(api.link.sent) == 1, "the first must not be disturbed"
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    api.link.silent = False
    assert (await post(api, request_id="same")).status_code == 200


async def test_an_id_whose_client_leaves_in_a_moment_is_waited_for(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    first = asyncio.create_task(post(api, request_id="same"))
    while not api.link.sent:
        await asyncio.sleep(0)
    api.link.silent = False
    second = asyncio.create_task(post(api, request_id="same"))
    await settled()
    assert not second.done()
    first.cancel()
    assert (await second).status_code == 200


async def test_a_request_that_fails_is_a_500_that_says_why(make_api: MakeApi) -> None:
    response = await post(make_api(error="the step failed"))
    assert response.status_code == 500 and error_of(response)["message"] == "the step failed"


async def test_a_failure_in_the_middle_of_a_stream_comes_as_an_event(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    task = asyncio.create_task(post(api, stream=True, n=2))
    while not api.link.sent:
        await asyncio.sleep(0)
    uid = api.link.sent_of(to_engine.AddGroup)[0].requests[0].uid
    api.link.step([uid], api.link.tokens[:1])
    await settled()
    api.link.end("killed by SIGKILL")
    response = await task
    assert response.status_code == 200
    *_, last = events(response)
    assert last["error"]["code"] == "engine_dead" and "SIGKILL" in last["error"]["message"]


async def test_a_dead_engine_fails_what_is_open_and_what_comes(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    task = asyncio.create_task(post(api))
    while not api.link.sent:
        await asyncio.sleep(0)
    api.link.end("killed by SIGKILL")
    for response in (await task, await post(api), await api.get("/health")):
        assert response.status_code == 503
        assert "killed by SIGKILL" in error_of(response)["message"]


async def test_an_engine_that_gives_up_fails_what_is_open(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    task = asyncio.create_task(post(api))
    while not api.link.sent:
        await asyncio.sleep(0)
    api.link.say(status(failure="an invariant is broken"))
    response = await task
    assert response.status_code == 503 and error_of(response)["message"] == "an invariant is broken"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_a_pause_cuts_short_is_what_there_is_of_it(make_api: MakeApi, stream: bool) -> None:
    api = make_api(silent=True)
    task = asyncio.create_task(post(api, stream=stream))
    while not api.link.sent:
        await asyncio.sleep(0)
    uid = api.link.sent_of(to_engine.AddGroup)[0].requests[0].uid
    api.link.step([uid], api.link.tokens[:1])
    api.link.step([], [], [RequestEnd(uid, "", FinishReason.ABORT, error="the engine was paused")])
    response = await task
    assert response.status_code == 200 and api.client.num_open == 0
    bodies = events(response) if stream else [response.json()]
    assert "".join(body["choices"][0]["text"] for body in bodies) == "h"
    assert bodies[-1]["choices"][0]["finish_reason"] == "abort"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_the_end_of_the_engine_cuts_short_is_a_503(make_api: MakeApi, stream: bool) -> None:
    api = make_api(silent=True)
    task = asyncio.create_task(post(api, stream=stream))
    while not api.link.sent:
        await asyncio.sleep(0)
    uid = api.link.sent_of(to_engine.AddGroup)[0].requests[0].uid
    api.link.step([], [], [RequestEnd(uid, "", FinishReason.ABORT, error="bye", engine_stopped=True)])
    response = await task
    assert response.status_code == 503 and error_of(response)["code"] == "engine_dead"


async def test_a_client_that_goes_away_takes_its_request_along(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    for stream in (False, True):
        task = asyncio.create_task(post(api, stream=stream, n=2))
        while not len(api.link.sent_of(to_engine.AddGroup)) > stream:
            await asyncio.sleep(0)
        uids = [add.uid for add in api.link.sent_of(to_engine.AddGroup)[-1].requests]
        assert api.client.num_open == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert api.link.sent[-1] == to_engine.Abort(uids)
        assert api.client.num_open == 0


async def test_late_news_of_an_aborted_request_are_dropped(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    task = asyncio.create_task(post(api))
    while not api.link.sent:
        await asyncio.sleep(0)
    uid = api.link.sent_of(to_engine.AddGroup)[0].requests[0].uid
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    api.link.step([uid], [1])
    api.link.silent = False
    assert (await post(api)).json()["choices"][0]["text"] == ANSWER


async def test_a_finished_request_is_not_aborted(api: Api) -> None:
    await post(api)
    await post(api, stream=True)
    assert not api.link.sent_of(to_engine.Abort) and api.client.num_open == 0


async def test_a_model_without_a_chat_template_takes_no_conversation(api: Api) -> None:
    api.client.tokenizer.chat_template = None
    response = await post(api, "/v1/chat/completions")
    assert response.status_code == 400 and "no chat template" in error_of(response)["message"]


async def test_what_the_chat_template_refuses_is_a_400_in_its_words(api: Api) -> None:
    api.client.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    response = await post(api, "/v1/chat/completions")
    assert response.status_code == 400 and "roles must alternate" in error_of(response)["message"]


async def test_the_chat_template_gets_the_clients_own_variables(api: Api) -> None:
    api.client.tokenizer.chat_template = "{{ mood }}"
    body = (await post(api, "/tokenize", messages=USER, chat_template_kwargs={"mood": "gay"})).json()
    assert body["count"] == 3


TEMPLATE = "{{ messages[-1].content }}!"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
async def test_a_template_in_a_request_needs_the_operators_trust(make_api: MakeApi, path: str) -> None:
    response = await post(make_api(), path, messages=USER, chat_template=TEMPLATE)
    assert response.status_code == 400
    error = error_of(response)
    assert "--trust-request-chat-template" in error["message"] and error["param"] == "chat_template"
    trusting = make_api(trust_request_chat_template=True)
    assert (await post(trusting, path, messages=USER, chat_template=TEMPLATE)).status_code == 200


async def test_a_request_may_choose_a_template_of_the_models_by_name(make_api: MakeApi) -> None:
    api = make_api()
    api.client.tokenizer.chat_template = {"default": "{{ raise_exception('not me') }}", "short": TEMPLATE}
    assert (await post(api, "/tokenize", messages=USER, chat_template="short")).status_code == 200


async def test_a_broken_chat_template_is_not_blamed_on_the_messages(api: Api) -> None:
    api.client.tokenizer.chat_template = "{% for %}"
    message = error_of(await post(api, "/v1/chat/completions"))["message"]
    assert "the chat template is broken" in message and "line 1" in message and "--chat-template" in message


async def test_the_generation_configs_max_new_tokens_is_a_limit_as_in_vllm(api: Api) -> None:
    api.client.files.default_sampling["max_tokens"] = 2
    for path, given in (("/v1/chat/completions", {}), ("/v1/completions", {"max_tokens": 5})):
        answer = (await post(api, path, **given)).json()
        assert answer["usage"]["completion_tokens"] == 2 and answer["choices"][0]["finish_reason"] == "length"
    assert (await post(api, max_tokens=1)).json()["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("trust", [False, True])
async def test_no_template_comes_in_by_the_back_door(make_api: MakeApi, trust: bool) -> None:
    kwargs = {"chat_template": TEMPLATE}
    response = await post(
        make_api(trust_request_chat_template=trust), "/tokenize", messages=USER, chat_template_kwargs=kwargs
    )
    assert response.status_code == 400 and "must not set 'chat_template'" in error_of(response)["message"]


async def test_a_request_reads_no_file_of_the_servers(make_api: MakeApi, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE)
    trusting = make_api(trust_request_chat_template=True)
    response = await post(trusting, "/tokenize", messages=USER, chat_template=str(file))
    assert response.status_code == 400 and str(file)[:90] in error_of(response)["message"]


async def test_the_operators_template_stands_for_the_models(make_api: MakeApi) -> None:
    api = make_api(chat_template=TEMPLATE)
    assert (await post(api, "/tokenize", messages=USER)).json()["count"] == len("hi!")


# -- health, draining, metrics


async def test_health_follows_the_engine(api: Api) -> None:
    assert (await api.get("/health")).status_code == 200
    api.link.say(status(stalled=True))
    await settled()
    response = await api.get("/health")
    assert response.status_code == 503 and "no progress" in error_of(response)["message"]
    api.link.say(status())
    await settled()
    assert (await api.get("/health")).status_code == 200


async def test_an_engine_that_is_silent_is_not_healthy(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.client.engine_life.SILENCE_LIMIT", 0.0)
    response = await api.get("/health")
    assert response.status_code == 503 and "has not answered" in error_of(response)["message"]


async def test_a_server_that_drains_takes_nothing_new(api: Api) -> None:
    api.app.state.service.draining = True
    for response in (await post(api), await post(api, "/v1/chat/completions"), await api.get("/health")):
        assert response.status_code == 503 and error_of(response)["code"] == "shutting_down"
    assert not api.link.sent


async def test_metrics_carry_both_names(api: Api) -> None:
    counts = {"num_running": 3, "num_waiting": 2, "num_preparing": 6, "num_reserved": 7, "num_sending": 8}
    for _ in range(2):
        api.link.say(status(**counts, paused=True, num_blocks_total=10, num_blocks_free=5, num_preemptions=4))
    await post(api)
    await post(api, stream=True, max_tokens=3)
    page = (await api.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    label = f'{{engine="0",model_name="{MODEL}"}}'
    expected = {
        f"num_requests_running{label}": 3,
        f"num_requests_waiting{label}": 2 + 6,
        f"num_requests_preparing{label}": 6,
        f"num_requests_reserved{label}": 7,
        f"num_requests_sending{label}": 8,
        f"engine_paused{label}": 1,
        f"kv_cache_usage_perc{label}": 0.5,
        f"num_preemptions_total{label}": 4,
        f"generation_tokens_total{label}": 8,
        f'request_success_total{{engine="0",finished_reason="length",model_name="{MODEL}"}}': 2,
        f"time_to_first_token_seconds_count{label}": 2,
        f"inter_token_latency_seconds_count{label}": 6,
        f"request_time_per_output_token_seconds_count{label}": 2,
        f"e2e_request_latency_seconds_count{label}": 2,
        f"prompt_tokens_total{label}": 0,
        f"prefix_cache_queries_total{label}": 0,
        f"prefix_cache_hits_total{label}": 0,
    }
    for name, value in expected.items():
        for prefix in ("headway:", "vllm:"):
            assert float(values[prefix + name]) == value, prefix + name
