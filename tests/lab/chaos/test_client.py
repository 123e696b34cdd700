"""A client notes what a server sends, event by event."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from headway_lab.chaos.cases import Case
from headway_lab.chaos.client import Client, Router
from headway_lab.chaos.history import End, Event, Failure, Finish, Piece

CASE = Case("/v1/completions", {"prompt": "1+1="})
Answer = Callable[[httpx.Request], httpx.Response]


async def seen(answer: Answer, *, router: Router | None = None, stream: bool = False) -> list[list[Event]]:
    client = Client({"p": "http://p", "d": "http://d"})
    client._http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    await client.ask(0, CASE, "d", router=router, stream=stream)
    await client.close()
    return [history.events for history in client.histories]


def stream_of(*lines: str) -> Answer:
    return lambda _: httpx.Response(200, text="".join(f"data: {line}\n\n" for line in lines))


def chunk(text: str, reason: str | None = None) -> str:
    return json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": reason, "logprobs": None}]})


@pytest.mark.parametrize(
    ("lines", "events"),
    [
        ([chunk("2"), chunk("", "stop"), "[DONE]"], [Piece(0, "2"), Finish(0, "stop"), End("done")]),
        ([chunk("2"), '{"error": {"message": "no"}}', "[DONE]"], [Piece(0, "2"), Failure("no"), End("done")]),
        ([chunk("2")], [Piece(0, "2"), End("cut", "the stream is over")]),
        ([], [End("cut", "the stream is over")]),
    ],
    ids=["complete", "failed", "truncated", "empty"],
)
async def test_a_stream(lines: list[str], events: list[Event]) -> None:
    assert await seen(stream_of(*lines), stream=True) == [events]


async def test_what_comes_after_the_end_of_a_stream_is_a_second_end() -> None:
    ((*_, first, second),) = await seen(stream_of(chunk("2", "stop"), "[DONE]", chunk("3")), stream=True)
    assert first == End("done") and isinstance(second, End)


async def test_errors_of_http_and_of_the_connection() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nothing there")

    def cut(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset")

    ((failure, end),) = await seen(lambda _: httpx.Response(503, text="paused"))
    assert (failure, end) == (Failure("paused", 503), End("done"))
    assert [events[0].kind for events in await seen(refuse)] == ["refused"]  # type: ignore[union-attr]
    assert [events[0].kind for events in await seen(cut)] == ["cut"]  # type: ignore[union-attr]


async def test_a_router_passes_on_what_p_lends_and_sends_the_original_request_after_a_failure_of_p() -> None:
    asked: list[tuple[str, dict[str, object]]] = []
    p_is_well = True

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.host, json.loads(request.content)))
        if request.url.host == "p" and not p_is_well:
            return httpx.Response(500, text="no")
        body = {"choices": [{"index": 0, "text": "2", "finish_reason": "length"}]}
        return httpx.Response(200, json=body | ({"kv_transfer_params": {"k": 1}} if request.url.host == "p" else {}))

    await seen(answer, router=Router("p"))
    (p, to_p), (d, to_d) = asked
    assert (p, d) == ("p", "d") and to_p["max_tokens"] == 1 and to_p["kv_transfer_params"]["do_remote_decode"]  # type: ignore[index]
    assert to_d == {**CASE.body, "stream": False, "kv_transfer_params": {"k": 1}}
    asked.clear()
    p_is_well = False
    await seen(answer, router=Router("p"))
    assert asked[1] == ("d", {**CASE.body, "stream": False})
    asked.clear()
    await seen(answer, router=Router("p", drops=True))
    assert [host for host, _ in asked] == ["p"]


class Lingering(httpx.AsyncByteStream):
    """A stream with its last word, whose connection ends in this way."""

    def __init__(self, end: Exception) -> None:
        self._end = end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield f"data: {chunk('2', 'stop')}\n\ndata: [DONE]\n\n".encode()
        raise self._end


@pytest.mark.parametrize("end", [TimeoutError(), httpx.ReadError("the server was killed")], ids=repr)
async def test_after_the_last_word_of_a_server_it_does_not_matter_how_the_connection_ends(end: Exception) -> None:
    """A client whose time is over between "[DONE]" and the end of the connection has its answer."""
    answers = await seen(lambda _: httpx.Response(200, stream=Lingering(end)), stream=True)
    assert answers == [[Piece(0, "2"), Finish(0, "stop"), End("done")]]
