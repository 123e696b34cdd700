"""The embedded default model: weights that a fresh install can serve, and problems that grade its answers.

This package owns one folder in the ordinary Hugging Face format (a tiny Llama, written by
`tools/train_default_model.py`) and held-out problems, which the model never saw in training. Every problem has one
right answer, so a serving engine can be tested end to end, offline, by its answers.
The package does not import torch: importing it costs no more than reading a path.
"""

import json
from dataclasses import dataclass
from pathlib import Path

PATH: Path = Path(__file__).parent
NAME = "headway-default"  # in the API


@dataclass(frozen=True)
class Problem:
    """A question with exactly one right answer, which the model ends with its end-of-sequence token."""

    task: str
    prompt: str
    answer: str


def held_out() -> list[Problem]:
    """Problems that training never used, the same number for each task."""
    lines = (PATH / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [Problem(**json.loads(line)) for line in lines]
