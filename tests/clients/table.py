"""The table of clients and features: what the tests say that they show, and how it reads in docs/clients.md.

A test of a client stands in tests/clients/calls/test_CLIENT.py under a mark: `@pytest.mark.shows("streaming")`, or
`@pytest.mark.shows("embeddings", "refused by name")`. The marks are read without importing the test, whose library may
not be installed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CALLS = Path(__file__).parent / "calls"
PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
BEGIN, END = "<!-- table: written by `make clients ARGS=--write` -->\n", "<!-- end of the table -->\n"
YES, ABSENT, FAILED = "yes", "–", "**fails**"

# By the name of the module: test_NAME.py.
CLIENTS = {
    "openai": "openai (Python)",
    "openai_js": "openai (JavaScript)",
    "anthropic": "anthropic",
    "litellm": "litellm",
    "langchain": "langchain-openai",
    "llama_index": "llama-index",
    "pydantic_ai": "pydantic-ai",
    "openai_agents": "openai-agents",
    "instructor": "instructor",
    "llm": "llm",
    "ai_sdk": "Vercel AI SDK",
    "guidellm": "guidellm",
    "vllm_bench": "vllm bench serve",
    "lm_eval": "lm-eval",
}
FEATURES = (
    "answer",
    "streaming",
    "usage in the stream",
    "completions",
    "log probabilities",
    "several answers",
    "stop strings",
    "seed",
    "fields of vLLM",
    "JSON mode",
    "JSON schema",
    "tools: auto",
    "tools: required",
    "tools: named",
    "tools: several at once",
    "tools: streamed",
    "tool results",
    "agent loop",
    "reasoning",
    "reasoning, streamed",
    "list of models",
    "responses API",
    "messages API",
    "count of tokens",
    "files and batches",
    "embeddings",
    "context overflow",
    "wrong key",
    "unknown model",
    "time-out",
    "client gone",
    "many at once",
    "loglikelihood",
)


@dataclass(frozen=True)
class Shown:
    """What one test shows. test: `module::function`. text: of the cell, if the test passes."""

    test: str
    client: str
    feature: str
    text: str


def shown(folder: Path = CALLS) -> list[Shown]:
    """What the marks say. Raises ValueError for a test without a mark, an unknown feature, or an unknown client."""
    return [cell for path in sorted(folder.glob("test_*.py")) for cell in _of_module(path)]


def _of_module(path: Path) -> Iterator[Shown]:
    client = path.stem.removeprefix("test_")
    if client not in CLIENTS:
        raise ValueError(f"{path.stem} is of no known client; known are {', '.join(CLIENTS)}")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = [mark for mark in map(_mark, node.decorator_list) if mark]
            if not marks:
                raise ValueError(f"{path.name}: {node.name} does not say what it shows")
            for feature, *text in marks:
                if feature not in FEATURES:
                    raise ValueError(f"{path.name}: {node.name} shows {feature!r}; known are {', '.join(FEATURES)}")
                yield Shown(f"{path.stem}::{node.name}", client, feature, *(text or [YES]))


def _mark(decorator: ast.expr) -> list[str] | None:
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.shows":
        return [ast.literal_eval(argument) for argument in decorator.args]
    return None


def table(cells: list[Shown], failed: frozenset[str] = frozenset()) -> str:
    """A table in Markdown: a row for each feature, a column for each client. failed: names of tests."""
    texts: dict[tuple[str, str], str] = {}
    for cell in cells:
        place = (cell.feature, cell.client)
        if cell.test in failed:
            texts[place] = FAILED
        elif texts.setdefault(place, cell.text) not in (cell.text, FAILED):
            raise ValueError(f"{cell.test} says {cell.text!r} where another test says {texts[place]!r}")
    clients = [client for client in CLIENTS if any(client == column for _, column in texts)]
    rows = [["", *(CLIENTS[client] for client in clients)], ["---"] * (len(clients) + 1)]
    for feature in FEATURES:
        if any(feature == row for row, _ in texts):
            rows.append([feature, *(texts.get((feature, client), ABSENT) for client in clients)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def written(page: str) -> str:
    """The table that stands on the page."""
    return page.partition(BEGIN)[2].partition(END)[0]


def rewritten(page: str, table: str) -> str:
    """The page with this table instead."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table + END + rest.partition(END)[2]
