"""What every answer has, whatever its route: an id, a form for errors, and the methods that a path takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.server.conftest import Api


async def test_the_id_of_a_request_comes_back_on_every_answer(api: Api) -> None:
    for method, path in [("GET", "/health"), ("POST", "/v1/completions"), ("GET", "/nothing"), ("GET", "/tokenize")]:
        response = await api.http.request(method, path, headers={"X-Request-Id": "job-7"})
        assert response.headers["X-Request-Id"] == "job-7", path
    for stream in (False, True):
        body = {"prompt": "a", "stream": stream}
        response = await api.post("/v1/completions", json=body, headers={"X-Request-Id": "job-8"})
        assert (response.status_code, response.headers["X-Request-Id"]) == (200, "job-8")


@pytest.mark.parametrize("given", [None, "", "x" * 257, "a\tb", b"caf\xe9"])
async def test_a_request_without_a_usable_id_gets_a_new_one(api: Api, given: str | bytes | None) -> None:
    response = await api.get("/health", headers={} if given is None else {"X-Request-Id": given})
    assert len(response.headers["X-Request-Id"]) == 32


async def test_an_unexpected_error_is_a_500_in_json_with_the_id(api: Api) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    api.app.state.service.check_open = fail
    response = await api.get("/health", headers={"X-Request-Id": "job-9"})
    assert (response.status_code, response.headers["X-Request-Id"]) == (500, "job-9")
    assert response.json()["error"]["code"] == "internal_error"


async def test_a_wrong_method_is_told_the_right_ones(api: Api) -> None:
    response = await api.get("/v1/completions")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert response.json()["error"]["message"] == "GET /v1/completions is not allowed: this path takes POST"


async def test_an_unknown_path_is_named(api: Api) -> None:
    response = await api.post("/v2/completions")
    assert response.status_code == 404
    assert "POST /v2/completions" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["wibble", "str", "list[0]", "#x", "function-y", "x" * 200])
async def test_an_unknown_field_is_named_in_full(make_api: Callable[..., Api], name: str) -> None:
    response = await make_api(strict_fields=True).post("/v1/completions", json={"prompt": "a", name: 1})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == f"unknown field {name!r}"


async def test_the_root_names_the_docs_and_health_has_a_head_and_a_ping(api: Api) -> None:
    assert (await api.get("/")).json()["docs"] == "/docs"
    assert (await api.get("/ping")).status_code == 200
    response = await api.http.head("/health")
    assert response.status_code == 200
