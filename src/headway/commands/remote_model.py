"""A model behind the API of OpenAI, as the commands `chat` and `complete` ask it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx

from headway.commands.remote_options import AnswerError
from headway.commands.remote_server import RemoteServer, complaint

PIECE_TIMEOUT = 600.0  # seconds between two pieces of an answer: a long prompt is computed before the first


class RemoteModel:
    """url: with its /v1. model: None: the first that the server names. options: of httpx, for key and certificate.

    Raises ValueError if the server does not answer as it should.
    """

    def __init__(self, url: str, model: str | None, options: Mapping[str, Any]) -> None:
        self._server = RemoteServer(url, options, timeout=PIECE_TIMEOUT)
        self.name = model if model is not None else self._first_model()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def stream_chat(self, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any]) -> Generator[str]:
        """The pieces of the answer to a conversation; reasoning between <think> and </think>. Raises ValueError for a
        refusal, and AnswerError."""
        thinks = False
        for choice in self._choices("/chat/completions", {**sampling, "messages": list(messages)}):
            delta = choice.get("delta") or {}
            reasoning = delta.get("reasoning") or delta.get("reasoning_content")
            if bool(reasoning) != thinks and (reasoning or delta.get("content")):
                thinks = bool(reasoning)
                yield "<think>\n" if thinks else "\n</think>\n"
            yield from filter(None, (reasoning, delta.get("content")))

    def stream_completion(self, prompt: str, sampling: Mapping[str, Any]) -> Generator[str]:
        """The pieces of a text that goes on after a prompt. Raises ValueError for a refusal, and AnswerError."""
        for choice in self._choices("/completions", {**sampling, "prompt": prompt}):
            if choice.get("text"):
                yield choice["text"]

    def _choices(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        server, asked = self._server, {**body, "model": self.name, "stream": True}
        try:
            with server.http.stream("POST", server.url + path, json=asked) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise ValueError(f"{server.url} refuses: {complaint(response)}")
                for line in response.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        raise AnswerError(str(chunk["error"].get("message", chunk["error"])))
                    yield from chunk.get("choices", ())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise server.no_answer(error) from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{server.url} does not answer as it should: {error}") from None

    def _first_model(self) -> str:
        response = self._server.get("/models")
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"{self._server.url} refuses: {complaint(response)}")
        try:
            return str(response.json()["data"][0]["id"])
        except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError):
            raise ValueError(f"{self._server.url}/models names no model: give --model-name") from None
