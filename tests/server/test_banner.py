"""What a server says of itself before its first request."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from headway import __version__
from headway.config import SchedulerConfig
from headway.placement import Placement
from headway.server import banner as module
from headway.server.banner import DEMO, Subject, banner, hint_of
from headway.server.serve import stop_message

SUBJECT = Subject(
    name="some/model",
    kind="LlamaForCausalLM",
    num_weight_bytes=3 * 2**29,
    is_demo=False,
    has_chat=True,
    placement=Placement("cpu", "float32", "numba"),
    limits=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=2048, num_blocks=1001),
    max_waiting=100,
    url="http://127.0.0.1:8000/llm",
    has_docs=True,
    asks_for_key=False,
)


def test_it_names_model_place_room_address_and_a_first_request() -> None:
    assert list(banner(SUBJECT)) == [
        f"Headway {__version__} serves some/model (LlamaForCausalLM, 1.5 GiB of weights)",
        "on cpu in float32, attention by numba",
        "context of 2,048 tokens; KV cache of 16,000 tokens (1,000 blocks of 16); 8 requests at once, and 100 more may "
        "wait",
        "listening at http://127.0.0.1:8000/llm; API at http://127.0.0.1:8000/llm/docs",
        "try: curl http://127.0.0.1:8000/llm/v1/chat/completions -H 'Content-Type: application/json' -d "
        """'{"messages": [{"role": "user", "content": "Hello"}]}'""",
    ]


def test_the_demo_model_says_what_it_can_do_and_how_to_name_another() -> None:
    lines = list(banner(replace(SUBJECT, is_demo=True)))
    assert DEMO in lines and "headway serve MODEL" in DEMO
    assert '"prompt": "68-5="' in lines[-1], "a question that it was trained for"


@pytest.mark.parametrize("change", [{}, {"has_chat": False}, {"is_demo": True}, {"asks_for_key": True}])
def test_the_command_for_a_first_request_is_whole(change: dict[str, bool]) -> None:
    subject = replace(SUBJECT, **change)
    *_, last = banner(subject)
    words = shlex.split(last.removeprefix("try: "))
    assert isinstance(json.loads(words[-1]), dict)
    assert ("Authorization: Bearer KEY" in words) is subject.asks_for_key


def test_documents_that_are_not_served_are_not_named() -> None:
    assert not any("/docs" in line for line in banner(replace(SUBJECT, has_docs=False)))


@pytest.mark.parametrize(
    ("placement", "installed", "extra"),
    [
        (Placement("cpu", "float32", "torch"), False, "headway[cpu]"),
        (Placement("cpu", "float32", "torch"), True, None),
        (Placement("cpu", "bfloat16", "torch"), False, None),
        (Placement("cpu", "float32", "numba"), False, None),
        (Placement("cuda:0", "bfloat16", "torch"), False, "headway[cuda]"),
        (Placement("cuda:0", "bfloat16", "flashinfer"), False, None),
        (Placement(), False, None),
    ],
)
def test_an_extra_that_is_missing_is_named_where_it_would_help(
    monkeypatch: pytest.MonkeyPatch, placement: Placement, installed: bool, extra: str | None
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: object() if installed else None)
    hint = hint_of(placement)
    assert hint is None if extra is None else hint is not None and extra in hint


def test_a_server_that_stops_says_how_many_requests_it_waits_for_and_how_to_stop_it_at_once() -> None:
    assert stop_message(48, 10.0) == (
        "the server stops: 48 requests are open and may go on for up to 10 s; Ctrl-C again to stop now"
    )
    assert stop_message(1, 0.5).startswith("the server stops: 1 request is open and may go on for up to 0.5 s;")
    assert stop_message(0, 10.0) == "the server stops: no requests are open"


def test_several_engines_are_counted_and_each_has_these_limits() -> None:
    lines = list(banner(replace(SUBJECT, num_engines=2)))
    assert any(line.startswith("2 engines, each with a context of 2,048 tokens") for line in lines)
