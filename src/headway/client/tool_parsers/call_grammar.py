"""Structural tags, in xgrammar's form, for answers in which a model may call tools in its own form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headway.client.tool_parsers.tool_parser import ToolParser


def text_with_calls(form: type[ToolParser], schemas: Mapping[str, Any]) -> str | None:
    """Any text, in which each call meets the schema of its tool; None: calls of this form cannot be held to one.
    schemas: of the arguments of each tool."""
    tags = form.tags(schemas)
    if tags is None:
        return None
    return _text({"type": "triggered_tags", "triggers": [form.markers[0]], "tags": tags})


def json_or_calls(form: type[ToolParser], schemas: Mapping[str, Any], schema: Any, *, parallel: bool) -> str | None:
    """Calls alone, or JSON of `schema` alone; None as for `text_with_calls`."""
    tags = form.tags(schemas)
    if tags is None:
        return None
    calls = {"type": "tags_with_separator", "tags": tags, "separator": "\n", "at_least_one": True}
    if not parallel:
        calls["stop_after_first"] = True
    return _text({"type": "or", "elements": [{"type": "json_schema", "json_schema": schema}, calls]})


def _text(form: dict[str, Any]) -> str:
    return json.dumps({"type": "structural_tag", "format": form}, ensure_ascii=False)
