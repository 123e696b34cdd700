"""A prefill engine and decode engines as processes of their own, driven as vLLM's routers drive them."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import LlamaForCausalLM

from headway.bench.serving_process import free_port
from tests.server.fakes import MODEL
from tests.server.running import Server, tiny_config
from tests.tiny_tokenizer import CHAT_TEMPLATE, byte_tokenizer

ASKS_P = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None}
READERS = ("shared-memory", "tcp")


class Group(NamedTuple):
    """decode: by the way that it reads blocks. mixed: an engine that computes everything."""

    model: Path
    kv_peers: str
    prefill: Server
    decode: dict[str, Server]
    mixed: Server


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    model = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(model)
    byte_tokenizer(CHAT_TEMPLATE).save_pretrained(model)
    address = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:

        def serve(**config: object) -> Server:
            options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "num_blocks": 96, "max_num_seqs": 8}
            return stack.enter_context(Server(model, wait=False, **options, **config))

        restarts: dict[str, object] = {"engine_restarts": 1}
        prefill = serve(role="prefill", kv_listen=address, lend_timeout=5.0, options=restarts)
        decode = [serve(role="decode", kv_peers=address, kv_transport=way) for way in READERS]
        servers = Group(model, address, prefill, dict(zip(READERS, decode, strict=True)), serve())
        for server in (servers.prefill, *decode, servers.mixed):
            server._wait()
        yield servers


def complete(server: Server, prompt: list[int], **body: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **body}
    response = server.http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def handed_over(group: Group, prompt: list[int], **body: Any) -> dict[str, Any]:
    """What P tells D, as a router asks for it: some of these ask for one token at least, others do not."""
    asked = {**body, "max_tokens": 1, "min_tokens": len(prompt) % 2, "kv_transfer_params": ASKS_P}
    params: dict[str, Any] = complete(group.prefill, prompt, **asked)["kv_transfer_params"]
    return params


def prompts(seed: int, count: int) -> list[list[int]]:
    dice = random.Random(seed)
    return [[dice.randrange(97, 123) for _ in range(dice.choice((5, 16, 17, 32, 60, 120)))] for _ in range(count)]


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


def total(server: Server, *parts: str) -> float:
    """The sum of all series whose name has these parts."""
    lines = server.http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(part in line for part in parts))


def tokens_by_source(server: Server, source: str) -> float:
    return total(server, f'source="{source}"')


def received(server: Server) -> float:
    return tokens_by_source(server, "external_kv_transfer")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("body", [{}, {"logprobs": 3}, {"temperature": 0.8, "seed": 11}, {"min_tokens": 3}], ids=str)
def test_answers_are_those_of_one_engine_that_computes_everything(
    group: Group, reader: str, body: dict[str, Any]
) -> None:
    server, before = group.decode[reader], received(group.decode[reader])
    for prompt in prompts(len(str(body)) + len(reader), 6):
        params = handed_over(group, prompt, **body)
        assert text_of(complete(server, prompt, **body, kv_transfer_params=params)) == text_of(
            complete(group.mixed, prompt, **body)
        )
    assert received(server) > before
    assert total(server, "headway:kv_transfer_bytes_total", 'direction="received"', f'transport="{reader}"') > 0
    group.prefill.wait_for("kv_blocks_lent", 0)


def lent_by(server: Server) -> dict[int, dict[str, Any]]:
    """What `headway doctor` is told of the leases of other engines, by uid."""
    owners = server.http.get("/debug/ownership").json()["owners"]
    return {owner["uid"]: owner for owner in owners if owner["kind"] == "borrower"}


def test_the_doctor_hears_what_is_lent_and_for_how_long(group: Group) -> None:
    prompt, before = [97, *range(100, 120), *range(97, 123)], lent_by(group.prefill)
    consumed = total(group.prefill, "headway:kv_leases_ended_total", 'reason="consumed"')
    params = handed_over(group, prompt)
    (uid,) = lent_by(group.prefill).keys() - before.keys()
    first, later = lent_by(group.prefill)[uid], lent_by(group.prefill)[uid]
    assert first["num_blocks"] == 3 and 0 <= first["seconds"] < later["seconds"] and first["peer"] is None
    complete(group.decode["tcp"], prompt, kv_transfer_params=params)
    assert uid not in lent_by(group.prefill)
    deadline = time.monotonic() + 60
    while total(group.prefill, "headway:kv_leases_ended_total", 'reason="consumed"') <= consumed:
        assert time.monotonic() < deadline
    assert total(group.decode["tcp"], "headway:kv_peers", 'state="connected"') == 1


def test_a_reference_counts_once_and_then_the_prompt_is_computed_by_d(group: Group) -> None:
    server, prompt = group.decode["tcp"], prompts(90, 1)[0] + [100] * 40
    params, lost = handed_over(group, prompt), server.metric("lost_pulls_total")
    first = complete(server, prompt, kv_transfer_params=params)
    other = [101, *prompt[1:]]
    again = complete(server, other, kv_transfer_params=params)
    assert text_of(first) == text_of(complete(group.mixed, prompt))
    assert text_of(again) == text_of(complete(group.mixed, other))
    assert server.metric("lost_pulls_total") == lost + 1


@pytest.mark.parametrize(
    "changed",
    [
        {"remote_host": "192.0.2.1"},
        {"remote_port": 1},
        {"remote_port": "port"},
        {"remote_host": ["127.0.0.1"]},
        {"remote_reference": "nonsense"},
        {"remote_reference": None},
        {"remote_reference": "A" * 10_000},
        {"do_remote_prefill": "yes"},
        {"remote_engine_id": "ff" * 16},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_parameters_that_do_not_count_mean_that_d_computes_the_prompt(group: Group, changed: dict[str, Any]) -> None:
    server, prompt = group.decode["shared-memory"], prompts(91, 1)[0] + [102] * 50
    params = {**handed_over(group, prompt), **changed}
    assert text_of(complete(server, prompt, kv_transfer_params=params)) == text_of(complete(group.mixed, prompt))


def test_an_address_of_a_request_is_never_connected_to(group: Group) -> None:
    """The parameters of P are whole but for the address, at which something else listens."""
    server, prompt = group.decode["tcp"], prompts(95, 1)[0] + [105] * 50
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        params = {**handed_over(group, prompt), "remote_port": elsewhere.getsockname()[1]}
        assert text_of(complete(server, prompt, kv_transfer_params=params)) == text_of(complete(group.mixed, prompt))
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):  # the answer is there, and nothing has knocked
            elsewhere.accept()


def test_an_operation_of_the_other_role_is_refused_with_the_role_that_takes_it(group: Group) -> None:
    prompt = prompts(96, 1)[0] + [106] * 40
    params = handed_over(group, prompt)
    for server, wanted, mine, other in (
        (group.prefill, params, "prefill", "decode"),
        (group.decode["tcp"], ASKS_P, "decode", "prefill"),
    ):
        body = {"prompt": prompt, "max_tokens": 12, "kv_transfer_params": wanted}
        response = server.http.post("/v1/completions", json=body)
        assert response.status_code == 400, response.text
        message = response.json()["error"]["message"]
        assert f"the role of this engine is {mine}" in message and f"whose role is {other} or mixed" in message
    answer = complete(group.decode["tcp"], prompt, kv_transfer_params=params)  # what is lent is there as before
    assert text_of(answer) == text_of(complete(group.mixed, prompt))


def test_several_answers_and_several_prompts_are_answered_in_full(group: Group) -> None:
    server, prompt = group.decode["shared-memory"], prompts(92, 1)[0] + [103] * 40
    body = {"n": 3, "temperature": 0.9, "seed": 3}
    params = handed_over(group, prompt, temperature=0.9, seed=3)
    answers = complete(server, prompt, **body, kv_transfer_params=params)["choices"]
    assert answers == complete(group.mixed, prompt, **body)["choices"]
    assert "kv_transfer_params" not in complete(group.prefill, [prompt, prompt], kv_transfer_params=ASKS_P)  # type: ignore[arg-type]


def test_a_decode_engine_asks_prefill_engines_by_itself(group: Group) -> None:
    options = {"prefill": ["http://127.0.0.1:1", group.prefill.url], "max_local_prefill_tokens": 20}
    config = {"device": "cpu", "dtype": "float32", "num_blocks": 96, "role": "decode", "kv_peers": group.kv_peers}
    with Server(group.model, options=options, **config) as server:  # type: ignore[arg-type]
        for prompt in prompts(94, 8):
            for body in ({}, {"temperature": 0.7, "seed": 4}):
                assert text_of(complete(server, prompt, **body)) == text_of(complete(group.mixed, prompt, **body))
        assert received(server) > 0 and server.metric("lost_pulls_total") == 0
        several, computed = {"n": 4, "temperature": 0.9, "seed": 3}, tokens_by_source(server, "local_compute")
        prompt = prompts(95, 1)[0] + [105] * 100
        assert complete(server, prompt, **several)["choices"] == complete(group.mixed, prompt, **several)["choices"]
        # D pulls once, for all: each of the others computes the last block, of 32 tokens.
        assert tokens_by_source(server, "local_compute") - computed <= 4 * 32
        assert "the prefill engine http://127.0.0.1:1 failed" in server.log()
        assert server.stop() == 0 and "Traceback" not in server.log(), server.log()


def test_a_reference_of_before_a_restart_of_p_counts_for_nothing_and_new_ones_do(group: Group) -> None:
    server, prompt = group.decode["shared-memory"], prompts(97, 1)[0] + [107] * 60
    old, lost, before = handed_over(group, prompt), server.metric("lost_pulls_total"), received(server)
    for child in group.prefill.children():
        os.kill(child, signal.SIGKILL)
    group.prefill.wait_for("engine_restarts_total", 1)
    handed_over(group, [108, *prompt])  # a lease of the new engine, which may have the uid of the old one
    assert text_of(complete(server, prompt, kv_transfer_params=old)) == text_of(complete(group.mixed, prompt))
    assert server.metric("lost_pulls_total") == lost + 1 and received(server) == before
    for number in range(100):  # D comes back to P by itself
        prompt = [110 + number % 10, *prompt]
        params = handed_over(group, prompt)
        assert params["remote_engine_id"] != old["remote_engine_id"]
        assert text_of(complete(server, prompt, kv_transfer_params=params)) == text_of(complete(group.mixed, prompt))
        if received(server) > before:
            break
        time.sleep(0.2)
    assert received(server) > before


def test_the_death_of_p_costs_no_answer(group: Group) -> None:
    """Last: P is gone after it."""
    prompt = prompts(93, 1)[0] + [104] * 60
    params = handed_over(group, prompt)
    for child in group.prefill.children():
        os.kill(child, signal.SIGKILL)
    for server in group.decode.values():
        assert text_of(complete(server, prompt, kv_transfer_params=params)) == text_of(complete(group.mixed, prompt))
        assert server.stop() == 0 and "Traceback" not in server.log(), server.log()
