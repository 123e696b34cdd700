"""A stand-in for a server, which answers as the bench expects and misbehaves where a prompt asks for it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse


class FakeServer:
    """Streams `max_tokens` pieces "x" per answer; a prompt that names a fault gets that fault.

    requests: bodies received at /v1/completions. most_in_flight: answers streamed at the same time.
    """

    def __init__(self) -> None:
        self.base_url = ""
        self.forget()
        self.app = FastAPI()
        self.app.get("/v1/models")(lambda: {"data": [self.card]})
        self.app.post("/tokenize")(self._tokenize)
        self.app.post("/v1/completions")(self._complete)

    def forget(self) -> None:
        self.requests: list[dict] = []
        self.in_flight = self.most_in_flight = 0
        self.hold_for = 0  # no answer goes on before so many have been streamed at the same time
        self.piece: Callable[[int], str | None] = lambda index: "x"  # None: a token that shows no text
        self.tokens = lambda text: [ord(character) for character in text]
        self.card: dict = {"id": "fake", "max_model_len": 256}

    async def _tokenize(self, request: Request) -> dict:
        return {"tokens": self.tokens((await request.json())["prompt"])}

    async def _complete(self, request: Request) -> object:
        body = await request.json()
        self.requests.append(body)
        if body["prompt"] == "refuse":
            return JSONResponse({"error": {"message": "prompt is too long"}}, 400)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _stream(self, body: dict):
        def event(**fields) -> str:
            return f"data: {json.dumps(fields)}\n\n"

        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            while self.most_in_flight < self.hold_for:
                await asyncio.sleep(0.005)
            for index in range(body["max_tokens"]):
                if (piece := self.piece(index)) is not None:
                    yield event(choices=[{"text": piece, "finish_reason": None}])
            if body["prompt"] == "fail":
                yield event(error={"message": "the engine died"})
                return
            yield event(choices=[{"text": "", "finish_reason": "length"}])
            if body["prompt"] != "no usage":
                usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
                yield event(choices=[], usage=usage)
            yield "data: [DONE]\n\n"
        finally:
            self.in_flight -= 1


@pytest.fixture(scope="session")
def running_fake_server() -> Iterator[FakeServer]:
    fake = FakeServer()
    server = uvicorn.Server(uvicorn.Config(fake.app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the stand-in server did not start"
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    fake.base_url = f"http://{host}:{port}"
    yield fake
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def fake_server(running_fake_server: FakeServer) -> FakeServer:
    running_fake_server.forget()
    return running_fake_server
