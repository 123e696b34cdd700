"""A simulated device on which answers follow their grammars, and the vocabulary, schemas and answers for it.

The device thread does what it does on CUDA: it enqueues the forward of a step, waits for the tokens of the step before,
makes the masks and enqueues the sampling. The step ends when forward and masks are both there. Each answer is a text
that was made before, so the masks are those of real JSON; that each of its tokens is allowed is checked.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headway.executor.base import Executor, OnDone
from headway.executor.device_thread import DeviceThread
from headway.executor.grammar import Grammar
from headway.executor.grammar_rows import GrammarRows
from headway.request import NewRequest
from headway.scheduler.batch import Batch, IntArray, StepResult
from headway.structured_outputs import StructuredOutputs

EOS = 256  # the token behind the bytes
_LETTERS = "etaoinshrdlucmfwypvbgkqjxz"


def vocabulary(size: int) -> list[bytes]:
    """Bytes, an end, and words as byte-level vocabularies have them: half begin with a space, a few are numbers or
    marks. As in the vocabularies of Mistral (130,072 tokens, 496 with a quotation mark) and DeepSeek (128,000, 334),
    four in a thousand have a quotation mark, and none of these begins with a letter: words and marks are split before.
    """
    rng = random.Random(size)
    tokens = dict.fromkeys([bytes([byte]) for byte in range(256)] + [b""])
    while len(tokens) < size:
        word = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(2, 9)))
        kind = rng.random()
        if kind < 0.5:
            word = " " + word
        elif kind < 0.6:
            word = word.capitalize()
        elif kind < 0.62:
            word = str(rng.randint(0, 999))
        elif kind < 0.65:
            word = "".join(rng.choice("(){}[]<>=+-*/;:,.!?'\n\t ") for _ in range(rng.randint(1, 3)))
        elif kind < 0.654:
            marks = [rng.choice("(){}[]<>=+-*/;:,.!?'\n ") for _ in range(rng.randint(1, 3))]
            marks[rng.randrange(len(marks))] = rng.choice(('"', '" "', '":"'))
            word = "".join(marks)
        tokens[word.encode()] = None
    return list(tokens)


def schema(number: int) -> dict[str, Any]:
    """A schema as agents send them; each number gives another."""
    return {
        "type": "object",
        "properties": {
            f"name_{number}": {"type": "string"},
            f"count_{number}": {"type": "integer"},
            "kind": {"enum": [f"kind {number}", "other", "none"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            f"place_{number}": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "y": {"type": "number"}, "label": {"type": "string"}},
                "required": ["x", "y", "label"],
                "additionalProperties": False,
            },
        },
        "required": [f"name_{number}", f"count_{number}", "kind", "tags", f"place_{number}"],
        "additionalProperties": False,
    }


def instance(number: int) -> str:
    """An answer that keeps to `schema(number)`: some 90 tokens."""
    rng = random.Random(number)

    def words(count: int) -> str:
        return " ".join("".join(rng.choice(_LETTERS) for _ in range(rng.randint(2, 8))) for _ in range(count))

    return json.dumps(
        {
            f"name_{number}": words(8),
            f"count_{number}": rng.randint(0, 10**6),
            "kind": "other",
            "tags": [words(1) for _ in range(4)],
            f"place_{number}": {"x": rng.random(), "y": -2.5, "label": words(5)},
        }
    )


class Tokens:
    """The longest token first, as a tokenizer would do about."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._ids = {token: index for index, token in enumerate(tokens) if token}
        self._longest = max(map(len, self._ids))

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        data, ids, start = text.encode(), [], 0
        while start < len(data):
            end = next(
                end for end in range(min(len(data), start + self._longest), start, -1) if data[start:end] in self._ids
            )
            ids.append(self._ids[data[start:end]])
            start = end
        return ids


class Compiled:
    """A compiler whose grammars are ready."""

    def __init__(self, grammars: dict[str, Grammar]) -> None:
        self._grammars = grammars

    def compile(self, form: StructuredOutputs) -> Grammar:
        """The grammar of this form."""
        return self._grammars[form.text]

    def close(self) -> None:
        """There is no process."""


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """A step that ends at `until`, seconds of `time.perf_counter`."""

    result: StepResult
    until: float

    def wait(self) -> None:
        while (left := self.until - time.perf_counter()) > 0:
            time.sleep(max(left - 0.0002, 0))

    def fetch(self) -> StepResult:
        self.wait()
        return self.result


class GrammarDevice(Executor):
    """answers: prompt (one token: the number of the answer) -> the tokens of the answer, with its end.

    ends: when each step ended, in order. host_s: seconds that each step with grammars took on the host.
    """

    max_in_flight = 2
    reads_same_step = True

    def __init__(self, step_s: float, vocab_size: int, slots: int, answers: Sequence[Sequence[int]]) -> None:
        self._step_s = step_s
        self._answers = answers
        self._rows = GrammarRows(vocab_size)
        self._has_grammar = np.zeros(slots, np.bool_)
        self._answer: list[tuple[int, Sequence[int]]] = [(0, ())] * slots  # of each slot: length of its prompt, tokens
        self._thread: DeviceThread | None = None
        self._ended = 0.0
        self.ends: list[float] = []
        self.host_s: list[float] = []

    def start(self, on_done: OnDone) -> None:
        self._thread = DeviceThread(self._enqueue, on_done, fetch=_OnDevice.fetch)

    def launch(self, batch: Batch) -> None:
        assert self._thread is not None, "launch before start"
        self._thread.launch(batch)

    def restart(self) -> bool:
        return False

    def shutdown(self) -> None:
        if self._thread is not None:
            self._thread.stop(timeout=5.0)

    def _enqueue(self, batch: Batch) -> _OnDevice:
        for admission in batch.admissions:
            prompt = admission.request.prompt
            self._answer[admission.slot] = (len(prompt), self._answers[int(prompt[0])])
            self._has_grammar[admission.slot] = admission.request.grammar is not None
            if self._has_grammar[admission.slot]:
                self._rows.admit(admission)
            else:
                self._rows.forget(admission.slot)
        rows = np.flatnonzero(batch.samples)
        slots = batch.slots[rows]
        positions = (batch.positions + batch.num_new_tokens)[rows]
        tokens = self._spoken(slots, positions)
        forward_ends = max(self._ended, time.perf_counter()) + self._step_s
        with_grammars = bool(self._has_grammar[slots].any())
        if with_grammars:
            began = max(time.perf_counter(), self._ended)  # the wait for the tokens of the step before is no work
            found, words = self._rows.masks(slots, positions)
            self.host_s.append(time.perf_counter() - began)
            self._check(tokens[found], words)
        self._ended = max(forward_ends, time.perf_counter())
        self.ends.append(self._ended)
        step = _OnDevice(StepResult(batch.step_id, tokens), self._ended)
        if with_grammars:
            self._rows.drew(slots, tokens, step)  # type: ignore[arg-type]  # it has `wait`, which is all that is used
        return step

    def _spoken(self, slots: IntArray, positions: IntArray) -> IntArray:
        spoken = []
        for slot, position in zip(slots.tolist(), positions.tolist(), strict=True):
            length, answer = self._answer[slot]
            index = position - length
            spoken.append(answer[index] if index < len(answer) else EOS)  # the rest is of a row that is stale
        return np.array(spoken, np.int32)

    @staticmethod
    def _check(tokens: IntArray, words: IntArray) -> None:
        allowed = (words[np.arange(len(tokens)), tokens >> 5].view(np.uint32) >> (tokens & 31).astype(np.uint32)) & 1
        assert allowed.all(), "a token of an answer is not allowed by its grammar"


def request(number: int, request_id: str, **fields: Any) -> NewRequest:
    """A request for answer `number`."""
    return NewRequest(request_id=request_id, prompt=np.array([number], np.int32), **fields)
