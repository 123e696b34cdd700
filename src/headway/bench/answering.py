"""The side of an `AnsweringProcess` in the other process: answers questions until its standard input ends.

Each question and each answer is one line of JSON: {"answer": ...} or, as the last line, {"error": traceback}. The first
answer is a greeting, without a question.

This file imports only the standard library: it also runs, by its path, in environments without headway.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

_LONGEST_ERROR = 2_000  # characters


def answer_questions(begin: Callable[[], tuple[Any, Callable[[Any], Any]]]) -> None:
    """Answer the questions of standard input. Ends the process with exit code 1 after an error.

    begin: loads what is needed, and returns the greeting and the function that answers a question. Answers may contain
        dataclasses.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # text that a model or a peer prints is no answer

    def tell(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}, default=dataclasses.asdict), file=answers, flush=True)

    try:
        hello, answer = begin()
        tell("answer", hello)
        for line in sys.stdin:
            tell("answer", answer(json.loads(line)))
    except Exception:  # any error of a model, a driver or a peer is reported, and ends the process
        tell("error", traceback.format_exc()[-_LONGEST_ERROR:])
        sys.exit(1)
