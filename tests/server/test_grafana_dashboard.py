"""The dashboard to deploy: each series that its panels query is on our page, with the labels that they name."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import Api

FILE = Path(__file__).parents[2] / "examples" / "deploy" / "grafana-dashboard.json"
BOARD: dict[str, Any] = json.loads(FILE.read_text())
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
OF_PROMETHEUS = {"job", "instance"}  # labels that it adds to every series


def series_of(expression: str) -> list[str]:
    return re.findall(r"([a-z0-9_:]+)\{", expression)


async def test_every_series_of_a_panel_is_on_the_page_with_the_labels_that_the_panel_names(api: Api) -> None:
    await api.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3})
    await api.post("/v1/completions", json={"prompt": "abc", "max_tokens": "many"})
    page: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families((await api.get("/metrics")).text):
        for sample in family.samples:
            page[sample.name] |= {*sample.labels, *OF_PROMETHEUS}
    for expression in EXPRESSIONS:
        named = {label for group in re.findall(r"by \((.*?)\)", expression) for label in group.split(", ")}
        named |= set(re.findall(r"(\w+)=~", expression))
        for series in series_of(expression):
            assert series in page, expression
            assert named <= page[series], expression


def test_every_expression_names_a_series_and_a_legend_only_labels_that_its_expression_keeps() -> None:
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            assert series_of(expression) and expression.count("(") == expression.count(")"), expression
            kept = {label for group in re.findall(r"by \((.*?)\)", expression) for label in group.split(", ")}
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= (kept if "sum" in expression else OF_PROMETHEUS), expression


def test_the_panels_cover_rates_latencies_load_cache_and_errors() -> None:
    queried = {series for expression in EXPRESSIONS for series in series_of(expression)}
    assert queried >= {
        "headway:generation_tokens_total",
        "headway:time_to_first_token_seconds_bucket",
        "headway:inter_token_latency_seconds_bucket",
        "headway:num_requests_running",
        "headway:num_requests_waiting",
        "headway:kv_cache_usage_perc",
        "headway:prefix_cache_hits_total",
        "headway:num_preemptions_total",
        "http_requests_total",
    }


def test_panels_do_not_lie_on_one_another() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in BOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in BOARD["panels"]})
