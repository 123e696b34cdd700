"""`headway bench grammar`: every answer is written, token by token, within the masks of its own grammar."""

from __future__ import annotations

import json

import jsonschema_rs
from headway_lab.benches import grammar
from headway_lab.rigs.grammar_device import Tokens, instance, schema, vocabulary


def test_answers_keep_to_their_schemas_which_all_differ() -> None:
    for number in range(5):
        assert jsonschema_rs.is_valid(schema(number), json.loads(instance(number)))
    assert len({json.dumps(schema(number)) for number in range(64)}) == 64


def test_a_text_is_the_sum_of_its_tokens() -> None:
    tokens = vocabulary(2000)
    assert len(tokens) == 2000
    assert b"".join(tokens[token] for token in Tokens(tokens).encode(instance(1))) == instance(1).encode()


def test_both_kinds_of_answers_are_measured() -> None:
    free, formed = grammar.measure(batch=6, vocab_size=1500, step_s=0.0, steps=40, rounds=1)
    assert (free["answers"], free["host_ms"], free["times_free"]) == ("free", None, 1.0)
    assert formed["answers"] == "each by a grammar" and formed["host_ms"] > 0 and formed["steps"] == 40
