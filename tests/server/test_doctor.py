"""`headway doctor` and the admin API, against servers as processes of their own."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from headway.cli import main
from tests.server.running import Server, save_without_weights

SIMULATED = ("--executor", "simulated", "--base-s", "0.02")  # 250 tokens take 5 seconds
LONG = {"prompt": "a", "max_tokens": 250, "ignore_eos": True}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_without_weights(folder)
    return folder


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command: (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["doctor", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# -- a server as it is usually started


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with Server(model, engine_args=SIMULATED, max_num_seqs=4, max_num_batched_tokens=512) as server:
        yield server
        assert server.stop() == 0, server.log()
        assert "Traceback" not in server.log()


def test_a_healthy_server_gets_a_table_of_owners_and_exit_code_0(server: Server, doctor: Run) -> None:
    body = {**LONG, "stream": True, "request_id": "mine [red] \x1b[31m"}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        lines = response.iter_lines()  # kept: with it the stream would end
        next(lines)
        code, out, err = doctor(server.url)
    assert (code, err) == (0, "")
    assert f"{server.url}: all is in order" in out
    assert "1 requests; 1 of 4 slots used" in out
    assert "mine [red] \\x1b[31m" in out and "\x1b[31m" not in out, "what a client wrote must not reach the terminal"
    assert "slot" in out and "0 leases" in out


def test_the_report_as_json_is_one_object_on_one_line(server: Server, doctor: Run) -> None:
    server.wait_for("num_requests_running", 0)
    code, out, err = doctor("--json", f"{server.url}/")
    assert (code, err, out.count("\n")) == (0, "", 1)
    report = json.loads(out)
    assert (report["ok"], report["problems"], report["owners"], report["num_slots"]) == (True, [], [], 4)
    assert report["num_blocks_free"] + report["num_blocks_evictable"] == report["num_blocks"]


def test_the_rest_of_the_admin_api_is_off(server: Server) -> None:
    response = server.http.post("/pause")
    assert response.status_code == 403 and "--enable-admin-api" in response.text


# -- pause and resume over HTTP


def test_a_pause_over_http_and_its_end(model: Path) -> None:
    with Server(model, engine_args=SIMULATED, admin_api=True, grace=600.0) as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.http.post, "/v1/completions", json=LONG)
        server.wait_for("num_requests_running", 1)
        assert server.http.post("/pause").json() == {"status": "paused"}
        choice = running.result().json()["choices"][0]
        assert choice["finish_reason"] == "abort"
        refused = server.http.post("/v1/completions", json=LONG)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["error"]["code"] == "engine_paused"
        assert server.http.get("/is_paused").json() == {"is_paused": True}
        assert server.http.get("/health").status_code == 200
        server.wait_for("engine_paused", 1)
        assert server.http.post("/resume").json() == {"status": "resumed"}
        assert server.http.post("/v1/completions", json={**LONG, "max_tokens": 3}).status_code == 200
        assert server.http.post("/reset_prefix_cache").json()["status"] == "reset"
        kept = pool.submit(server.http.post, "/v1/completions", json=LONG)
        server.wait_for("num_requests_running", 1)
        server.http.post("/pause", params={"mode": "preempt"})
        assert server.stop(timeout=60.0) == 0, "a paused server has nothing to wait for"
        assert kept.result().status_code == 503


# -- a server that is ill

_BREAKS = """
# Imported by every Python that starts here: the third step of an engine loses a block.
import headway.scheduler.audit as audit

after_step = audit.Auditor.after_step

def broken(self):
    self.steps = getattr(self, "steps", 0) + 1
    if self.steps == 3:
        self._state.pool.take(1)
    after_step(self)

audit.Auditor.after_step = broken
"""


def test_a_violation_of_ownership_stops_the_server_with_a_report_that_names_the_owners(
    model: Path, tmp_path: Path, doctor: Run
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_BREAKS)
    path = ":".join([str(tmp_path), *(entry for entry in sys.path if entry)])
    with Server(model, engine_args=SIMULATED, env={"PYTHONPATH": path}) as server:
        response = server.http.post("/v1/completions", json={**LONG, "request_id": "unlucky"})
        message = response.json()["error"]["message"]
        assert response.status_code in (500, 503)
        for words in ("OwnershipError", "held by no owner", "request 'unlucky' (slot 0): "):
            assert words in message
        assert server.process.wait(60) == 1, "an engine that is not restarted ends its server"
        code, _, err = doctor(server.url)
        assert code == 2 and len(err.splitlines()) == 1
        log = server.log()
        assert "the writer stops: an invariant is broken" in log and "request 'unlucky' (slot 0): " in log


class _Canned(BaseHTTPRequestHandler):
    """A server that has one answer."""

    status, body = 200, b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def canned() -> Iterator[Callable[[int, object], str]]:
    """Starts a server with this answer; returns its URL."""
    servers: list[HTTPServer] = []

    def start(status: int, body: object) -> str:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        servers.append(HTTPServer(("127.0.0.1", 0), type("Canned", (_Canned,), {"status": status, "body": content})))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for one in servers:
        one.shutdown()
        one.server_close()


REPORT = {
    "ok": False,
    "problems": ["block 3 is lost", "block 4 has 2 references; held by request 'a' (slot 0)"],
    "num_requests": 1,
    "num_slots": 4,
    "num_slots_used": 1,
    "num_blocks": 9,
    "num_blocks_referenced": 4,
    "num_blocks_evictable": 0,
    "num_blocks_free": 5,
    "num_leases": 1,
    "owners": [
        {"name": "a", "kind": "slot", "slot": 0, "num_blocks": 3, "uid": 1, "seconds": None, "peer": None},
        {
            "name": "uid 2",
            "kind": "borrower",
            "slot": None,
            "num_blocks": 1,
            "uid": 2,
            "seconds": 12.345,
            "peer": "10.0.0.2:40000",
        },
        {"name": "uid 3", "kind": "quarantine", "slot": 1, "num_blocks": 0, "uid": 3, "seconds": 4.0, "peer": None},
    ],
}


def test_problems_are_shown_and_the_exit_code_is_1(
    canned: Callable[[int, object], str], doctor: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):  # which has no way to the servers of this host
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    url = canned(200, REPORT)
    code, out, err = doctor(url)
    assert (code, err) == (1, "")
    assert f"{url}: 2 problem(s)" in out
    for problem in REPORT["problems"]:
        assert problem in out
    rows = [line.split() for line in out.splitlines()]
    assert ["a", "slot", "0", "3"] in rows
    assert ["uid", "3", "quarantine", "1", "0", "4.0", "s"] in rows
    assert ["uid", "2", "borrower", "1", "12.3", "s", "10.0.0.2:40000"] in rows
    code, out, _ = doctor(url, "--json")
    assert (code, json.loads(out)) == (1, REPORT)


@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (503, {"error": {"message": "the engine stopped: a reason"}}, 1, "the engine stopped: a reason"),
        (504, {"error": {"message": "not answered"}}, 1, "not answered"),
        (500, b"oops", 1, "HTTP status 500"),
        (403, {"error": {"message": "start it with --enable-admin-api"}}, 2, "--enable-admin-api"),
        (404, b"<html>", 2, "HTTP status 404"),
        (404, {"detail": "Not Found"}, 2, "HTTP status 404"),
        (404, [1], 2, "HTTP status 404"),
        (200, b"<html>", 2, "no Headway server"),
        (200, {"ok": True}, 2, "no Headway server"),
    ],
)
def test_any_other_answer_is_one_line_that_says_what_it_was(
    canned: Callable[[int, object], str], doctor: Run, status: int, body: object, code: int, words: str
) -> None:
    url = canned(status, body)
    found, out, err = doctor(url)
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1 and err.startswith(f"headway: {url}") and words in err


@pytest.mark.parametrize("url", ["nonsense", "ftp://localhost", "http://[::", "http://", "localhost", ""])
def test_a_bad_url_is_one_line_and_exit_code_2(doctor: Run, url: str) -> None:
    code, out, err = doctor(url)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and repr(url) in err


def test_a_server_that_is_not_there_is_one_line_and_exit_code_2(doctor: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    code, out, err = doctor(f"http://127.0.0.1:{port}")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and f"cannot reach a server at http://127.0.0.1:{port}: " in err


def test_without_an_address_the_usual_one_is_asked(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get(client: httpx.Client, url: str) -> httpx.Response:
        asked.append(url)
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx.Client, "get", get)
    assert doctor()[0] == 2
    assert asked == ["http://127.0.0.1:8000/debug/ownership"]
