"""The questions of the tasks beside this file, for lm-eval, which loads it by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

_LINES = Path(__file__).with_name("questions.jsonl").read_text().splitlines()


def load(**_: Any) -> dict[str, datasets.Dataset]:
    """The questions: question, choices, answer (the number of the right choice), text (the right choice)."""
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in _LINES])}


def load_texts(**_: Any) -> dict[str, datasets.Dataset]:
    """Texts of ten questions each, with their answers."""
    rows = [json.loads(line) for line in _LINES]
    lines = [row["question"] + row["text"] for row in rows]
    return {"test": datasets.Dataset.from_list([{"page": "\n".join(lines[i : i + 10])} for i in range(0, 40, 10)])}
