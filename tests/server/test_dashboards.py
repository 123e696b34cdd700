"""The panels of vLLM's dashboards find their series on our page, with the labels by which they select and group.

The list is `vllm_dashboards.toml`; it also names the series that are left out, and why.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import Api
from tests.server.fakes import MODEL

DASHBOARDS: dict[str, Any] = tomllib.loads((Path(__file__).parent / "vllm_dashboards.toml").read_text())
ENGINE = {"model_name": MODEL, "engine": "0"}
Page = dict[str, list[dict[str, str]]]  # the labels of each series


@pytest.fixture
async def page(api: Api) -> Page:
    """The page after one request."""
    await api.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3})
    found: Page = defaultdict(list)
    for family in text_string_to_metric_families((await api.get("/metrics")).text):
        for sample in family.samples:
            found[sample.name].append(dict(sample.labels))
    return found


def missing(page: Page, name: str, wanted: dict[str, list[str]], common: dict[str, str]) -> list[str]:
    """The labels, or values of labels, that a series should have beside the common ones and has not."""
    series = [labels for labels in page[name] if common.items() <= labels.items()]
    if not series:
        return [f"{name} {common}"]
    return [
        f"{name} {label}={value or '...'}"
        for label, values in wanted.items()
        for value in values or [None]
        if not any(label in labels and value in (None, labels[label]) for labels in series)
    ]


async def test_every_histogram_of_a_panel_is_there_with_the_buckets_that_panels_name(page: Page) -> None:
    for name, buckets in DASHBOARDS["histograms"].items():
        for suffix, labels in (("bucket", {"le": [*buckets, "+Inf"]}), ("sum", {}), ("count", {})):
            assert missing(page, f"{name}_{suffix}", labels, ENGINE) == []


async def test_every_count_of_a_panel_is_there_with_the_labels_that_panels_name(page: Page) -> None:
    for name, labels in DASHBOARDS["engine"].items():
        assert missing(page, name, labels, ENGINE) == []
    for name, labels in DASHBOARDS["server"].items():
        assert missing(page, name, labels, {}) == []


async def test_what_is_left_out_is_not_there(page: Page) -> None:
    """A series that is on the page is not on the list of series that are left out."""
    for reason, patterns in DASHBOARDS["left_out"].items():
        assert [name for name in page for pattern in patterns if fnmatchcase(name, pattern)] == [], reason


async def test_an_engine_that_is_dead_is_in_no_state(api: Api) -> None:
    """The board of the service shows a model without this series as down."""
    api.link.end("killed by SIGKILL")
    await api.client.dead.wait()
    text = (await api.get("/metrics")).text
    assert "# TYPE vllm:engine_sleep_state gauge" in text and "vllm:engine_sleep_state{" not in text


async def test_probes_are_no_requests_of_clients(api: Api) -> None:
    for path in ("/health", "/ping", "/version", "/metrics", "/v1/models"):
        await api.get(path)
    text = (await api.get("/metrics")).text
    counted = [line for line in text.splitlines() if line.startswith("http_requests_total{")]
    assert counted == ['http_requests_total{handler="/v1/models",method="GET",status="2xx"} 1.0']
