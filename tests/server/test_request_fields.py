"""Fields of vLLM and of other clients: what they do, and which values ask for nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from headway.request import NewRequest
from headway.wire import to_engine
from tests.server.conftest import Api
from tests.server.fakes import ANSWER, MAX_MODEL_LEN
from tests.tiny_tokenizer import CHAT_TEMPLATE, byte_ids, byte_tokenizer

MakeApi = Callable[..., Api]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "abcd"},
    CHAT: {"messages": [{"role": "user", "content": "abcd"}]},
}
ANSWER_IDS = byte_ids(byte_tokenizer(CHAT_TEMPLATE), ANSWER)


async def ask(api: Api, path: str, **fields: Any) -> dict[str, Any]:
    response = await api.post(path, json={**BODIES[path], **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())


async def refused(api: Api, path: str, **fields: Any) -> dict[str, Any]:
    response = await api.post(path, json={**BODIES[path], **fields})
    assert response.status_code == 400 and not api.link.sent, response.text
    return dict(response.json()["error"])


async def stream(api: Api, path: str, **fields: Any) -> list[dict[str, Any]]:
    response = await api.post(path, json={**BODIES[path], **fields, "stream": True})
    lines = [line.removeprefix("data: ") for line in response.text.strip().split("\n\n")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def sent(api: Api) -> NewRequest:
    """The request that the engine got last."""
    new: NewRequest = api.link.sent_of(to_engine.AddGroup)[-1].requests[-1]
    return new


# -- values that ask for nothing, and fields that are not known

_NOTHING: dict[str, Any] = {
    "use_beam_search": False,
    "length_penalty": 1.0,
    "logits_processors": None,
    "prompt_embeds": None,
    "documents": [],
    "kv_transfer_params": {},
    "response_format": {"type": "text"},
    "guided_json": None,
    "structured_outputs": None,
    "lora_path": None,
    "prompt_logprobs": None,
    "bad_words": [],
    "logit_bias": {},
    "stop": [],
    "stop_token_ids": [],
    "repetition_detection": {},
    "allowed_token_ids": None,
    "truncate_prompt_tokens": None,
    "vllm_xargs": {"plugin": [1, "a"]},
    "spaces_between_special_tokens": False,
    "return_token_ids": False,
    "thinking_token_budget": -1,
    "metadata": {},
    "n": None,
    "seed": None,
    "top_k": -1,
    "bootstrap_host": None,
    "bootstrap_room": None,
    "no_stop_trim": False,  # SGLang and its router
    "session_params": {"id": "a"},
    "separate_reasoning": True,
    "rid": "a",
    "watermark": False,  # TGI
    "do_sample": True,
    "details": False,
    "return_full_text": False,
    "ttl": 300,  # LM Studio and Ollama
    "keep_alive": "5m",
    "repeat_penalty": 1.1,
    "options": {"num_ctx": 4096},
    "mirostat": 0,
    "think": False,
    "session_id": "a",  # vLLM, where there is nothing to be done here
    "mm_processor_kwargs": {},
    "stream_interval": 1,
    "an_invention": {"of": ["a", "client"]},
}
_OF_CHAT: dict[str, Any] = {
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "parallel_tool_calls": True,
    "echo": False,
    "logprobs": False,
    "top_logprobs": 0,
    "modalities": ["text"],
    "audio": None,
    "prediction": None,
    "verbosity": "medium",
    "web_search_options": None,
    "chat_template_kwargs": {},
    "suffix": None,
}
_SAY_THE_DEFAULT = {"top_k", "logit_bias", "repetition_detection", "spaces_between_special_tokens"}  # in other words
_OF_COMPLETIONS: dict[str, Any] = {"echo": False, "suffix": "", "best_of": 1, "logprobs": None}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *((path, name) for path in BODIES for name in _NOTHING),
        *((CHAT, name) for name in _OF_CHAT),
        *((COMPLETIONS, name) for name in _OF_COMPLETIONS),
    ],
)
async def test_a_value_that_asks_for_nothing_passes_and_changes_nothing(api: Api, path: str, name: str) -> None:
    more = _NOTHING | (_OF_CHAT if path == CHAT else _OF_COMPLETIONS)
    await ask(api, path)
    plain = sent(api).sampling
    answer = await ask(api, path, **{name: more[name]})
    text = answer["choices"][0].get("text") or answer["choices"][0]["message"]["content"]
    assert text == ANSWER
    if name not in _SAY_THE_DEFAULT:
        assert sent(api).sampling == plain


@pytest.mark.parametrize("path", BODIES)
async def test_all_of_them_together_pass_too(api: Api, path: str) -> None:
    await ask(api, path, **_NOTHING, **(_OF_CHAT if path == CHAT else _OF_COMPLETIONS))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_beam_search": True, "logits_processors": ["a"]}, ["'use_beam_search', 'logits_processors'"]),
        ({"temperature": "hot", "top_k": "all", "seed": 1.5}, ["temperature: ", "top_k: ", "seed: "]),
        ({"temperature": "hot", "stream": "yes"}, ["temperature: ", "stream: "]),
    ],
)
@pytest.mark.parametrize("path", BODIES)
async def test_all_fields_that_are_wrong_are_named(
    api: Api, path: str, fields: dict[str, Any], named: list[str]
) -> None:
    error = await refused(api, path, **fields)
    assert all(name in error["message"] for name in named)
    assert error["param"] == next(iter(fields)) and error["type"] == "invalid_request_error"


async def test_of_many_wrong_fields_some_are_named(make_api: MakeApi) -> None:
    names = {f"invention_{i}": 1 for i in range(1000)}
    error = await refused(make_api(strict_fields=True), COMPLETIONS, **names)
    assert error["message"].startswith("unknown fields 'invention_0', ")
    assert error["message"].endswith("'invention_7', and 992 more")


# -- fields of vLLM


@pytest.mark.parametrize("path", BODIES)
async def test_words_and_ids_reach_the_engine_as_token_ids(api: Api, path: str) -> None:
    await ask(api, path, bad_words=["lo", "z"], allowed_token_ids=[5, 6, 5], thinking_token_budget=3)
    sampling = sent(api).sampling
    encode = api.client.tokenizer.encode
    words = [tuple(encode(text)) for text in ("lo", " lo", "z", " z")]
    assert sampling.bad_token_sequences == (words[0], words[2]), "a space before is a token of its own here"
    assert sampling.bad_words == () and sampling.allowed_token_ids == (5, 6)
    assert sampling.thinking_token_budget == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bad_words": [""]}, "not empty"),
        ({"bad_words": ["a"] * 1000}, "at most 128 words"),
        ({"bad_words": ["a" * 33 + "z"]}, "1 to 32 tokens, got 34"),
        ({"bad_words": "a"}, "bad_words"),
        ({"allowed_token_ids": []}, "1 to 16384 token ids, got 0"),
        ({"allowed_token_ids": ["a"] * 16_000}, "allowed_token_ids[0] must be a token id, got 'a'"),
        ({"allowed_token_ids": [1] * 70_000}, "at most 16384 token ids"),
        ({"bad_words": ["a" * 31 + chr(48 + i) for i in range(70)]}, "at most 2048 tokens in all, got 2240"),
        ({"allowed_token_ids": list(range(16_384)), "n": 65}, "16384 allowed_token_ids x 65 answers are 1064960"),
        ({"allowed_token_ids": [72], "bad_words": ["i"]}, "no token is left to draw"),
        (
            {"repetition_detection": {"max_pattern_size": 3, "min_count": 1}},
            "min_count must be an integer in [2, 10000]",
        ),
        ({"repetition_detection": {"size": 3}}, "unknown field 'repetition_detection.size'"),
        ({"thinking_token_budget": -2}, "thinking_token_budget must be at least -1, got -2"),
        ({"truncate_prompt_tokens": MAX_MODEL_LEN + 1}, f"truncate_prompt_tokens keeps {MAX_MODEL_LEN + 1}"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncation_side": "middle", "truncate_prompt_tokens": 1}, "truncation_side"),
    ],
)
@pytest.mark.parametrize("path", BODIES)
async def test_what_cannot_be_done_is_refused_by_name(
    api: Api, path: str, fields: dict[str, Any], message: str
) -> None:
    assert message in (await refused(api, path, **fields))["message"]


async def test_an_answer_that_repeats_itself_ends_with_a_reason_of_its_own(make_api: MakeApi) -> None:
    api = make_api(answer=byte_ids(byte_tokenizer(CHAT_TEMPLATE), "xababababab"))
    fields = {"repetition_detection": {"max_pattern_size": 2, "min_count": 3}, "max_tokens": 50}
    (choice,) = (await ask(api, COMPLETIONS, **fields))["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        "xababab",
        "repetition",
        "repetition_detected",
    )
    assert len(api.link.sent_of(to_engine.Finish)) == 1


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 2}, "cd"),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, "ab"),
        ({"truncate_prompt_tokens": 2, "truncation_side": "left"}, "cd"),
        ({"truncate_prompt_tokens": 9}, "abcd"),
        ({"truncation_side": "right"}, "abcd"),
    ],
)
@pytest.mark.parametrize("as_ids", [False, True])
async def test_a_prompt_is_cut_to_its_last_tokens_and_echo_shows_what_is_left(
    api: Api, fields: dict[str, Any], kept: str, as_ids: bool
) -> None:
    prompt: Any = byte_ids(api.client.tokenizer, "abcd") if as_ids else "abcd"
    answer = await ask(api, COMPLETIONS, prompt=prompt, echo=True, **fields)
    assert sent(api).prompt.tolist() == byte_ids(api.client.tokenizer, kept)
    assert answer["choices"][0]["text"] == kept + ANSWER
    assert answer["usage"]["prompt_tokens"] == len(kept)


@pytest.mark.parametrize("path", BODIES)
async def test_a_prompt_of_any_length_can_be_cut_to_what_the_context_leaves(api: Api, path: str) -> None:
    long = "a" * 100_000 + "bc"
    body = {"prompt": long} if path == COMPLETIONS else {"messages": [{"role": "user", "content": long}]}
    await ask(api, path, **body, truncate_prompt_tokens=-1)
    text = api.client.tokenizer.decode(sent(api).prompt.tolist())
    assert len(sent(api).prompt) == MAX_MODEL_LEN - 1 and text.removesuffix("<|assistant|>").endswith("abc")
    await ask(api, path, **body, truncate_prompt_tokens=3, truncation_side="right")
    assert api.client.tokenizer.decode(sent(api).prompt.tolist()) == ("aaa" if path == COMPLETIONS else "<|u")


@pytest.mark.parametrize("path", BODIES)
async def test_special_tokens_are_added_if_asked_for(make_api: MakeApi, path: str) -> None:
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", eos)])
    api = make_api(tokenizer=tokenizer)
    found = []
    for fields in ({}, {"add_special_tokens": True}, {"add_special_tokens": False}):
        await ask(api, path, **fields)
        found.append(sent(api).prompt[0] == eos)
    assert found == [path == COMPLETIONS, True, False]


# -- token ids in the answer


async def test_a_completion_shows_its_token_ids(api: Api) -> None:
    (choice,) = (await ask(api, COMPLETIONS, return_token_ids=True))["choices"]
    assert choice["token_ids"] == ANSWER_IDS
    assert choice["prompt_token_ids"] == sent(api).prompt.tolist()
    assert "token_ids" not in (await ask(api, COMPLETIONS))["choices"][0]


async def test_a_chat_completion_shows_its_token_ids(api: Api) -> None:
    answer = await ask(api, CHAT, return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == ANSWER_IDS
    assert answer["prompt_token_ids"] == sent(api).prompt.tolist()
    assert "prompt_token_ids" not in await ask(api, CHAT)


@pytest.mark.parametrize("fields", [{}, {"n": 2}])
@pytest.mark.parametrize("path", BODIES)
async def test_the_chunks_of_a_stream_show_the_prompt_once_and_every_token(
    api: Api, path: str, fields: dict[str, Any]
) -> None:
    chunks = await stream(api, path, return_token_ids=True, **fields)
    prompt_ids = sent(api).prompt.tolist()
    for choice in range(fields.get("n", 1)):
        its = [chunk for chunk in chunks if chunk["choices"][0]["index"] == choice]
        holders = [chunk["choices"][0] if path == COMPLETIONS else chunk for chunk in its]
        assert [holder["prompt_token_ids"] for holder in holders if "prompt_token_ids" in holder] == [prompt_ids]
        assert "prompt_token_ids" in holders[0]
        assert [token for chunk in its for token in chunk["choices"][0].get("token_ids", ())] == ANSWER_IDS


async def test_logprobs_name_tokens_by_their_ids_if_asked_for(api: Api) -> None:
    names = [f"token_id:{token}" for token in ANSWER_IDS]
    fields = {"return_tokens_as_token_ids": True, "max_tokens": 5}
    logprobs = (await ask(api, COMPLETIONS, logprobs=1, **fields))["choices"][0]["logprobs"]
    assert logprobs["tokens"] == names and logprobs["text_offset"] == [0, 1, 2, 3, 4]
    assert all(name in top for name, top in zip(names, logprobs["top_logprobs"], strict=True))
    content = (await ask(api, CHAT, logprobs=True, top_logprobs=1, **fields))["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in content] == names
    assert [token["top_logprobs"][0]["token"] for token in content] == names
