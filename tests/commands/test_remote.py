"""Commands that ask a running server: complete, chat --url, doctor; and the key that they show."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from headway.cli import main
from headway.commands.remote_options import key_headers
from headway.server.entrance.keys import KEYS_VARIABLE

KEY = "sk-the-key"


def text(piece: str) -> dict[str, Any]:
    return {"choices": [{"text": piece, "delta": {"content": piece}}]}


class FakeServer(ThreadingHTTPServer):
    """Asks for KEY, and streams `chunks`. asked: (path, body) of what was let in."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.chunks: list[dict[str, Any]] = [text("he"), text("llo"), {"choices": []}]
        self.asked: list[tuple[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._send(401, json.dumps({"error": {"message": "no key, no answer"}}))
            return
        self.server.asked.append((self.path, body))
        if body is None:
            self._send(200, json.dumps({"data": [{"id": "first"}, {"id": "second"}]}))
        else:
            lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in self.server.chunks]
            self._send(200, ": a comment\n\n" + "".join(lines) + "data: [DONE]\n\n")

    def _send(self, status: int, content: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_complete_asks_the_first_model_of_the_server(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "--url", f"{server.url}/v1/", "--api-key", KEY, "-q", "hi", "--max-tokens", "3"]) == 0
    assert capsys.readouterr().out == "hello\n"
    body = {"prompt": "hi", "max_tokens": 3, "model": "first", "stream": True}
    assert server.asked == [("/v1/models", None), ("/v1/completions", body)]


def test_chat_with_a_server_keeps_the_conversation(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, f"{KEY},sk-another")
    lines = iter(["one", "two"])

    def type_in(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", type_in)
    words = ["--url", f"{server.url}/v1", "--model-name", "second", "--system-prompt", "S", "--temperature", "0"]
    assert main(["chat", *words]) == 0
    assert capsys.readouterr().out == "hello\nhello\n"
    system, one, answer = (
        {"role": role, "content": said} for role, said in (("system", "S"), ("user", "one"), ("assistant", "hello"))
    )
    sent = [body["messages"] for _, body in server.asked]
    assert sent == [[system, one], [system, one, answer, {"role": "user", "content": "two"}]]
    assert {(body["model"], body["temperature"]) for _, body in server.asked} == {("second", 0.0)}


def test_reasoning_is_shown_between_tags(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    deltas = ({"reasoning_content": "so"}, {"reasoning": "..."}, {"content": "42"})
    server.chunks = [{"choices": [{"delta": delta}]} for delta in deltas]
    assert main(["chat", "--url", f"{server.url}/v1", "--model-name", "m", "--api-key", KEY, "-q", "?"]) == 0
    assert capsys.readouterr().out == "<think>\nso...\n</think>\n42\n"


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_an_answer_that_ends_with_an_error_ends_the_command_with_code_1(
    server: FakeServer, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    server.chunks = [text("he"), {"error": {"message": "the engine has died"}}]
    assert main([command, "--url", f"{server.url}/v1", "--model-name", "m", "--api-key", KEY, "-q", "?"]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("he") and "headway: the engine has died" in shown.err


@pytest.mark.parametrize(
    "words", [["complete", "-q", "hi", "--url"], ["chat", "-q", "hi", "--url"], ["chat", "--model-name", "m", "--url"]]
)
@pytest.mark.parametrize("key", [[], ["--api-key", "sk-wrong"]])
def test_a_refusal_is_told_in_one_line_and_without_the_key(
    server: FakeServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    key: list[str],
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "hi")
    assert main([*words, f"{server.url}/v1", *key]) == 2
    assert capsys.readouterr().err == f"headway: {server.url}/v1 refuses: no key, no answer\n"


@pytest.mark.parametrize("command", ["chat", "complete"])
@pytest.mark.parametrize(
    ("url", "words"),
    [("http://127.0.0.1:1/v1", "cannot reach a server at"), ("nowhere", "is no URL of a server")],
)
def test_a_server_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str], command: str, url: str, words: str
) -> None:
    assert main([command, "--url", url, "-q", "hi"]) == 2
    assert words in capsys.readouterr().err


def test_options_of_the_engine_do_not_go_with_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", "http://127.0.0.1:1/v1", "--max-num-seqs", "4"]) == 2
    assert "options of the engine do not go with it" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "path"), [("doctor", "/debug/ownership"), ("top", "/metrics")])
def test_a_look_at_a_server_shows_its_key(
    server: FakeServer, capsys: pytest.CaptureFixture[str], command: str, path: str
) -> None:
    assert main([command, server.url]) == 2
    assert "no key, no answer" in capsys.readouterr().err
    assert main([command, f"{server.url}/v1", "--api-key", KEY]) == 2
    assert server.asked == [(path, None)]
    assert "is no Headway server" in capsys.readouterr().err


def test_the_option_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "\n first , second")
    assert key_headers(None) == {"Authorization": "Bearer first"}
    assert key_headers("given") == {"Authorization": "Bearer given"}
    monkeypatch.setenv(KEYS_VARIABLE, " ,\n")
    assert key_headers(None) == {}


def test_authorities_that_cannot_be_read_are_named(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    for file in ("none.pem", "bad.pem"):
        assert main(["complete", "-q", "hi", "--ssl-ca-certs", str(tmp_path / file)]) == 2
        assert f"{file} cannot be used" in capsys.readouterr().err
