"""API keys: who is let in, what a refusal says, and whose cache a request shares."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Response

from headway.server.entrance.doors import OPEN_PATHS, Doors
from headway.server.entrance.keys import KEYS_VARIABLE, ApiKey, Keys, Tenant, given_keys
from headway.server.settings import ServerSettings
from tests.server.conftest import Api
from tests.server.fakes import MODEL

KEY, OTHER = "sk-first-key", "sk-second-key"
BODY = {"prompt": "hi", "max_tokens": 1}
Make = Callable[..., Api]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def protected(*keys: ApiKey, **doors: Any) -> Doors:
    return Doors(keys=keys or (ApiKey.of(KEY), ApiKey.of(OTHER)), **doors)


@pytest.fixture
async def locked(make_api: Make) -> Api:
    return make_api(doors=protected())


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["X-Request-Id"]
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert KEY not in answer.text and OTHER not in answer.text


# Who is let in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, OTHER])
@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {} "])
async def test_every_key_of_the_server_is_let_in(locked: Api, key: str, form: str) -> None:
    answer = await locked.post("/v1/completions", json=BODY, headers={"Authorization": form.format(key)})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(f"{KEY}x"),
        bearer(KEY[:-1]),
        bearer(KEY.upper()),
        {"Authorization": KEY},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": ""},
        [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
        [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer wrong")],
        {"x-api-key": KEY},
        {"Authorization": "Bearer \xfc".encode("latin-1")},
    ],
)
async def test_a_key_that_is_wrong_missing_or_repeated_is_refused(locked: Api, headers: Any) -> None:
    assert_refused(await locked.post("/v1/completions", json=BODY, headers=headers))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/v1/models"), ("GET", f"/v1/models/{MODEL}"), ("POST", "/tokenize"), ("POST", "/detokenize")),
        *(("POST", "/pause"), ("GET", "/is_paused"), ("GET", "/debug/ownership"), ("GET", "/no/such/path")),
        *(("POST", "/v1/chat/completions"), ("POST", "/v1/completions/render"), ("OPTIONS", "/v1/models")),
        *(("GET", "/health/"), ("GET", "/metrics/x"), ("GET", "/%2e/health")),
    ],
)
async def test_every_path_needs_a_key_but_for_the_open_ones(make_api: Make, method: str, path: str) -> None:
    api = make_api(doors=protected(), admin_api=True, ask=lambda call: False)
    assert_refused(await api.http.request(method, path))
    assert (await api.http.request(method, path, headers=bearer(KEY))).status_code != 401


async def test_the_open_paths_answer_without_a_key(locked: Api) -> None:
    for path in sorted(OPEN_PATHS):
        assert (await locked.get(path)).status_code == 200, path
        assert (await locked.get(path, headers=bearer("wrong"))).status_code == 200, path
    assert (await locked.http.head("/health")).status_code == 200


async def test_an_open_path_can_be_protected(make_api: Make) -> None:
    api = make_api(doors=protected(protect=("/metrics", "/openapi.json")))
    assert_refused(await api.get("/metrics"))
    assert_refused(await api.get("/openapi.json"))
    assert (await api.get("/metrics", headers=bearer(KEY))).status_code == 200
    assert (await api.get("/health")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_clients_of_anthropic_show_their_key_in_a_header_of_their_own(locked: Api, path: str) -> None:
    assert (await locked.post(path, json={}, headers={"x-api-key": KEY})).status_code != 401
    assert (await locked.post(path, json={}, headers=bearer(KEY))).status_code != 401
    both = {"x-api-key": "sk-ant-of-another-server", **bearer(KEY)}
    assert (await locked.post(path, json={}, headers=both)).status_code != 401
    for headers in ({"x-api-key": "wrong"}, {"x-api-key": KEY, **bearer("wrong")}, {}):
        assert (await locked.post(path, json={}, headers=headers)).status_code == 401


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/llm/v1/messages"])
async def test_clients_of_anthropic_are_refused_in_the_form_of_their_api(make_api: Make, path: str) -> None:
    answer = await make_api(doors=protected(root_path="/llm")).post(path, json={})
    assert answer.status_code == 401
    error = answer.json()
    assert error["type"] == "error" and error["error"]["type"] == "authentication_error"


async def test_the_document_says_which_paths_need_a_key(make_api: Make) -> None:
    document = (await make_api(doors=protected(protect=("/metrics",))).get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    keyed = {path for path, methods in document["paths"].items() for one in methods.values() if "security" in one}
    assert keyed == set(document["paths"]) - (OPEN_PATHS - {"/metrics"})
    assert all("401" in one["responses"] for path in keyed for one in document["paths"][path].values())
    document = (await make_api().get("/openapi.json")).json()
    assert "securitySchemes" not in document["components"]


async def test_without_keys_all_are_let_in(api: Api) -> None:
    assert (await api.post("/v1/completions", json=BODY, headers=bearer("any"))).status_code == 200


async def test_a_request_without_a_key_is_refused_before_its_body_is_read(locked: Api) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"", "query_string": b""}
    length = [(b"content-length", b"100000000"), (b"content-type", b"application/json")]
    await locked.app({**scope, "headers": length}, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 401
    assert (b"connection", b"close") in sent[0]["headers"], "as much is not read to its end either"


async def test_all_keys_are_compared_whichever_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, compared = Keys([ApiKey.of(f"key-{number}") for number in range(5)]), []
    monkeypatch.setattr(
        "headway.server.entrance.keys.hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b
    )
    assert keys.find("key-0") == ApiKey.of("key-0")
    assert keys.find("none") is None
    assert len(compared) == 10
    assert all(len(a) == len(b) == 64 for a, b in compared), "digests, so that the length of a key does not show"


async def test_a_server_of_several_names_takes_each_and_lists_all(make_api: Make) -> None:
    api = make_api(model_aliases=("small", "fast", MODEL))
    assert [card["id"] for card in (await api.get("/v1/models")).json()["data"]] == [MODEL, "small", "fast"]
    for name in (MODEL, "small", "fast"):
        answer = await api.post("/v1/completions", json={**BODY, "model": name})
        assert (answer.status_code, answer.json()["model"]) == (200, MODEL)
        assert (await api.get(f"/v1/models/{name}")).json()["id"] == name
    refused = await api.post("/v1/completions", json={**BODY, "model": "other"})
    assert refused.status_code == 404 and "'small', 'fast'" in refused.json()["error"]["message"]


# Browsers and proxies ---------------------------------------------------------------------------------------

PAGE = "https://chat.example"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


async def test_a_preflight_passes_without_a_key_and_a_refusal_can_be_read_by_the_page(make_api: Make) -> None:
    api = make_api(doors=protected(allowed_origins=(PAGE,)))
    preflight = await api.http.options("/v1/completions", headers=PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == PAGE
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()
    refused = await api.post("/v1/completions", json=BODY, headers={"Origin": PAGE})
    assert_refused(refused)
    assert refused.headers["Access-Control-Allow-Origin"] == PAGE
    answered = await api.post("/v1/completions", json=BODY, headers={"Origin": PAGE, **bearer(KEY)})
    assert answered.status_code == 200 and answered.headers["Access-Control-Allow-Origin"] == PAGE


async def test_pages_of_other_origins_may_read_nothing(make_api: Make) -> None:
    for doors in (protected(allowed_origins=(PAGE,)), Doors()):
        api = make_api(doors=doors)
        answer = await api.get("/health", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_web_page_is_not_the_servers_own_host(make_api: Make) -> None:
    api = make_api(doors=Doors(allowed_origins=("*",)))
    assert (await api.get("/debug/ownership", headers={"Origin": PAGE})).status_code == 403


@pytest.mark.parametrize("path", ["/llm", ""])
async def test_the_root_path_of_a_proxy_may_be_there_or_cut_off(make_api: Make, path: str) -> None:
    api = make_api(doors=protected(root_path="/llm"))
    assert (await api.get(f"{path}/health")).status_code == 200
    assert_refused(await api.get(f"{path}/v1/models"))
    assert (await api.get(f"{path}/v1/models", headers=bearer(KEY))).status_code == 200
    assert (await api.post(f"{path}/v1/messages", json={}, headers={"x-api-key": KEY})).status_code != 401
    assert (await api.get("/openapi.json")).json()["servers"] == [{"url": "/llm"}]


async def test_the_documents_can_be_left_out(make_api: Make) -> None:
    api = make_api(doors=Doors(docs=False))
    assert [(await api.get(path)).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404] * 3


# Tenants ----------------------------------------------------------------------------------------------------


async def salt(api: Api, key: str, **body: Any) -> str | None:
    """The salt with which a request comes to the engine."""
    before = len(api.link.sent)
    answer = await api.post("/v1/completions", json={**BODY, **body}, headers=bearer(key))
    assert answer.status_code == 200
    (request,) = [one for message in api.link.sent[before:] for one in getattr(message, "requests", ())]
    return request.cache_salt  # type: ignore[no-any-return]


async def test_tenants_share_no_cache_unless_their_keys_have_one_salt(make_api: Make) -> None:
    keys = {
        "a": ApiKey.of("a", tenant="search"),
        "a2": ApiKey.of("a2", tenant="search"),
        "b": ApiKey.of("b", tenant="ads"),
        "c": ApiKey.of("c", tenant="one", cache_salt="shared"),
        "d": ApiKey.of("d", tenant="two", cache_salt="shared"),
        "e": ApiKey.of("e", tenant="shared"),
        "f": ApiKey.of("f"),
    }
    api = make_api(doors=protected(*keys.values()))
    salts = {name: await salt(api, name) for name in keys}
    assert salts["a"] == salts["a2"] and salts["c"] == salts["d"] and salts["f"] is None
    assert len(set(salts.values())) == 5
    salted = {name: await salt(api, name, cache_salt="x") for name in keys}
    assert salted["a"] == salted["a2"] and salted["c"] == salted["d"]
    assert len({*salts.values(), *salted.values()}) == 10


async def test_no_body_can_name_the_cache_of_another_tenant(make_api: Make) -> None:
    api = make_api(doors=protected(ApiKey.of("a", tenant="a"), ApiKey.of("b")))
    target = await salt(api, "a")
    for guess in (target, "a", "tenant a", "8:tenant a", "0:8:tenant a"):
        assert await salt(api, "b", cache_salt=guess) != target


def test_pairs_of_salts_are_never_joined_to_one() -> None:
    pairs = [("a", "bc"), ("ab", "c"), ("abc", None), ("a", "b1:c"), ("1:a", "bc"), ("", "abc"), ("", "1:abc")]
    joined = {Tenant(name=None, salt=own).join(given) for own, given in pairs}
    assert len(joined) == len(pairs)


async def test_without_tenants_a_salt_is_what_the_body_says(locked: Api) -> None:
    assert await salt(locked, KEY, cache_salt="mine") == "mine"
    assert await salt(locked, KEY) is None


async def test_the_tenant_of_a_request_is_known_to_the_routes(make_api: Make) -> None:
    api, seen = make_api(doors=protected(ApiKey.of("a", tenant="search"), ApiKey.of("b"))), []
    api.app.add_route("/who", lambda request: seen.append(request.state.tenant.name) or Response())
    for key in ("a", "b"):
        assert (await api.get("/who", headers=bearer(key))).status_code == 200
    assert seen == ["search", None]


# Where keys come from ---------------------------------------------------------------------------------------

FILE = """
[[key]]
key = "of-search"
tenant = "search"

[[key]]
key = "of-ads"
tenant = "ads"
cache_salt = "shared"

[[key]]
key = "of-all"
"""


def write(folder: Path, text: str) -> str:
    file = folder / "keys.toml"
    file.write_text(text)
    return str(file)


def test_keys_come_from_options_a_file_and_the_environment(tmp_path: Path) -> None:
    environment = {KEYS_VARIABLE: "e1, e2\n\ne3\n", "VLLM_API_KEY": "v1"}
    plain, keys = given_keys(["o1", "o2,o3"], write(tmp_path, FILE), environment)
    assert plain == ["o1", "o2", "o3", "e1", "e2", "e3", "v1", "of-all"]
    assert keys == [
        *map(ApiKey.of, ("o1", "o2", "o3", "e1", "e2", "e3", "v1")),
        ApiKey.of("of-search", tenant="search"),
        ApiKey.of("of-ads", tenant="ads", cache_salt="shared"),
        ApiKey.of("of-all"),
    ]
    assert given_keys([], None, {}) == ([], [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[key]]\nkey = 'sk-secret", "is not valid TOML (at end of document)"),
        ("[[key]]\nkey = sk-secret", "is not valid TOML (at line 2"),
        ("", "must hold [[key]] tables"),
        ("key = 'sk-secret'", "must hold [[key]] tables"),
        ("[[key]]\nkey = 'sk-secret'\n[other]\n", "must hold [[key]] tables"),
        ("[[key]]\ntenant = 'a'", "[[key]] number 1"),
        ("[[key]]\nkey = 'sk-secret'\nsalt = 'a'", "and not salt"),
        ("[[key]]\nkey = 7", "takes the texts key"),
        ("[[key]]\nkey = 'sk-secret with blanks'", "must be printable ASCII without blanks"),
        ("[[key]]\nkey = ''", "must be printable ASCII"),
        ("[[key]]\nkey = 'sk-secret'\ntenant = ''", "the tenant of an API key must not be empty"),
    ],
)
def test_a_file_that_is_no_file_of_keys_is_refused_without_its_keys(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        given_keys([], write(tmp_path, text), {})
    assert words in str(refusal.value) and "sk-secret" not in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.toml cannot be read: No such file"):
        given_keys([], str(tmp_path / "none.toml"), {})


@pytest.mark.parametrize("key", ["", "a b", "clé", "a\nb"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError) as refusal:
        given_keys([key], None, {})
    assert not key or key not in str(refusal.value)


def test_one_key_of_two_tenants_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="for tenant 'a' and for no tenant") as refusal:
        protected(ApiKey.of(KEY, tenant="a"), ApiKey.of(KEY))
    assert KEY not in str(refusal.value)
    assert len(Keys([ApiKey.of(KEY), ApiKey.of(KEY)])) == 1


def test_no_record_shows_a_key_or_a_salt() -> None:
    doors = protected(ApiKey.of(KEY, tenant="search", cache_salt="of-the-cache"))
    settings = ServerSettings(doors=doors, prefill_api_key=OTHER)
    shown = repr((settings, Tenant(name="search", salt="of-the-cache")))
    for secret in (KEY, OTHER, "of-the-cache", doors.keys[0].digest):
        assert secret not in shown


@pytest.mark.parametrize(
    ("doors", "words"),
    [
        ({"protect": ("/v1/models",)}, "--protect takes a path that is open"),
        ({"protect": ("/metrics",), "keys": ()}, "--protect needs an API key"),
        ({"root_path": "llm"}, "--root-path must begin with a slash"),
        ({"root_path": "/llm/"}, "--root-path must begin with a slash and end with none"),
        ({"allow_credentials": True, "allowed_origins": ("*",)}, "name the origins"),
    ],
)
def test_doors_that_could_not_work_are_refused(doors: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Doors(**{"keys": (ApiKey.of(KEY),), **doors})


async def test_keys_come_into_no_log(locked: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await locked.post("/v1/completions", json={**BODY, "unknown": 1}, headers=bearer(KEY))
    await locked.post("/v1/completions", json=BODY, headers=bearer(f"{KEY}-wrong"))
    assert KEY not in caplog.text
