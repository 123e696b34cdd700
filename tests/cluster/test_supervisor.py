"""A server of several processes, some of which are killed: with simulated devices."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from headway.engine_choice import PIECE, EngineChoice, Prefixes
from tests.server.running import Server, failed_start, is_running, save_without_weights

SIMULATED = ("--executor", "simulated", "--base-s", "0.02")  # 250 tokens take 5 seconds
SLOW = ("--executor", "simulated", "--base-s", "0.2")  # 250 tokens do not end while a test looks on
ASK = {"prompt": "a", "max_tokens": 3, "ignore_eos": True}
LONG = {"prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True}
TWO: dict[str, object] = {"api_server_count": 2, "engine_restarts": 20}
PATIENCE = 90.0  # seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_without_weights(folder)
    return folder


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[Server]:
    """Two API processes and an engine. Each test leaves it well."""
    with Server(model, engine_args=SLOW, admin_api=True, options=TWO) as server:
        yield server
        assert server.stop() == 0
        assert server.leftovers() == []


@pytest.fixture
def server(running: Server) -> Server:
    wait_until(lambda: len(api_processes(running)) == 2 and answers(running), "all is well")
    return running


def wait_until(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"it does not come true that {what}"
        time.sleep(0.05)


def processes(server: Server, module: str) -> list[int]:
    def runs(pid: int) -> bool:
        try:
            return module in Path(f"/proc/{pid}/cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False

    return [pid for pid in server.children() if runs(pid)]


def api_processes(server: Server) -> list[int]:
    return processes(server, "headway.cluster.api_process")


def engines(server: Server) -> list[int]:
    return processes(server, "headway.engine.process")


def sockets_of_clients(server: Server) -> set[str]:
    return {file.name for file in server.folder.glob("headway-*/client-*")} - {"client-0"}


def answers(server: Server, prompt: str = "a") -> bool:
    body = {**ASK, "prompt": prompt}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE).status_code == 200


@contextmanager
def only(server: Server, pid: int) -> Iterator[None]:
    """Only this API process accepts connections meanwhile."""
    others = [other for other in api_processes(server) if other != pid]
    for other in others:
        os.kill(other, signal.SIGSTOP)
    try:
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


class Stream:
    """A request that is being answered by a process of one's choice. Its text is read by a thread."""

    def __init__(self, server: Server, pid: int, prompt: str = "a") -> None:
        self.text = ""
        self.error: Exception | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(server.url, {**LONG, "prompt": prompt}), daemon=True)
        with only(server, pid):
            self._thread.start()
            assert self._begun.wait(PATIENCE)

    def _read(self, url: str, body: dict[str, object]) -> None:
        try:
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=PATIENCE) as response:
                for line in response.iter_lines():
                    self._begun.set()
                    self.text += line
        except httpx.TransportError as error:
            self.error = error

    def wait(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    @property
    def goes_on(self) -> bool:
        return self._thread.is_alive()


def test_an_api_process_that_is_killed_takes_its_own_requests_along_and_no_other(server: Server) -> None:
    dies, lives = api_processes(server)
    before, restarts = sockets_of_clients(server), server.log().count("it is started again")
    doomed, other = Stream(server, dies), Stream(server, lives)
    os.kill(dies, signal.SIGKILL)
    doomed.wait()
    assert doomed.error is not None
    server.wait_for("num_requests_running", 1)  # the other one; the engine does not compute for the dead
    assert other.goes_on and answers(server)
    wait_until(lambda: len(api_processes(server)) == 2, "another API process starts")
    wait_until(lambda: len(sockets_of_clients(server)) == 2, "it attaches itself")
    assert len(sockets_of_clients(server) - before) == 1, "its number is new"
    assert other.goes_on and server.log().count("it is started again") == restarts + 1
    engine_dies(server)
    other.wait()


def engine_dies(server: Server) -> int:
    (engine,) = engines(server)
    os.kill(engine, signal.SIGKILL)
    return engine


def test_an_engine_that_is_killed_fails_the_requests_of_all_api_processes_and_is_started_again(server: Server) -> None:
    (folder,) = server.folder.glob("headway-*/engine")
    streams = [Stream(server, pid) for pid in api_processes(server)]
    dead = engine_dies(server)
    for stream in streams:
        stream.wait()
        assert stream.error is None
        assert '"code":"engine_restarting"' in stream.text and stream.text.endswith("data: [DONE]")
    wait_until(lambda: engines(server) not in ([], [dead]), "another engine starts")
    assert not is_running(dead)
    for pid in api_processes(server):
        with only(server, pid):
            wait_until(lambda: answers(server), "each API process follows it")
    assert not folder.parent.exists(), "its sockets are new"
    assert len(sockets_of_clients(server)) == 2


def test_an_engine_of_two_that_is_killed_fails_its_requests_alone_and_counts_on_when_it_is_back(model: Path) -> None:
    with Server(model, engine_args=SLOW, options={**TWO, "data_parallel_size": 2}) as server:
        first, second = api_processes(server)
        streams: list[Stream] = []

        def running() -> dict[str, float]:
            return by_engine(server, "num_requests_running")

        while not all(running().values()):
            assert len(streams) < 20, "all requests are given to one engine"
            streams.append(Stream(server, (first, second)[len(streams) % 2], prompt=str(len(streams)) * 40))
            wait_until(lambda: sum(running().values()) == len(streams), "the engines run all of them")
        shares = running()
        os.kill(engines(server)[0], signal.SIGKILL)
        wait_until(lambda: bool(server.http.get("/health").json()), "the death is seen")
        (dead,) = server.http.get("/health").json()["unhealthy"]
        (other,) = shares.keys() - {dead}
        assert answers(server)
        wait_until(lambda: sum(stream.goes_on for stream in streams) == shares[other], "its requests fail")
        assert all('"code":"engine_restarting"' in stream.text for stream in streams if not stream.goes_on)
        wait_until(lambda: not server.http.get("/health").json(), "it is back")
        wait_until(lambda: len(engines(server)) == 2, "there are two engines")
        assert sum(stream.goes_on for stream in streams) == shares[other]
        pages = []
        for pid in (first, second):
            with only(server, pid):
                wait_until(lambda: by_engine(server, "engine_restarts_total")[dead] == 1, "each process knows it")
                assert by_engine(server, "num_requests_running")[dead] == 0
                pages.append(by_engine(server, "prompt_tokens_total")[dead])
        assert pages[0] == pages[1] > 0, "what the dead engine counted is counted, and the same by all"
        counted = httpx.get(f"{server.url}/metrics").text
        assert 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} ' in counted
        assert server.stop(signal.SIGTERM, PATIENCE) == 0
        assert server.leftovers() == []


def test_engines_of_a_server_say_what_they_hold_and_are_filled_alike(model: Path) -> None:
    """By the hash alone all these prompts would go to engine 0."""
    chance = random.Random(5)
    choice = EngineChoice(("0", "1"))
    with Server(model, engine_args=("--executor", "simulated"), options={**TWO, "data_parallel_size": 2}) as server:

        def given(engine: str) -> float:
            return by_engine(server, "prompt_tokens_total")[engine]

        for _ in range(60):
            prompt = [chance.randrange(1, 200) for _ in range(2 * PIECE)]
            if choice.order(Prefixes.of(prompt), 0.0)[0] != "0":
                continue
            assert httpx.post(f"{server.url}/v1/completions", json={**ASK, "prompt": prompt}).status_code == 200
            if given("1") >= 2 * len(prompt):
                return
        raise AssertionError("an engine gets nothing, though the other one holds much more")


def test_an_api_process_that_starts_while_an_engine_restarts_serves_with_the_others_and_takes_it_later(
    model: Path,
) -> None:
    with Server(model, engine_args=SLOW, options={**TWO, "data_parallel_size": 2}) as server:
        old, stopped = api_processes(server), engines(server)
        counted = by_engine_when_both_have_computed(server)
        os.kill(stopped[0], signal.SIGKILL)
        (engine,) = wait_for_new(lambda: engines(server), stopped)
        os.kill(engine, signal.SIGSTOP)  # it does not come for as long as a test wants
        os.kill(old[0], signal.SIGKILL)
        (new,) = wait_for_new(lambda: api_processes(server), old)
        wait_until(lambda: len(sockets_of_clients(server)) == 2, "it attaches itself to the other engine")
        with only(server, new):
            wait_until(lambda: answers(server), "it answers")
            shown = by_engine(server, "prompt_tokens_total")
            assert all(shown[engine] >= count for engine, count in counted.items()), "no counter goes back"
            assert list(httpx.get(f"{server.url}/health").json()["unhealthy"]) != []
            os.kill(engine, signal.SIGCONT)
            wait_until(lambda: not httpx.get(f"{server.url}/health").json(), "it takes the engine when it comes")
            assert sorted(by_engine(server, "engine_restarts_total").values()) == [0, 1]
            shown = by_engine(server, "prompt_tokens_total")
            assert all(shown[engine] >= count for engine, count in counted.items()), "no counter goes back"
        assert server.stop(signal.SIGTERM, PATIENCE) == 0
        assert server.leftovers() == []


def wait_for_new(pids: Callable[[], list[int]], known: Sequence[int]) -> set[int]:
    """The processes that were not known, once there are some."""
    wait_until(lambda: not set(pids()) <= set(known), "a process starts")
    return set(pids()) - set(known)


def by_engine_when_both_have_computed(server: Server) -> dict[str, float]:
    """Their prompt tokens."""
    for number in itertools.count():
        if all((counted := by_engine(server, "prompt_tokens_total")).values()):
            return counted
        assert number < 20, "all requests are given to one engine"
        assert answers(server, prompt=str(number) * 40)
    raise AssertionError("numbers never end")


def by_engine(server: Server, name: str) -> dict[str, float]:
    """The values of a metric, by a new connection: another API process may answer."""
    page = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text
    return {
        engine: float(value) for engine, value in re.findall(rf'^headway:{name}{{engine="(.)".*}} (.*)$', page, re.M)
    }


def test_an_engine_that_was_paused_begins_paused(server: Server) -> None:
    assert server.http.post("/pause").status_code == 200
    (engine,) = engines(server)
    time.sleep(0.5)  # the supervisor knows it from a pulse
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: server.http.get("/health").status_code == 503, "the death is seen")
    wait_until(lambda: server.http.get("/health").status_code == 200, "the engine is there")
    assert not answers(server)
    assert server.http.get("/is_paused").json() == {"is_paused": True}
    assert server.http.post("/resume").status_code == 200
    assert answers(server)


def test_a_connection_that_waits_survives_the_death_of_all_api_processes(server: Server) -> None:
    host, port = "127.0.0.1", httpx.URL(server.url).port
    assert port is not None
    old = api_processes(server)
    for pid in old:
        os.kill(pid, signal.SIGSTOP)
    with ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection((host, port))) for _ in range(3)]
        for one in waiting:
            one.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            one.settimeout(PATIENCE)
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        assert [one.recv(12) for one in waiting] == [b"HTTP/1.1 200"] * 3
    assert not any(map(is_running, old))


def test_a_second_signal_ends_all_at_once_and_nothing_is_left(model: Path) -> None:
    with Server(model, engine_args=SLOW, grace=600.0, options=TWO) as server:
        streams = [Stream(server, pid) for pid in api_processes(server)]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.log().count("1 request is open and may go on") == 2, "both drain")
        assert all(stream.goes_on for stream in streams)
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            stream.wait()
            assert stream.error is None and '"code":"shutting_down"' in stream.text
        assert server.process.wait(PATIENCE) == 0
        assert server.leftovers() == []


def test_a_signal_lets_running_requests_end(model: Path) -> None:
    with Server(model, engine_args=SIMULATED, grace=600.0, options=TWO) as server:
        streams = [Stream(server, pid) for pid in api_processes(server)]
        assert server.stop(timeout=PATIENCE) == 0
        for stream in streams:
            stream.wait()
            assert stream.error is None and '"finish_reason":"length"' in stream.text
        assert server.leftovers() == []


def test_a_supervisor_that_is_killed_leaves_nothing(model: Path) -> None:
    with Server(model, engine_args=SLOW, options=TWO) as server:
        children = server.children()
        assert len(children) == 3
        stream = Stream(server, api_processes(server)[0])
        server.kill()
        wait_until(lambda: not any(map(is_running, children)), "all processes end")
        wait_until(lambda: server.leftovers() == [], "all folders are removed")
        stream.wait()


def test_a_supervisor_that_is_killed_while_all_its_processes_are_stopped_leaves_nothing(model: Path) -> None:
    with Server(model, engine_args=SLOW, options=TWO) as server:
        children = server.children()
        for child in children:
            os.kill(child, signal.SIGSTOP)
        try:
            server.kill()
            wait_until(lambda: not any(map(is_running, children)), "all processes end")
            wait_until(lambda: server.leftovers() == [], "all folders are removed")
        finally:
            for child in filter(is_running, children):
                os.kill(child, signal.SIGCONT)


@pytest.mark.parametrize("engine_is_up", [False, True])
def test_a_supervisor_that_is_killed_while_its_processes_load_leaves_nothing(model: Path, engine_is_up: bool) -> None:
    with Server(model, engine_args=SLOW, options=TWO, wait=False) as server:
        wait_until(lambda: len(server.children()) == 3, "all have begun")
        if engine_is_up:  # the API processes have begun to read what they are to be
            wait_until(lambda: any(server.folder.glob("headway-*/engine")), "the engine has sockets")
        children = server.children()
        server.kill()
        wait_until(lambda: not any(map(is_running, children)), "all processes end")
        wait_until(lambda: server.leftovers() == [], "all folders are removed")


def test_an_engine_beyond_its_restarts_is_taken_out_and_the_last_one_ends_the_server_with_code_1(model: Path) -> None:
    options: dict[str, object] = {"api_server_count": 2, "data_parallel_size": 2}
    with Server(model, engine_args=SLOW, options=options) as server:
        first, second = engines(server)
        counted = by_engine_when_both_have_computed(server)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: "without it there are 1, which go on" in server.log(), "it is taken out")
        assert answers(server) and engines(server) == [second]
        wait_until(lambda: "it is not restarted" in server.log(), "the API processes say so")
        assert "it is restarted" not in server.log(), "no promise of a life that does not come"
        os.kill(api_processes(server)[0], signal.SIGKILL)
        wait_until(lambda: len(sockets_of_clients(server)) == 2, "an API process starts without that engine")
        for pid in api_processes(server):
            with only(server, pid):
                wait_until(lambda: answers(server), "it answers")
                shown = by_engine(server, "prompt_tokens_total")
                assert all(shown[engine] >= count for engine, count in counted.items()), "no counter goes back"
        os.kill(second, signal.SIGKILL)
        assert server.process.wait(PATIENCE) == 1
        assert "died (killed by SIGKILL), and 0 restarts within 10 minutes are all that is allowed\n" in server.log()
        assert server.leftovers() == []


def test_a_port_in_use_is_one_line_and_code_2(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, error = failed_start(model, **{**TWO, "port": port})
    assert code == 2
    assert error == f"headway: cannot serve at 127.0.0.1:{port}: Address already in use\n"


def test_a_model_that_is_not_there_is_one_line_and_code_2(tmp_path: Path) -> None:
    code, error = failed_start(tmp_path / "none", **TWO)
    assert code == 2
    assert [line for line in error.splitlines() if line.startswith("headway: ")] == [error.splitlines()[-1]]
    assert "none" in error.splitlines()[-1]
