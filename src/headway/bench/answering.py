"""The far end of an `AnsweringProcess`: answers questions until there are no more.

Standard input and output, a line of JSON each: a question, and {"answer": ...} or, as the last line,
{"error": traceback}. The first answer is a greeting that was not asked for.

This file imports the standard library alone: it is also run, by file, in environments that have no headway.
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
    """begin: loads whatever is needed and returns the greeting and the function that answers a question.

    Answers may hold dataclasses. Ends the process with exit code 1 after an error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a model or a peer prints is no answer

    def tell(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}, default=dataclasses.asdict), file=answers, flush=True)

    try:
        hello, answer = begin()
        tell("answer", hello)
        for line in sys.stdin:
            tell("answer", answer(json.loads(line)))
    except Exception:  # whatever a model, a driver or a peer raises is told, and ends the process
        tell("error", traceback.format_exc()[-_LONGEST_ERROR:])
        sys.exit(1)
