"""The server as processes: a simulated device behind everything else that is real."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.server.fakes import MODEL
from tests.server.running import PATIENCE, Server, failed_start, is_running, save_without_weights

SIMULATED = ("--executor", "simulated", "--base-s", "0.02")  # 250 tokens take 5 seconds
SLOTS = WAITING = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_without_weights(folder)
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with Server(
        model, engine_args=SIMULATED, max_num_seqs=SLOTS, max_num_batched_tokens=512, max_waiting=WAITING
    ) as server:
        yield server
        assert server.stop() == 0, server.log()
        assert server.leftovers() == []
        assert "Traceback" not in server.log()


def eventually(ask: Callable[[], object], expected: object) -> bool:
    """Whether `ask` comes to give what is expected: an abort is on its way when its client has gone."""
    until = time.monotonic() + PATIENCE
    while (found := ask()) != expected and time.monotonic() < until:
        time.sleep(0.02)
    return found == expected


def test_the_official_client_gets_an_answer(server: Server) -> None:
    answer = server.openai.completions.create(model=MODEL, prompt="ab", max_tokens=5, n=2, seed=1)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage is not None and answer.usage.completion_tokens == 10
    chat = server.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], max_completion_tokens=4, user="me"
    )
    assert chat.choices[0].message.role == "assistant" and chat.choices[0].message.content


def test_a_stream_reads_like_the_whole(server: Server) -> None:
    messages = [{"role": "user", "content": "count"}]
    whole = server.openai.chat.completions.create(model=MODEL, messages=messages, max_tokens=20)
    chunks = list(
        server.openai.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 20
    assert len(chunks) > 5, "it did not come in pieces"


async def test_many_at_once_are_all_answered(server: Server) -> None:
    async def ask(number: int) -> int:
        answer = await server.async_openai.completions.create(model=MODEL, prompt=f"{number}", max_tokens=number)
        return answer.usage.completion_tokens

    numbers = range(1, SLOTS + WAITING + 1)
    assert await asyncio.gather(*(ask(number) for number in numbers)) == list(numbers)


def test_max_tokens_is_cut_to_what_the_model_leaves(server: Server) -> None:
    answer = server.openai.completions.create(
        model=MODEL, prompt="a" * 250, max_tokens=200, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 6


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": ""}, ["empty"]),
        ({"prompt": []}, ["prompt is empty"]),
        ({"prompt": [[]]}, ["empty"]),
        ({"prompt": "a" * 300}, ["300", "256"]),
        ({"prompt": [1, 99_999]}, ["99999"]),
        ({"prompt": [-1]}, ["-1"]),
        ({"prompt": "a", "stop_token_ids": [10**6]}, ["stop_token_ids", str(10**6)]),
        ({"prompt": "a", "logit_bias": {"99999": 1}}, ["logit_bias", "99999"]),
        ({"prompt": "a", "max_tokens": None, "min_tokens": 2000}, ["min_tokens", "2000", "255"]),
        ({"prompt": ["a", "b", "a" * 300]}, ["300", "256"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_is_a_400_and_the_server_goes_on(
    server: Server, body: dict[str, object], words: list[str], stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.post("/completions", body={"stream": stream, **body}, cast_to=httpx.Response)
    for word in words:
        assert word in caught.value.message
    server.wait_for("num_requests_running", 0)
    server.wait_for("num_requests_waiting", 0)
    assert server.http.get("/health").status_code == 200


def test_more_than_the_queue_holds_is_refused_at_once(server: Server) -> None:
    body = {"prompt": "a", "max_tokens": 100, "ignore_eos": True}  # two seconds, and as long again for those behind
    with ThreadPoolExecutor(SLOTS + WAITING) as pool:
        inside = [pool.submit(server.http.post, "/v1/completions", json=body) for _ in range(SLOTS + WAITING)]
        server.wait_for("num_requests_running", SLOTS)
        server.wait_for("num_requests_waiting", WAITING)
        response = server.http.post("/v1/completions", json=body)
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "queue_full"
    assert [request.result().status_code for request in inside] == [200] * (SLOTS + WAITING)
    # Neither is a group taken by half, and what was taken of it is given back.
    body = {**body, "max_tokens": 5}
    for n, status in ((SLOTS + WAITING + 1, 400), (SLOTS + WAITING, 200)):
        assert eventually(lambda n=n: server.http.post("/v1/completions", json={**body, "n": n}).status_code, status)


def test_a_duplicate_id_is_a_409(server: Server) -> None:
    body = {"prompt": "a", "max_tokens": 100, "ignore_eos": True, "request_id": "mine", "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as first:
        assert first.status_code == 200
        assert server.http.post("/v1/completions", json=body).status_code == 409
    # The first one's client has gone, so its id is free again, at once.
    assert server.http.post("/v1/completions", json={**body, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_frees_its_slot(server: Server, stream: bool) -> None:
    body = {"prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": stream}
    started = server.metric("generation_tokens_total")
    timeout = httpx.Timeout(60, read=0.3)
    with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=timeout) as client:
        if stream:
            with client.stream("POST", f"{server.url}/v1/completions", json=body) as response:
                assert response.status_code == 200
                next(response.iter_lines())
                raise httpx.ReadTimeout("seen enough")
        client.post(f"{server.url}/v1/completions", json=body)
    server.wait_for("num_requests_running", 0)
    assert server.metric("generation_tokens_total") - started < 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_leaves_the_queue(server: Server, stream: bool) -> None:
    body = {"prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True}
    with contextlib.ExitStack() as running:
        for _ in range(SLOTS):
            running.enter_context(server.http.stream("POST", "/v1/completions", json=body))
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=httpx.Timeout(60, read=0.3)) as client:
            client.post(f"{server.url}/v1/completions", json={**body, "stream": stream})
        server.wait_for("num_requests_waiting", 0)
        assert server.metric("num_requests_running") == SLOTS
    server.wait_for("num_requests_running", 0)


def test_metrics_count_what_was_served(server: Server) -> None:
    before = server.metric("generation_tokens_total"), server.metric("prefix_cache_hits_total")
    for _ in range(2):
        server.openai.completions.create(model=MODEL, prompt="p" * 100, max_tokens=7)
    server.wait_for("prefix_cache_hits_total", before[1] + 96)  # six blocks of 16, the second time
    assert server.metric("generation_tokens_total") == before[0] + 14


def test_sigterm_lets_running_requests_finish_within_the_grace(model: Path) -> None:
    slow = ("--executor", "simulated", "--base-s", "0.1")
    with Server(model, engine_args=slow, grace=5.0) as server, ThreadPoolExecutor(3) as pool:

        def post(max_tokens: int) -> httpx.Response:
            body = {"prompt": "a", "max_tokens": max_tokens, "ignore_eos": True}
            return server.http.post("/v1/completions", json=body)

        short, long = pool.submit(post, 10), pool.submit(post, 255)  # a second, and far longer than the grace
        server.wait_for("num_requests_running", 2)
        (engine,) = server.children()
        server.process.send_signal(signal.SIGTERM)
        while (refused := post(1)).status_code == 200:
            pass
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
        assert short.result().status_code == 200
        assert short.result().json()["usage"]["completion_tokens"] == 10
        assert long.result().status_code == 503
        assert long.result().json()["error"]["code"] == "shutting_down"
        assert server.process.wait(60) == 0
        assert not is_running(engine)
        assert server.leftovers() == []
        log = server.log()
        assert "the server stops: 2 requests are open and may go on for up to 5 s; Ctrl-C again to stop now" in log
        assert "1 request is cut by the shutdown" in log and ", 1 were cut" in log
        assert log.rstrip().endswith("headway.server.serve: stopped")


def test_a_second_signal_cuts_what_is_open_and_says_so(model: Path) -> None:
    with Server(model, engine_args=SIMULATED, grace=600.0) as server, ThreadPoolExecutor(1) as pool:
        body = {"prompt": "a", "max_tokens": 255, "ignore_eos": True}
        asking = pool.submit(server.http.post, "/v1/completions", json=body)
        server.wait_for("num_requests_running", 1)
        server.process.send_signal(signal.SIGINT)
        assert eventually(lambda: "Ctrl-C again to stop now" in server.log(), True)
        server.process.send_signal(signal.SIGINT)
        assert asking.result().json()["error"]["code"] == "shutting_down"
        assert server.process.wait(60) == 0
        assert "1 request is cut by the second signal" in server.log()


def test_before_its_first_request_a_server_has_said_what_it_serves_and_how_to_ask(server: Server) -> None:
    log = server.log()
    assert f"serves {MODEL} (LlamaForCausalLM, 0 bytes of weights)" in log
    assert "on a simulated device" in log and f"try: curl {server.url}/v1/" in log


def test_a_port_in_use_is_one_line_and_status_2(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, text = failed_start(model, port=port)
    assert status == 2
    assert text.count("\n") == 1 and f"127.0.0.1:{port}" in text and "in use" in text


def test_an_unknown_model_is_one_line_and_status_2() -> None:
    status, text = failed_start("/no/such/model")
    assert status == 2
    assert text == "headway: model folder '/no/such/model' does not exist\n"


def test_sigterm_while_the_model_loads_ends_it_at_once(model: Path) -> None:
    with Server(model, engine_args=SIMULATED, wait=False) as server:
        while not server.children():
            assert server.process.poll() is None
            time.sleep(0.01)
        (engine,) = server.children()
        assert server.stop() == 0
        assert not is_running(engine)
        assert server.leftovers() == []


def test_silent_connections_keep_no_client_out(server: Server) -> None:
    address = server.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as silent:
        for _ in range(300):
            silent.enter_context(socket.create_connection((address[0], int(address[1]))))
        assert server.http.get("/health").status_code == 200
