"""Calls of tools in the text of an answer, whole and cut at every character."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import xgrammar

from headway.client.answer_parser import AnswerDelta, AnswerParser
from headway.client.tool_parsers import TOOL_PARSERS, tool_parser, tool_parser_of
from headway.client.tool_parsers.call_grammar import json_or_calls, text_with_calls
from headway.client.tool_parsers.forced import NamedCall, RequiredCalls
from headway.client.tool_parsers.tool_parser import ToolParser
from tests.findings.witness import instructions

NAMES = ("weather", "search")
PARSERS: dict[str, type[ToolParser]] = {**TOOL_PARSERS, "required": RequiredCalls, "named": NamedCall}
WEATHER = '{"city": "Paris", "unit": "celsius"}'

Said = tuple[str, list[tuple[str, str]]]


def new_parser(form: str, **options: bool) -> AnswerParser:
    names = NAMES[:1] if form == "named" else NAMES
    return AnswerParser(tools=PARSERS[form](names), **options)


def said(answer: AnswerDelta) -> Said:
    return answer.content, [(call.name or "", call.arguments) for call in answer.tool_calls]


def in_pieces(form: str, pieces: Iterable[str], **options: bool) -> Said:
    parser = new_parser(form, **options)
    answer = AnswerDelta()
    for piece in pieces:
        answer.append(parser.feed(piece))
    answer.append(parser.finish())
    return said(answer)


def whole(form: str, text: str, **options: bool) -> Said:
    return said(new_parser(form, **options).whole(text))


# name: (form, text, content, calls)
WELL_FORMED: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {
    "text alone": ("hermes", " It is warm in Paris. \n", " It is warm in Paris. \n", []),
    "text with signs of a tag": ("hermes", "a < b, <tool> and <tool_cal", "a < b, <tool> and <tool_cal", []),
    "one call": (
        "hermes",
        '<tool_call>\n{"name": "weather", "arguments": ' + WEATHER + "}\n</tool_call>",
        "",
        [("weather", WEATHER)],
    ),
    "text, two calls, text": (
        "hermes",
        'Let me look.\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "search", "arguments": {"q": []}}\n</tool_call> Done.',
        "Let me look. Done.",
        [("weather", '{"city": "Rom"}'), ("search", '{"q": []}')],
    ),
    "arguments before the name": (
        "hermes",
        '<tool_call>{"arguments": {"a": {"b": [1, {"c": null}]}}, "name": "weather"}</tool_call>',
        "",
        [("weather", '{"a": {"b": [1, {"c": null}]}}')],
    ),
    "brackets, tags, quotes and escapes in a string": (
        "hermes",
        '<tool_call>{"name": "search", "arguments": {"q": "}]\\" </tool_call> \\\\ \\u00e9 {["}}</tool_call>',
        "",
        [("search", '{"q": "}]\\" </tool_call> \\\\ \\u00e9 {["}')],
    ),
    "arguments in a string": (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Ulm\\"}"}</tool_call>',
        "",
        [("weather", '{"city": "Ulm"}')],
    ),
    "no arguments": ("hermes", '<tool_call>{"name": "weather"}</tool_call>', "", [("weather", "{}")]),
    "null arguments": ("hermes", '<tool_call>{"name":"weather","arguments":null}</tool_call>', "", [("weather", "{}")]),
    "no closing tag": ("hermes", '<tool_call>{"name": "weather", "arguments": {}}', "", [("weather", "{}")]),
    "an unknown name": ("hermes", '<tool_call>{"name": "fly", "arguments": {}}</tool_call>', "", [("fly", "{}")]),
    "other keys": (
        "hermes",
        '<tool_call>{"id": 7, "name": "weather", "type": [1, "x"], "arguments": {}}</tool_call>',
        "",
        [("weather", "{}")],
    ),
    "llama's call": (
        "llama3_json",
        '{"name": "weather", "parameters": ' + WEATHER + "}",
        "",
        [("weather", WEATHER)],
    ),
    "llama's calls behind its tag": (
        "llama3_json",
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Bonn"}}; {"name": "search", "parameters": {}}',
        "",
        [("weather", '{"city": "Bonn"}'), ("search", "{}")],
    ),
    "llama's call with its type": (
        "llama3_json",
        '\n{"type": "function", "name": "weather", "parameters": {}}\n',
        "",
        [("weather", "{}")],
    ),
    "JSON that is no call": (
        "llama3_json",
        '{"name": "Anna", "parameters": {"age": 7}} and more',
        '{"name": "Anna", "parameters": {"age": 7}} and more',
        [],
    ),
    "JSON that names a tool and has no parameters": (
        "llama3_json",
        '{"name": "weather", "age": 7}',
        '{"name": "weather", "age": 7}',
        [],
    ),
    "llama's text": ("llama3_json", " Hello {}; {", " Hello {}; {", []),
    "mistral's list": (
        "mistral",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Lyon"}}, {"name": "search", "arguments": {}}]',
        "",
        [("weather", '{"city": "Lyon"}'), ("search", "{}")],
    ),
    "mistral's newer calls": (
        "mistral",
        'Well.[TOOL_CALLS]weather[ARGS]{"city": "Metz"}[TOOL_CALLS]search{"q": "a[ARGS]"}',
        "Well.",
        [("weather", '{"city": "Metz"}'), ("search", '{"q": "a[ARGS]"}')],
    ),
    "mistral's newer call with an id": (
        "mistral",
        "[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{}",
        "",
        [("weather", "{}")],
    ),
    "mistral's object": ("mistral", '[TOOL_CALLS]{"name": "weather", "arguments": {}}', "", [("weather", "{}")]),
    "mistral's text": ("mistral", "a [TOOL] list [1, [2]] [TOOL_CALL", "a [TOOL] list [1, [2]] [TOOL_CALL", []),
    "deepseek's calls": (
        "deepseek_v3",
        "Well.\n<CALLS><CALL>function<SEP>weather\n```json\n"
        '{"city": "Nice"}\n```<END>\n<CALL>function<SEP>search\n```json\n{}\n```<END><ENDS>',
        "Well.",
        [("weather", '{"city": "Nice"}'), ("search", "{}")],
    ),
    "deepseek's newer calls": (
        "deepseek_v31",
        '<CALLS><CALL>weather<SEP>{"city": "a<ENDS>"}<END><CALL>search<SEP>{}<END><ENDS>',
        "",
        [("weather", '{"city": "a<ENDS>"}'), ("search", "{}")],
    ),
    "deepseek's call without an end": ("deepseek_v3", "<CALLS><CALL>weather<SEP>{}", "", [("weather", "{}")]),
    "python's calls": (
        "pythonic",
        ' [weather(city="Paris", days=[1, 2], exact=True), search(q=null, r={"a": -1.5})]\n',
        "",
        [("weather", '{"city": "Paris", "days": [1, 2], "exact": true}'), ("search", '{"q": null, "r": {"a": -1.5}}')],
    ),
    "python's call between its markers": (
        "llama4_pythonic",
        "<|python_start|>[weather()]<|python_end|>",
        "",
        [("weather", "{}")],
    ),
    "a list that is no call": ("pythonic", "[1] says: [weather()]", "[1] says: [weather()]", []),
    "python's unknown name": ("pythonic", "[fly(to='Rome')]", "[fly(to='Rome')]", []),
    "python's text": ("pythonic", "Hello [weather()]", "Hello [weather()]", []),
    "required calls": (
        "required",
        '[{"name": "weather", "parameters": ' + WEATHER + '}, {"name": "search", "parameters": {}}]',
        "",
        [("weather", WEATHER), ("search", "{}")],
    ),
    "a named call": ("named", "\n" + WEATHER + "\n", "", [("weather", WEATHER)]),
}

# name: (form, text, content of the whole answer)
MALFORMED: dict[str, tuple[str, str]] = {
    "no JSON": ("hermes", "<tool_call>weather(Paris)</tool_call>"),
    "broken head": ("hermes", 'So: <tool_call>{"name": "weather" "arguments": {}}</tool_call>'),
    "broken arguments": ("hermes", '<tool_call>{"name": "weather", "arguments": {"a": tru}}</tool_call>'),
    "brackets that do not match": ("hermes", '<tool_call>{"name": "weather", "arguments": {"a": [1}}}</tool_call>'),
    "NaN": ("hermes", '<tool_call>{"name": "weather", "arguments": {"a": NaN}}</tool_call>'),
    "a list for arguments": ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
    "text for arguments": ("hermes", '<tool_call>{"name": "weather", "arguments": "Paris"}</tool_call>'),
    "no name": ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
    "a number for a name": ("hermes", '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
    "an empty name": ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    "two names": ("hermes", '<tool_call>{"name": "a", "name": "b", "arguments": {}}</tool_call>'),
    "no closing brace": ("hermes", '<tool_call>{"name": "weather", "arguments": {"a": 1}\n</tool_call>'),
    "another bracket at the end": ("hermes", '<tool_call>{"name": "weather", "arguments": {"a": 1}]</tool_call>'),
    "cut before the last brace": ("hermes", '<tool_call>{"name": "weather", "arguments": {"a": 1}'),
    "garbage behind the arguments": ("hermes", '<tool_call>{"name": "weather", "arguments": {"a": 1}, 7}</tool_call>'),
    "too deep": ("hermes", '<tool_call>{"name": "weather", "arguments": {"a": ' + "[" * 70 + "]" * 70 + "}}"),
    "an empty tag": ("hermes", "<tool_call></tool_call>"),
    "cut in the name": ("hermes", 'Look: <tool_call>{"name": "wea'),
    "cut in the tag": ("hermes", "Look: <tool_ca"),
    "cut in the arguments": ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Par'),
    "python's unknown second name": ("pythonic", "[weather(), fly()]"),
    "python's positions": ("pythonic", "[weather('Rome')]"),
    "python's code": ("pythonic", "[weather(city=open('x'))]"),
    "python's set": ("pythonic", "[weather(city={1})]"),
    "python, cut": ("pythonic", "<|python_start|>[weather(city='Ro"),
    "python's brackets": ("pythonic", "[weather(city=" + "[" * 300),
    "python's list without an end": ("pythonic", "[weather"),
    "deepseek's empty list": ("deepseek_v3", "<CALLS> <ENDS>"),
    "deepseek's head without a name": ("deepseek_v3", "<CALLS><CALL>function weather {}<END><ENDS>"),
    "deepseek's call without arguments": ("deepseek_v3", "<CALLS><CALL>weather<SEP>"),
    "deepseek's text in the list": ("deepseek_v3", "<CALLS>\nweather()<ENDS>"),
    "deepseek's endless head": ("deepseek_v3", "<CALLS><CALL>" + "a" * 600 + "{}"),
    "llama's tag without JSON": ("llama3_json", "<|python_tag|>search.call(query='x')"),
    "llama's broken call": ("llama3_json", '{"name": "weather", "parameters": {"a": ]}} tail'),
    "llama's call, cut": ("llama3_json", '{"name": "weather", "parameters": {"a": 1'),
    "mistral's broken list": ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {1}}] tail'),
    "mistral's name alone": ("mistral", "[TOOL_CALLS]weather"),
    "mistral's marker alone": ("mistral", "Well [TOOL_CALLS] "),
    "mistral's call without an object": ("mistral", "[TOOL_CALLS]weather[ARGS]7 tail"),
    "mistral's endless name": ("mistral", "[TOOL_CALLS]" + "a" * 300 + "{}"),
}
_MARKS = {
    "<CALLS>": "<｜tool▁calls▁begin｜>",
    "<ENDS>": "<｜tool▁calls▁end｜>",
    "<CALL>": "<｜tool▁call▁begin｜>",
    "<SEP>": "<｜tool▁sep｜>",
    "<END>": "<｜tool▁call▁end｜>",
}


def _written_out(value: Any) -> Any:
    """DeepSeek's marks stand in short in the tables above."""
    if isinstance(value, str):
        for short, mark in _MARKS.items():
            value = value.replace(short, mark)
        return value
    return type(value)(_written_out(item) for item in value)


WELL_FORMED = {name: _written_out(case) for name, case in WELL_FORMED.items()}
MALFORMED = {name: _written_out(case) for name, case in MALFORMED.items()}

HEAD_IS_FINE = {  # calls whose arguments have begun when it turns out that they are none
    "no closing brace",
    "another bracket at the end",
    "cut before the last brace",
    "garbage behind the arguments",
    "broken arguments",
    "brackets that do not match",
    "NaN",
    "too deep",
    "cut in the arguments",
    "llama's broken call",
    "llama's call, cut",
    "mistral's broken list",
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_whole_answer_is_read(name: str) -> None:
    form, text, content, calls = WELL_FORMED[name]
    assert whole(form, text) == (content, calls)


@pytest.mark.parametrize("name", WELL_FORMED)
def test_answer_cut_anywhere_says_what_the_whole_says(name: str) -> None:
    form, text, content, calls = WELL_FORMED[name]
    assert in_pieces(form, text) == (content, calls)
    for cut in range(len(text) + 1):
        assert in_pieces(form, [text[:cut], text[cut:]]) == (content, calls), text[:cut]


@pytest.mark.parametrize("name", [name for name, (_, text, _, _) in WELL_FORMED.items() if len(text) < 80])
def test_short_answer_with_any_two_cuts_says_what_the_whole_says(name: str) -> None:
    form, text, content, calls = WELL_FORMED[name]
    for first in range(len(text)):
        for second in range(first, len(text)):
            assert in_pieces(form, [text[:first], text[first:second], text[second:]]) == (content, calls)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_call_is_text_and_nothing_is_lost(name: str) -> None:
    form, text = MALFORMED[name]
    assert whole(form, text) == (text, [])


@pytest.mark.parametrize("name", [name for name in MALFORMED if name not in HEAD_IS_FINE])
def test_call_that_is_malformed_before_its_arguments_is_text_in_a_stream_too(name: str) -> None:
    form, text = MALFORMED[name]
    for cut in range(len(text) + 1):
        assert in_pieces(form, [text[:cut], text[cut:]]) == (text, [])
    assert in_pieces(form, text) == (text, [])


@pytest.mark.parametrize("name", sorted(HEAD_IS_FINE))
def test_arguments_that_were_given_out_stay_given_out_and_nothing_comes_twice(name: str) -> None:
    form, text = MALFORMED[name]
    content, calls = in_pieces(form, text)
    ((tool, arguments),) = calls
    assert tool == "weather"
    _, _, after = text.partition(arguments)
    assert arguments and content in after
    for cut in range(len(text) + 1):
        assert in_pieces(form, [text[:cut], text[cut:]]) == (content, calls)


def test_broken_call_between_good_ones_is_text() -> None:
    good = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    text = good + "<tool_call>oops</tool_call>" + good
    assert whole("hermes", text) == ("<tool_call>oops</tool_call>", [("weather", "{}")] * 2)


def test_nested_tag_is_text_and_the_inner_call_is_a_call() -> None:
    text = '<tool_call><tool_call>{"name": "weather", "arguments": {}}</tool_call></tool_call>'
    assert whole("hermes", text) == in_pieces("hermes", text) == ("<tool_call></tool_call>", [("weather", "{}")])


def test_first_part_of_a_call_has_id_and_name_and_the_others_its_arguments() -> None:
    parser = new_parser("hermes")
    parts = []
    for piece in ['<tool_call>{"name": "weather", ', '"arguments": {"ci', 'ty": "Par', 'is"}', "}</tool_call>"]:
        parts.append(parser.feed(piece).tool_calls)
    assert parts[0] == parts[4] == []
    opening, first = parts[1]
    assert opening.id is not None and opening.id.startswith("call_")
    assert (opening.index, opening.name, opening.arguments) == (0, "weather", "")
    rest = [first, *parts[2], *parts[3]]
    assert [(part.index, part.id, part.name) for part in rest] == [(0, None, None)] * 3
    assert [part.arguments for part in rest] == ['{"ci', 'ty": "Par', 'is"}']


def test_calls_have_ids_of_their_own_and_mistrals_are_nine_letters_and_digits() -> None:
    text = '[TOOL_CALLS][{"name": "weather", "arguments": {}}, {"name": "weather", "arguments": {}}]'
    first, second = new_parser("mistral").whole(text).tool_calls
    assert first.id != second.id and (first.index, second.index) == (0, 1)
    for call in (first, second):
        assert call.id is not None and len(call.id) == 9 and call.id.isalnum()


def test_without_parallel_calls_the_client_gets_the_first() -> None:
    _, text, _, calls = WELL_FORMED["required calls"]
    assert whole("required", text, parallel=False) == in_pieces("required", text, parallel=False) == ("", calls[:1])


def test_required_call_that_is_cut_off_is_a_call() -> None:
    text = '[{"name": "weather", "parameters": {"city": "Par'
    assert whole("required", text) == in_pieces("required", text) == ("", [("weather", '{"city": "Par')])
    assert whole("named", '{"city": "P') == ("", [("weather", '{"city": "P')])


def test_required_call_has_the_schema_of_one_of_the_tools() -> None:
    schemas = {"weather": {"type": "object"}, "search": {"type": "object", "properties": {}}}
    schema = RequiredCalls.schema(schemas, parallel=False)
    assert (schema["minItems"], schema["maxItems"]) == (1, 1)
    assert [one["properties"]["name"]["enum"] for one in schema["items"]["anyOf"]] == [["weather"], ["search"]]
    assert "maxItems" not in RequiredCalls.schema(schemas, parallel=True)


HOSTILE = {
    "<": "<",
    "tags": "<tool_call>",
    "closing tags": "</tool_call>",
    "calls without an end": '<tool_call>{"name":"weather","arguments":{"a":',
    "open brackets": '<tool_call>{"name":"weather","arguments":' + "[",
    "brackets": "[",
    "braces": '{"a":',
    "spaces": " ",
    "quotes": '"',
    "backslashes": '<tool_call>{"name": "' + "\\",
    "markers": "[TOOL_CALLS]",
    "names": "[TOOL_CALLS]a",
    "lists": "<｜tool▁calls▁begin｜> ",
    "python": "[weather(",
}


@pytest.mark.parametrize("form", ["hermes", "llama3_json", "mistral", "deepseek_v3", "pythonic", "required", "named"])
@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("size", [1, 10_000], ids=["token by token", "at once"])
def test_hostile_text_costs_twice_as_much_when_it_is_twice_as_long(form: str, piece: str, size: int) -> None:
    def steps(length: int) -> int:
        text, parser = (piece * length)[:length], new_parser(form)

        def parse() -> None:
            for at in range(0, length, size):
                parser.feed(text[at : at + size])
            parser.finish()

        return instructions(parse)

    assert steps(2000) <= 2.5 * steps(1000) + 5000


def test_text_of_100_000_signs_is_read_whole() -> None:
    for piece in HOSTILE.values():
        text = (piece * 100_000)[:100_000]
        for form in ("hermes", "mistral", "llama3_json", "deepseek_v3", "pythonic"):
            content, calls = whole(form, text)
            assert len(content) == len(text) and not calls


# -- the registry


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ('... within <tool_call></tool_call> XML tags: {"name": <function-name>, ...', "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("<|start_header_id|> ... <|python_tag|>", "llama3_json"),
        ("<tool_call>\n<function=example>", None),
        ("{{ messages[0].content }}", None),
    ],
)
def test_chat_template_says_which_parser(template: str, form: str | None) -> None:
    assert tool_parser_of(template) is (None if form is None else TOOL_PARSERS[form])


def test_unknown_parser_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(ValueError, match=r"there is no tool parser 'herme': choose one of .*hermes.*mistral"):
        tool_parser("herme")


SCHEMAS = {"weather": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}


def accepted(tag: str | None, text: str) -> bool:
    """Whether xgrammar's matcher takes the whole text."""
    assert tag is not None
    tokenizer = xgrammar.TokenizerInfo([chr(code) for code in range(1, 128)] + ["<end>"], stop_token_ids=[127])
    grammar = xgrammar.GrammarCompiler(tokenizer).compile_structural_tag(tag)
    matcher = xgrammar.GrammarMatcher(grammar)
    return matcher.accept_string(text) and matcher.accept_token(127)


def test_strict_calls_of_hermes_meet_their_schema_and_are_read() -> None:
    tag = text_with_calls(TOOL_PARSERS["hermes"], SCHEMAS)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
    assert accepted(tag, "Well. " + call)
    assert accepted(tag, "No call.")
    assert not accepted(tag, call.replace('"Ulm"', "7"))
    assert whole("hermes", call) == ("", [("weather", '{"city": "Ulm"}')])
    assert text_with_calls(TOOL_PARSERS["llama3_json"], SCHEMAS) is None


@pytest.mark.parametrize("parallel", [True, False])
def test_answer_in_a_form_may_be_a_call_instead(parallel: bool) -> None:
    tag = json_or_calls(TOOL_PARSERS["hermes"], SCHEMAS, {"type": "object", "maxProperties": 0}, parallel=parallel)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
    assert accepted(tag, "{}")
    assert accepted(tag, call)
    assert accepted(tag, f"{call}\n{call}") is parallel
    assert not accepted(tag, "Well.")
    assert not accepted(tag, "{}" + call)
