"""docs/request-fields.md says of every field what the bodies do with it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from headway.client.field_rules import Unsupported
from headway.server.fields.protocol import ChatCompletionRequest, CompletionRequest, Ignored
from headway.server.fields.unknown_fields import CHANGE_THE_ANSWER, SIMULTANEOUS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "request-fields.md"


def fate(body: type[BaseModel], name: str) -> str:
    """What the body does with a field."""
    field = body.model_fields.get(name)
    if field is None:
        return "refused" if name in CHANGE_THE_ANSWER | SIMULTANEOUS else "ignored"
    if any(isinstance(rule, Unsupported) for rule in field.metadata):
        return "refused"
    return "ignored" if name in Ignored.model_fields else "accepted"


def test_the_page_says_what_the_bodies_do() -> None:
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    said = {row[0].strip("`"): (row[1], row[2]) for row in rows}
    assert len(said) == len(rows), "no field twice"
    names = CompletionRequest.model_fields | ChatCompletionRequest.model_fields
    expected = {
        name: (fate(CompletionRequest, name), fate(ChatCompletionRequest, name))
        for name in {*names, *CHANGE_THE_ANSWER, *SIMULTANEOUS}
    }
    unknown = {name: fates for name, fates in said.items() if name not in expected}
    assert set(unknown.values()) <= {("ignored", "ignored")}, "fields that are known nowhere are ignored"
    assert said == expected | unknown
