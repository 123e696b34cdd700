"""The pages for browsers."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from headway import default_model
from headway.server.entrance.doors import Doors
from headway.server.fields.field_descriptions import TEXTS
from headway.server.pages.docs import type_of
from tests.server.conftest import Api
from tests.server.fakes import MODEL

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
MakeApi = Callable[..., Api]


class Links(HTMLParser):
    """hrefs: of all links. ids: of all elements. loads: what a browser would fetch by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.hrefs.append(str(value))
            elif name == "id":
                self.ids.append(str(value))
            elif name in ("src", "href"):
                self.loads.append(str(value))
        if tag == "script":
            self.loads.append(tag)


async def test_a_browser_gets_a_page_of_what_runs_here_and_a_program_gets_json(api: Api) -> None:
    answer = await api.get("/", headers=BROWSER)
    assert answer.headers["Content-Type"].startswith("text/html") and answer.headers["Vary"] == "Accept"
    assert MODEL in answer.text and "64 tokens" in answer.text
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        assert (await api.get("/", headers=headers)).json()["name"] == "Headway"


@pytest.mark.parametrize("root", ["", "/llm"])
async def test_every_link_of_the_front_page_leads_somewhere(make_api: MakeApi, root: str) -> None:
    api = make_api(doors=Doors(root_path=root))
    hrefs = Links((await api.get(f"{root}/", headers=BROWSER)).text).hrefs
    assert {f"{root}/docs", f"{root}/metrics"} <= set(hrefs)
    for href in hrefs:
        assert (await api.get(href)).status_code == 200, href


async def test_documents_that_are_not_served_are_not_linked(make_api: MakeApi) -> None:
    api = make_api(doors=Doors(docs=False))
    assert "/docs" not in Links((await api.get("/", headers=BROWSER)).text).hrefs


async def test_the_demo_model_says_on_the_front_page_what_it_can_do(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "demo model" not in (await api.get("/", headers=BROWSER)).text
    monkeypatch.setattr(default_model, "PATH", api.client.files.path)
    assert "demo model" in (await api.get("/", headers=BROWSER)).text


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_loads_nothing_from_anywhere(api: Api, path: str) -> None:
    answer = await api.get(path, headers=BROWSER)
    assert answer.status_code == 200
    assert Links(answer.text).loads == [] and not re.search(r"https?://", answer.text)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


async def test_the_documents_name_every_path_and_every_field(api: Api) -> None:
    document = (await api.get("/openapi.json")).json()
    text = (await api.get("/docs")).text
    for path in document["paths"]:
        assert f"<code>{path}</code>" in text
    for name, schema in document["components"]["schemas"].items():
        assert f'<h3 id="{name}">' in text
        for field in schema.get("properties", {}):
            assert f"<code>{field}</code>" in text


async def test_every_field_of_a_request_is_described(api: Api) -> None:
    document = (await api.get("/openapi.json")).json()
    bodies = [name for name in document["components"]["schemas"] if name.endswith("Request")]
    assert {"CompletionRequest", "ChatCompletionRequest", "ResponsesRequest", "MessagesRequest"} < set(bodies)
    fields = {name: document["components"]["schemas"][name]["properties"] for name in bodies}
    assert not [(name, field) for name in bodies for field, schema in fields[name].items() if not schema["description"]]
    assert TEXTS.keys() <= {field for body in fields.values() for field in body}, "no text for a field of none"
    assert TEXTS["top_k"] in (await api.get("/docs")).text


async def test_every_link_inside_the_documents_has_its_place(api: Api) -> None:
    links = Links((await api.get("/docs")).text)
    inner = {href.removeprefix("#") for href in links.hrefs if href.startswith("#")}
    assert inner and inner <= set(links.ids)


async def test_what_a_page_shows_is_escaped(make_api: MakeApi) -> None:
    api = make_api()
    api.app.state.service.model_name = "<script>alert(1)</script>"
    for path in ("/", "/docs"):
        assert "<script>" not in (await api.get(path, headers=BROWSER)).text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string"}, "string"),
        ({"type": "integer", "minimum": 0, "maximum": 20}, "integer from 0 to 20"),
        ({"type": "integer", "minimum": 1, "maximum": 2**31 - 1}, "integer from 1"),
        ({"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}, "integer"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string"),
        ({"anyOf": [{"$ref": "#/x/A"}, {"type": "array", "items": {"type": "string"}}]}, None),
        ({"enum": ["a", None]}, "<code>&#39;a&#39;</code>"),
        ({}, "any value"),
    ],
)
def test_a_type_is_told_in_words(schema: dict[str, object], words: str | None) -> None:
    assert type_of(schema) == (words or '<a href="#A">A</a> or list of string')
