"""`headway pd`: a group of real servers with the embedded model, and its bad input."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import httpx
import psutil
import pytest

from headway.bench.server_process import ServerProcess
from headway.cli import main
from headway.cluster.held_ports import HeldPorts
from headway.cluster.prefill_decode import members_of
from headway.config import EngineConfig, Role
from headway.server.entrance.doors import Doors
from headway.server.entrance.keys import ApiKey, Keys
from headway.server.settings import ServerSettings

PATIENCE = 120.0  # seconds
SETTINGS = ServerSettings(port=0, shutdown_grace=1.0, max_local_prefill_tokens=16)


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def group() -> Iterator[ServerProcess]:
    command = (sys.executable, "-m", "headway.cli", "pd")
    words = ["--num-blocks", "200", "--max-local-prefill-tokens", "16", "--shutdown-grace", "1"]
    with ServerProcess(words, command=command) as group:
        yield group


def ask(group: ServerProcess, prompt: str) -> str:
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0}
    response = httpx.post(f"{group.base_url}/v1/completions", json=body, timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def num_pulled(group: ServerProcess) -> float:
    lines = httpx.get(f"{group.base_url}/metrics", timeout=PATIENCE).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if "external_kv_transfer" in line)


def prefill_process(group: ServerProcess) -> psutil.Process:
    """The API process of the prefill engine: the members start in the order of their names in the plan."""
    (url,) = re.findall(r"prefill-0 answers the decode engines at (\S+)", group.printed())
    port = int(url.rsplit(":", 1)[1])
    for child in psutil.Process(group.pid).children():
        if any(one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in child.net_connections()):
            return child
    raise LookupError(f"no process listens at {url}")


def test_clients_talk_to_the_decode_engine_and_the_prefill_engine_computes_long_prompts(group: ServerProcess) -> None:
    ask(group, "12+34=" * 20)
    assert num_pulled(group) > 0


def test_lines_of_the_servers_begin_with_their_names(group: ServerProcess) -> None:
    for name in ("prefill-0", "decode-0 "):
        assert re.search(rf"^{name} \| .*KV is lent at", group.printed(), re.MULTILINE), group.printed()


def test_a_prefill_engine_that_dies_costs_no_answer_and_comes_back(group: ServerProcess) -> None:
    os.kill(prefill_process(group).pid, signal.SIGKILL)
    ask(group, "98-76=" * 20)
    wait_until(lambda: "prefill-0 died (killed by SIGKILL); it is started again" in group.printed())
    before = num_pulled(group)
    numbers = iter(range(10**6))

    def is_back() -> bool:
        ask(group, f"{next(numbers):08d}" * 10)
        return num_pulled(group) > before

    wait_until(is_back)


def test_a_signal_ends_all_servers_and_the_exit_code_is_0(group: ServerProcess) -> None:
    """Last: the group is gone after it."""
    family = psutil.Process(group.pid).children(recursive=True)
    assert len(family) == 4
    os.kill(group.pid, signal.SIGINT)
    assert group.wait(PATIENCE) == 0, group.printed()
    wait_until(lambda: not any(process.is_running() for process in family))
    assert "Traceback" not in group.printed()


# bad input, and the plan ------------------------------------------------------------------------------------


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["pd", *words]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = [line for line in captured.err.splitlines() if " | " not in line]  # without the log of its servers
    return line


@pytest.mark.parametrize("option", ["--prefill", "--decode"])
def test_a_group_has_at_least_one_engine_of_each_role(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert option in complaint(capsys, option, "0")


@pytest.mark.parametrize("option", ["--role", "--kv-listen", "--kv-peers", "--kv-secret"])
def test_what_a_group_decides_for_each_engine_is_no_option(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert f"No such option: {option}" in complaint(capsys, option, "x")


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot serve at 127.0.0.1:{port}: Address already in use" in complaint(capsys, "--port", str(port))


def test_an_unknown_model_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no/such/model" in complaint(capsys, "./no/such/model", "--port", "0", "--prefill", "2")


def test_decode_engines_have_the_ports_from_the_given_one_and_know_all_prefill_engines() -> None:
    with HeldPorts() as ports, HeldPorts() as probe:
        config = EngineConfig(num_blocks=50)
        members = members_of(config, ports, prefill=2, decode=2, settings=SETTINGS)
        by_name = {member.name: member for member in members}
        assert list(by_name) == ["prefill-0", "prefill-1", "decode-0", "decode-1"]
        lenders = [by_name[name].config.kv_listen for name in ("prefill-0", "prefill-1")]
        urls = tuple(f"http://127.0.0.1:{by_name[name].settings.port}" for name in ("prefill-0", "prefill-1"))
        for name in ("decode-0", "decode-1"):
            assert by_name[name].config.role is Role.DECODE and by_name[name].config.num_blocks == 50
            assert by_name[name].config.kv_peers == ",".join(map(str, lenders))
            assert by_name[name].settings.prefill == urls
        assert by_name["prefill-0"].settings.prefill == ()
        port = members[0].settings.port
        assert probe.take("127.0.0.1", port) == port, "a server can be bound to a port held here"


def test_ports_follow_each_other_from_the_given_one() -> None:
    taken: list[tuple[str, int]] = []

    class Noted(HeldPorts):
        def take(self, host: str, port: int = 0) -> int:
            taken.append((host, port))
            return port

    members_of(EngineConfig(), Noted(), prefill=1, decode=2, settings=replace(SETTINGS, host="0.0.0.0", port=8000))
    assert taken == [("0.0.0.0", 8000), ("0.0.0.0", 8001), ("127.0.0.1", 8002), ("127.0.0.1", 0)]


def test_prefill_engines_of_a_group_with_keys_ask_for_a_key_that_decode_engines_alone_have() -> None:
    users = Doors(keys=(ApiKey.of("of-users"),), allowed_origins=("https://chat.example",))
    with HeldPorts() as ports:
        settings = replace(SETTINGS, doors=users, host="0.0.0.0")
        prefill, decode = members_of(EngineConfig(), ports, prefill=1, decode=1, settings=settings)
    assert decode.settings.doors == users and decode.settings.host == "0.0.0.0"
    assert prefill.settings.host == "127.0.0.1" and prefill.settings.doors != users
    inside = Keys(prefill.settings.doors.keys)
    assert inside.find("of-users") is None
    assert decode.settings.prefill_api_key is not None and inside.find(decode.settings.prefill_api_key)


def test_a_group_without_keys_asks_for_none_inside() -> None:
    with HeldPorts() as ports:
        prefill, decode = members_of(EngineConfig(), ports, prefill=1, decode=1, settings=SETTINGS)
    assert prefill.settings.doors == Doors() and decode.settings.prefill_api_key is None
