"""A model behind the API of OpenAI, as the commands `chat` and `complete` ask it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx

from headway.commands.remote_options import AnswerError

CONNECT_TIMEOUT = 5.0  # seconds
PIECE_TIMEOUT = 600.0  # seconds between two pieces of an answer: a long prompt is computed before the first


class RemoteModel:
    """url: with its /v1. model: None: the first that the server names. options: of httpx, for key and certificate.

    Raises ValueError if the server does not answer as it should.
    """

    def __init__(self, url: str, model: str | None, options: Mapping[str, Any]) -> None:
        timeout = httpx.Timeout(PIECE_TIMEOUT, connect=CONNECT_TIMEOUT)
        self._url = url.rstrip("/")
        # Without the environment's proxies: the usual server is on this host, which no proxy leads to.
        self._http = httpx.Client(timeout=timeout, trust_env=False, **options)
        self.name = model if model is not None else self._first_model()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

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
        asked = {**body, "model": self.name, "stream": True}
        try:
            with self._http.stream("POST", self._url + path, json=asked) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise ValueError(f"{self._url} refuses: {complaint(response)}")
                for line in response.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        raise AnswerError(str(chunk["error"].get("message", chunk["error"])))
                    yield from chunk.get("choices", ())
        except httpx.HTTPError as error:
            raise _unreachable(self._url, error) from None
        except (httpx.InvalidURL, json.JSONDecodeError) as error:
            raise ValueError(f"{self._url} does not answer as it should: {error}") from None

    def _first_model(self) -> str:
        try:
            response = self._http.get(f"{self._url}/models")
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ValueError(f"{self._url!r} is no URL of a server: {error}") from None
        except httpx.HTTPError as error:
            raise _unreachable(self._url, error) from None
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"{self._url} refuses: {complaint(response)}")
        try:
            return str(response.json()["data"][0]["id"])
        except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError):
            raise ValueError(f"{self._url}/models names no model: give --model-name") from None


def complaint(response: httpx.Response) -> str:
    """The error message in a response of OpenAI's API; of other servers, the HTTP status."""
    try:
        return str(response.json()["error"]["message"])
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError):
        return f"HTTP status {response.status_code}"


def _unreachable(url: str, error: httpx.HTTPError) -> ValueError:
    return ValueError(f"cannot reach a server at {url}: {str(error) or type(error).__name__}")
