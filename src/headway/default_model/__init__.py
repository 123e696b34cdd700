"""The embedded default model: the weights a fresh install can serve, and the problems that grade them.

This package owns one folder in the ordinary Hugging Face format (a tiny Llama written by
`tools/train_default_model.py`) and the held-out problems that model never saw in training. Because every
problem has one right answer, a serving engine can be tested end to end on what it *says*, offline.
The package knows nothing of torch: importing it costs no more than reading a path.
"""

import json
from dataclasses import dataclass
from pathlib import Path

PATH: Path = Path(__file__).parent


@dataclass(frozen=True)
class Problem:
    """A question with exactly one right answer, which the model ends with its end-of-sequence token."""

    task: str
    prompt: str
    answer: str


def held_out() -> list[Problem]:
    """The problems kept out of training, the same number for each task."""
    lines = (PATH / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [Problem(**json.loads(line)) for line in lines]
