"""What the server says of itself, and what it says of paths that it does not serve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from headway.server.routes.not_served import REASONS
from tests.server.api_clients import openai_client
from tests.server.conftest import Api
from tests.server.fakes import MAX_MODEL_LEN, MODEL
from tests.tiny_tokenizer import CHAT_TEMPLATE

MakeApi = Callable[..., Api]


async def test_the_load_is_the_requests_in_progress(make_api: MakeApi) -> None:
    api = make_api(silent=True)
    assert (await api.get("/load")).json() == {"server_load": 0}
    task = asyncio.create_task(api.post("/v1/completions", json={"prompt": "a"}))
    while not api.link.sent:
        await asyncio.sleep(0)
    assert (await api.get("/load")).json() == {"server_load": 1}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await api.get("/load")).json() == {"server_load": 0}


async def test_the_settings_of_the_server_as_a_text_and_as_json(api: Api) -> None:
    text = (await api.get("/server_info")).json()
    assert (text["model"], text["max_model_len"]) == (MODEL, MAX_MODEL_LEN) and "max_num_seqs=4" in text["config"]
    settings = (await api.get("/server_info?config_format=json")).json()["config"]
    assert settings["max_num_seqs"] == 4 and settings["role"] == "mixed"
    assert (await api.get("/server_info?config_format=yaml")).status_code == 400


async def test_the_tokenizer_and_its_template_are_told_without_secrets(api: Api) -> None:
    api.client.tokenizer.init_kwargs["token"] = "a secret"
    told = (await api.get("/tokenizer_info")).json()
    assert told["chat_template"] == CHAT_TEMPLATE and told["eos_token"] == "<eos>" and told["tokenizer_class"]
    assert "a secret" not in json.dumps(told)


async def test_the_template_of_the_server_is_the_one_that_is_told(make_api: MakeApi) -> None:
    api = make_api(chat_template="{{ messages[0].content }}")
    assert (await api.get("/tokenizer_info")).json()["chat_template"] == "{{ messages[0].content }}"


async def test_health_answers_by_all_its_names_and_methods(api: Api) -> None:
    for answer in (await api.get("/ping"), await api.post("/ping"), await api.http.head("/health")):
        assert answer.status_code == 200


async def test_what_is_not_served_is_refused_by_name_and_not_tried_again(api: Api) -> None:
    client = openai_client(api)
    with pytest.raises(openai.NotFoundError, match="pooling") as refused:
        await client.embeddings.create(model=MODEL, input="a")
    assert refused.value.code == "not_served" and "/v1/embeddings" in str(refused.value)
    with pytest.raises(openai.NotFoundError, match="run-batch"):
        await client.batches.list()


@pytest.mark.parametrize("path", sorted(REASONS))
async def test_every_path_that_is_not_served_says_why(api: Api, path: str) -> None:
    answer = await api.post(path.replace("{rest:path}", "a/b"), json={})
    error = answer.json()["error"]
    assert answer.status_code == 404 and REASONS[path] in error["message"]


async def test_the_page_about_endpoints_names_every_path(api: Api) -> None:
    page = (Path(__file__).parents[2] / "docs" / "endpoints.md").read_text(encoding="utf-8")
    paths = [
        *(await api.get("/openapi.json")).json()["paths"],
        *(path.removesuffix("/{rest:path}") for path in REASONS),
    ]
    assert [path for path in paths if f"`{path}`" not in page] == []
