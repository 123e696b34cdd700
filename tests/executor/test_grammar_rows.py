"""Rows and their grammars: which tokens reach a matcher, when, and which never do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from headway.executor import grammar_rows
from headway.executor.grammar import Words, clear, only
from headway.executor.grammar_rows import SECONDS_PER_TOKEN, GrammarRows, forbid
from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler.batch import Admission
from headway.structured_outputs import StructuredOutputs
from tests.executor.grammar_models import EOS, PADDED, grammar_of, text_of

ABC = StructuredOutputs(regex="abc")
XYZ = StructuredOutputs(regex="xyz")
LETTERS = {text_of([token]): token for token in range(256)}
PROMPT = 3  # tokens


@dataclass
class Copies:
    """Copies of a step; counts the waits."""

    waits: int = 0

    def wait(self) -> None:
        self.waits += 1


class Rows:
    """`GrammarRows`, with tokens as letters."""

    def __init__(self) -> None:
        self.rows = GrammarRows(PADDED)

    def admit(self, slot: int, form: StructuredOutputs, output: str = "", **sampling: Any) -> None:
        known = np.array([1] * PROMPT + [LETTERS[letter] for letter in output], np.int32)
        request = Request(
            uid=slot + 1,
            request_id=str(slot),
            prompt=known[:PROMPT],
            sampling=SamplingParams(structured_outputs=form, **sampling),
            max_tokens=50,
            stop_token_ids=(EOS,),
            grammar=grammar_of(form),
        )
        self.rows.admit(Admission(slot, request, known, 0))

    def allowed(self, *at: tuple[int, int]) -> list[set[str] | None]:
        """What may come in each (slot, position of the output); None: anything. The end of the answer is "■"."""
        slots, positions = (np.array(column, np.int32) for column in zip(*at, strict=True))
        found, words = self.rows.masks(slots, positions + PROMPT)
        said: list[set[str] | None] = [None] * len(at)
        for row, mask in zip(found.tolist(), words, strict=True):
            said[row] = letters(mask)
        return said

    def drew(self, copies: Copies | None = None, **by_slot: str) -> None:
        """slot_0="a": the step drew this token there."""
        slots = np.array([int(name.removeprefix("slot_")) for name in by_slot], np.int32)
        tokens = np.array([EOS if letter == "■" else LETTERS[letter] for letter in by_slot.values()], np.int32)
        self.rows.drew(slots, tokens, copies or Copies())  # type: ignore[arg-type]


def letters(mask: Words) -> set[str]:
    tokens = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
    return {"■" if token == EOS else text_of([token]) for token in tokens.tolist()}


@pytest.fixture
def rows() -> Rows:
    return Rows()


def test_a_token_that_was_drawn_is_waited_for_and_taken_when_its_slot_samples_next(rows: Rows) -> None:
    rows.admit(0, ABC)
    rows.admit(1, XYZ)
    assert rows.allowed((0, 0), (1, 0)) == [{"a"}, {"x"}]
    copies = Copies()
    rows.drew(copies, slot_0="a", slot_1="x")
    assert copies.waits == 0
    assert rows.allowed((1, 1)) == [{"y"}] and copies.waits == 1
    assert rows.allowed((0, 1)) == [{"b"}] and copies.waits == 2


def test_rows_without_a_grammar_may_take_any_token(rows: Rows) -> None:
    rows.admit(2, ABC)
    assert rows.allowed((0, 4), (2, 0), (1, 9)) == [None, {"a"}, None]
    rows.rows.forget(2)
    assert rows.allowed((2, 0)) == [None]


def test_the_token_of_a_stale_row_does_not_reach_the_matcher_of_the_next_request(rows: Rows) -> None:
    """The request in the slot has ended while a step computed for it; another one takes the slot over."""
    rows.admit(0, ABC)
    rows.allowed((0, 0))
    rows.drew(slot_0="a")
    rows.admit(0, XYZ)
    assert rows.allowed((0, 0)) == [{"x"}]


def test_after_a_preemption_the_output_is_taken_again_and_what_was_drawn_since_is_not(rows: Rows) -> None:
    rows.admit(0, ABC)
    rows.allowed((0, 0))
    rows.drew(slot_0="a")
    rows.allowed((0, 1))
    rows.drew(slot_0="b")  # of a step that the core did not count any more
    rows.admit(1, ABC, output="a")
    assert rows.allowed((1, 1)) == [{"b"}]


def test_a_row_of_a_step_that_failed_says_nothing(rows: Rows) -> None:
    """Its request has ended with the step; the next step may have been planned before."""
    rows.admit(0, ABC)
    rows.allowed((0, 0))
    assert rows.allowed((0, 1)) == [None]


def test_a_grammar_that_is_over_allows_its_end_alone(rows: Rows) -> None:
    rows.admit(0, ABC, output="abc")
    assert rows.allowed((0, 3)) == [{"■"}]
    rows.drew(slot_0="■")
    assert rows.allowed((0, 4)) == [{"■"}]


def test_output_that_the_grammar_does_not_have_ends_the_answer(rows: Rows) -> None:
    """A prefill engine that knows nothing of forms may have drawn the first token."""
    rows.admit(0, ABC, output="q")
    assert rows.allowed((0, 1)) == [{"■"}]


def test_no_end_before_min_tokens_unless_nothing_else_is_left(rows: Rows) -> None:
    form = StructuredOutputs(regex="ab*c?")
    rows.admit(0, form, output="a")
    rows.admit(1, form, output="a", min_tokens=2)
    rows.admit(2, form, output="ac", min_tokens=3)
    assert rows.allowed((0, 1), (1, 1), (2, 2)) == [{"b", "c", "■"}, {"b", "c"}, {"■"}]


def test_many_matchers_are_asked_in_one_call(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    for slot in range(12):
        rows.admit(slot, ABC if slot % 2 else XYZ)
    said = rows.allowed(*((slot, 0) for slot in range(12)))
    assert said == [{"a"} if slot % 2 else {"x"} for slot in range(12)]


@pytest.mark.parametrize("tokens", [[0], [31], [32], [63, 64], [0, 31, 32, 95]])
def test_single_tokens_are_forbidden_and_allowed(tokens: list[int]) -> None:
    words = np.full(3, -1, np.int32)
    clear(words, tokens)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert np.flatnonzero(bits == 0).tolist() == tokens
    only(words, tokens)
    assert np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist() == tokens


@pytest.mark.parametrize("contiguous", [True, False], ids=["by xgrammar", "by torch, as on CUDA"])
@pytest.mark.parametrize("vocab_size", [64, 70, 90])
def test_forbidden_tokens_have_no_chance_and_other_rows_stay(contiguous: bool, vocab_size: int) -> None:
    logits = torch.randn(5, vocab_size)
    if not contiguous:
        logits = torch.randn(5, vocab_size + 3)[:, :vocab_size]
    before = logits.clone()
    words = np.zeros((2, -(-vocab_size // 32)), np.int32)
    only(words[0], [0, vocab_size - 1])
    only(words[1], [33])
    forbid(logits, np.array([1, 4]), words)
    for row, allowed in ((1, [0, vocab_size - 1]), (4, [33])):
        assert torch.isfinite(logits[row]).nonzero().flatten().tolist() == allowed
        assert torch.equal(logits[row, allowed], before[row, allowed])
    assert torch.equal(logits[[0, 2, 3]], before[[0, 2, 3]])


def test_reasoning_is_free_and_its_end_may_be_in_the_output_of_before(rows: Rows) -> None:
    form = replace(ABC, starts_after=(LETTERS["-"], LETTERS["."]))
    rows.admit(0, form)
    assert rows.allowed((0, 0)) == [None]
    rows.drew(slot_0="-")
    assert rows.allowed((0, 1)) == [None]
    rows.drew(slot_0=".")
    assert rows.allowed((0, 2)) == [{"a"}]
    rows.admit(3, form, output="q", min_tokens=2)
    (free,) = rows.allowed((3, 1))
    assert free is not None and "■" not in free and {"a", "q", "-"} <= free, "the end of the answer does not come yet"
    rows.drew(slot_3="q")
    assert rows.allowed((3, 2)) == [None]
    rows.admit(1, form, output="q-.a")
    assert rows.allowed((1, 4)) == [{"b"}]
    rows.admit(2, form, output="q.-")
    assert rows.allowed((2, 3)) == [None]


class Seconds:
    """A clock on which everything between two looks takes this long."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_an_answer_whose_grammar_takes_too_long_ends_where_it_is(rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    rows.rows = GrammarRows(PADDED, clock=Seconds(SECONDS_PER_TOKEN))  # as long as is given, for the token and its mask
    rows.admit(0, StructuredOutputs(regex="a*b"))
    for position in range(300):
        if rows.allowed((0, position)) == [{"■"}]:
            break
        rows.drew(slot_0="a")
    assert 80 < position < 120
    assert "takes too much time" in caplog.text


def test_an_answer_that_is_replayed_is_bounded_too(rows: Rows) -> None:
    rows.rows = GrammarRows(PADDED, clock=Seconds(1.0))
    rows.admit(0, StructuredOutputs(regex="a*b"), output="aaaaa")
    assert rows.allowed((0, 5)) == [{"■"}]


def test_among_many_answers_the_slow_one_is_found(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_rows, "_LONG", -1.0)  # masks that threads fill are always suspicious
    clock = Seconds(0.0)
    rows.rows = GrammarRows(PADDED, clock=clock)
    for slot in range(6):
        rows.admit(slot, ABC)
    at = [(slot, 0) for slot in range(6)]
    assert rows.allowed(*at) == [{"a"}] * 6
    clock.step = 2.0
    assert rows.allowed(*at) == [{"■"}] * 6, "one by one, at the expense of each"
