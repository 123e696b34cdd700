"""Reasoning, content and calls in the text of an answer, whole and cut at every character."""

from __future__ import annotations

import pytest

from headway.client.answer_parser import AnswerDelta, AnswerParser
from headway.client.reasoning_parsers import REASONING_PARSERS, reasoning_parser
from headway.client.tool_parsers.hermes import HermesParser

CALL = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'


def said(parser: AnswerParser, *pieces: str) -> tuple[str, str, int]:
    """(reasoning, content, number of calls)."""
    answer = AnswerDelta()
    for piece in pieces:
        answer.append(parser.feed(piece))
    answer.append(parser.finish())
    return answer.reasoning, answer.content, len(answer.tool_calls)


@pytest.mark.parametrize(
    ("form", "prompt", "text", "reasoning", "content"),
    [
        ("deepseek_r1", "", "<think>Hm, a < b.</think>Yes.", "Hm, a < b.", "Yes."),
        ("deepseek_r1", "", "Hm.</think>Yes.", "Hm.", "Yes."),
        ("deepseek_r1", "...<think>\n", "Hm.\n</think>\n\nYes.", "Hm.\n", "\n\nYes."),
        ("deepseek_r1", "", "\n<think>Hm.</think>Yes</think>", "Hm.", "Yes</think>"),
        ("deepseek_r1", "", "Hm, and on and on</thin", "Hm, and on and on</thin", ""),
        ("deepseek_r1", "", "<think></think>Yes.", "", "Yes."),
        ("deepseek_r1", "<think>\n\n</think>\n\n", "Yes.", "", "Yes."),
        ("deepseek_r1", "", "", "", ""),
        ("qwen3", "", "<think>\nHm.\n</think>\n\nYes.", "\nHm.\n", "\n\nYes."),
        ("qwen3", "", "Yes, <think> is a tag.", "", "Yes, <think> is a tag."),
        ("qwen3", "", "<thin", "", "<thin"),
        ("qwen3", "assistant\n<think>\n", "Hm.</think>Yes.", "Hm.", "Yes."),
        ("qwen3", "assistant\n<think>\n\n</think>\n\n", "<think>Yes.", "", "<think>Yes."),
        ("mistral", "", "[THINK]Hm, [/THIN is no end.[/THINK]Yes.", "Hm, [/THIN is no end.", "Yes."),
        ("mistral", "", "[THINKING] is no tag.", "", "[THINKING] is no tag."),
        ("qwen3", "", " " * 70 + "<think>", "", " " * 70 + "<think>"),
    ],
)
def test_reasoning_is_parted_from_content_however_the_text_is_cut(
    form: str, prompt: str, text: str, reasoning: str, content: str
) -> None:
    def parser() -> AnswerParser:
        return AnswerParser(reasoning=REASONING_PARSERS[form](prompt))

    whole = parser().whole(text)
    assert (whole.reasoning, whole.content) == (reasoning, content)
    assert said(parser(), *text) == (reasoning, content, 0)
    for cut in range(len(text) + 1):
        assert said(parser(), text[:cut], text[cut:]) == (reasoning, content, 0)


def test_calls_are_found_behind_the_reasoning_alone() -> None:
    text = f"<think>I could write {CALL}.</think>\n\n{CALL}\n{CALL}"

    def parser() -> AnswerParser:
        return AnswerParser(reasoning=REASONING_PARSERS["qwen3"](), tools=HermesParser(["weather"]))

    for cut in range(len(text) + 1):
        assert said(parser(), text[:cut], text[cut:]) == (f"I could write {CALL}.", "", 2)
    assert len(parser().whole(text).tool_calls) == 2


def test_answer_that_ends_in_its_reasoning_has_no_calls_and_loses_nothing() -> None:
    parser = AnswerParser(reasoning=REASONING_PARSERS["deepseek_r1"](), tools=HermesParser(["weather"]))
    assert said(parser, "<think>", CALL, "</thi") == (CALL + "</thi", "", 0)
    assert not parser.has_called


def test_reasoning_that_the_client_does_not_want_is_dropped_and_calls_go_on() -> None:
    parser = AnswerParser(reasoning=REASONING_PARSERS["qwen3"](), tools=HermesParser(["weather"]), show_reasoning=False)
    assert said(parser, *f"<think>Hm.</think>Yes.{CALL}") == ("", "Yes.", 1)
    assert parser.has_called


def test_special_tokens_that_only_the_parser_should_see_are_not_in_the_content() -> None:
    parser = AnswerParser(tools=HermesParser(["weather"]), hidden=("<tool_call>", "</tool_call>"))
    assert said(parser, "a ", "<tool_call>", "oops", "</tool_call>", " b") == ("", "a oops b", 0)


def test_answer_without_any_parser_is_its_text() -> None:
    parser = AnswerParser()
    assert parser.feed(CALL) == AnswerDelta(CALL)
    assert parser.finish().is_empty
    assert not parser.has_called


def test_unknown_reasoning_parser_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(ValueError, match=r"there is no reasoning parser 'r1': choose one of deepseek_r1, .*qwen3"):
        reasoning_parser("r1")
