"""A check for schemathesis: a request that is valid by our documentation is not refused with 400.

schemathesis imports this file, see `tools/fuzz.py`. Its own check `positive_data_acceptance` knows statuses alone, and
some rules no schema can say. `REFUSALS` is the list of these rules; a refusal of any other kind is a fault of the
schema.
"""

from __future__ import annotations

import re

import schemathesis

# What the message says, and why the schema cannot.
REFUSALS = {
    r"min_tokens \(\d+\) must not exceed max_tokens": "two fields compared",
    r"min_tokens is \d+, but at most": "two fields and the length of the prompt compared",
    r"best_of \(-?\d+\) must equal n": "two fields compared",
    r"This model's maximum context length is \d+ tokens": "tokens are not characters, and the limit is the model's",
    r"tool_choice .* needs a tool parser": "whether there is one is the server's",
    r"truncate_prompt_tokens keeps \d+: keep fewer": "the limit is the model's",
    r"thinking_token_budget is set, but": "which tokens a model thinks between is the model's",
    r"at most \d+ tokens in all": "characters are not tokens",
    r"allowed_token_ids x \d+ answers": "three fields multiplied",
    r"no token is left to draw": "two fields compared",
    r"a bad word or sequence must have 1 to \d+ tokens": "characters are not tokens",
    r"the bad word .* has no tokens": "the tokenizer is the model's",
    r"repetition_detection.min_(pattern_size|count) must be an integer in": "two fields compared",
    r"the text has \d+ characters; at most": "the limit is the model's",
    r"contains token id \d+; ids are integers from 0 to": "the size of the vocabulary is the model's",
    r"the prompt is empty; at least 1 token is needed": "some tokenizers make a token of an empty text",
    r"answers; an engine holds at most": "two fields multiplied, and the limit is the server's",
    r"the chat template does not take this conversation": "templates have rules of their own",
    r"chat_template in a request may only name": "which templates there are, or are trusted, is the server's",
    r"chat_template_kwargs must not set": "the names are those of the template",
    r"tool_choice (names|allows|asks for a call)": "two fields compared",
    r"thinking.budget_tokens \(\d+\) must be less than max_tokens": "two fields compared",
    r"documents are not supported by this model's chat template": "the template is the model's",
    r"structured_outputs: ": "one form of several, its depth and size, and whether there is a grammar of it",
    r"kv_transfer_params (contains|has|cannot)": "the size of its JSON",
    r"(Input should be a valid integer|must be a token id), got -?\d+\.0(;|$)": "to a schema 1.0 is a whole number",
    r"prompt must be a string, a list of strings, a list of token ids": "the same in a list of token ids",
    r"is not valid JSON in UTF-8": "a lone surrogate is a character for a schema",
}
_KNOWN = re.compile("|".join(REFUSALS))


def cannot_be_described(message: str) -> bool:
    """Whether a refusal has a reason that no schema can say."""
    return _KNOWN.search(message) is not None


@schemathesis.check
def valid_requests_are_accepted(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Fails for an answer of 400 to a valid request, unless `REFUSALS` has it."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    message = response.json()["error"]["message"]
    assert cannot_be_described(message), f"a request that is valid by the schema is refused: {message}"
