"""SamplingParams: what is absurd is refused, with the value and the limit."""

from typing import Any

import pytest

from headway.errors import RequestError
from headway.sampling import SamplingParams


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n": 0}, r"n must be in \[1, 128\], got 0"),
        ({"n": 1.0}, "n must be an integer, got 1.0"),
        ({"temperature": -0.1}, r"temperature must be in \[0, 100\], got -0.1"),
        ({"temperature": float("nan")}, "temperature must be in .*, got nan"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_p": None}, "top_p must be a number, got None"),
        ({"top_k": -2}, "top_k must be -1 or 0 .*, got -2"),
        ({"top_k": 1.5}, "top_k must be an integer, got 1.5"),
        ({"min_p": 1.1}, r"min_p must be in \[0, 1\], got 1.1"),
        ({"presence_penalty": 3}, r"presence_penalty must be in \[-2, 2\], got 3"),
        ({"frequency_penalty": -3}, r"frequency_penalty must be in \[-2, 2\], got -3"),
        ({"repetition_penalty": 0}, "repetition_penalty must be in \\[0.001, 1000\\]"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be in \\[0.001, 1000\\]"),
        ({"seed": 2**63}, "seed must be in"),
        ({"seed": "7"}, "seed must be an integer, got '7'"),
        ({"max_tokens": -1}, "max_tokens must be at least 0, got -1"),
        ({"max_tokens": 2.5}, "max_tokens must be an integer, got 2.5"),
        ({"max_tokens": True}, "max_tokens must be an integer, got True"),
        ({"min_tokens": -1}, "min_tokens must be at least 0, got -1"),
        ({"min_tokens": 17}, r"min_tokens \(17\) must not exceed max_tokens \(16\)"),
        ({"prompt_logprobs": 21}, r"prompt_logprobs must be in \[0, 20\], got 21"),
        ({"prompt_logprobs": -1}, r"prompt_logprobs must be in \[0, 20\], got -1"),
        ({"prompt_logprobs": True}, "prompt_logprobs must be an integer, got True"),
        ({"logprobs": 21}, r"logprobs must be in \[0, 20\], got 21"),
        ({"stop": [""]}, "empty string"),
        ({"stop": ["x"] * 17}, "at most 16 strings, got 17"),
        ({"stop_token_ids": range(65)}, "at most 64 ids, got 65"),
        ({"logit_bias": {1: 101}}, r"logit_bias\[1\] must be in \[-100, 100\], got 101"),
        ({"logit_bias": dict.fromkeys(range(1025), 0)}, "at most 1024 tokens, got 1025"),
    ],
)
def test_absurd_values_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        SamplingParams(**fields)


def test_one_stop_string_may_stand_alone() -> None:
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore[arg-type]
    assert SamplingParams(stop=None).stop == ()  # type: ignore[arg-type]
