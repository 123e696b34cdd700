"""The server as a child process: waits until it is ready, leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from headway.bench.server_process import ServerError, ServerProcess


def process(script: str, *arguments: str, **more) -> ServerProcess:
    return ServerProcess(arguments, command=(sys.executable, "-c", textwrap.dedent(script)), **more)


READY = """
    import sys, time
    print("loading", flush=True)
    print("Headway serving tiny model at http://127.0.0.1:4321", sys.argv[1:])
    time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_reads_the_url_and_the_model_from_the_line_the_server_prints():
    with process(READY, "--flag", "7") as server:
        assert (server.base_url, server.model) == ("http://127.0.0.1:4321", "tiny model")
        assert "['--port', '0', '--flag', '7']" in server.log.read_text()
        pid = server._process.pid
    assert not is_alive(pid)
    assert not server.log.exists()


def test_a_server_that_stops_at_once_is_an_error_with_its_last_words():
    with pytest.raises(ServerError, match="exit code 3:\nno such model"):
        process("import sys; print('no such model', file=sys.stderr); sys.exit(3)").__enter__()


def test_a_server_that_is_never_ready_is_stopped():
    silent = process("import time; print('loading', flush=True); time.sleep(60)", start_timeout_s=1.0)
    with pytest.raises(ServerError, match="not ready in 1 s"):
        silent.__enter__()
    assert silent._process.poll() is not None


def test_a_server_that_ignores_sigterm_is_killed_with_all_that_it_started(tmp_path):
    port_file = tmp_path / "port"
    child = f"""
    import socket, time
    listener = socket.create_server(("127.0.0.1", 0))
    open({str(port_file)!r}, "w").write(str(listener.getsockname()[1]))
    print("Headway serving m at http://127.0.0.1:1", flush=True)
    time.sleep(60)
    """
    script = f"""
    import signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", {textwrap.dedent(child)!r}])
    time.sleep(60)
    """
    with process(script, stop_timeout_s=0.3) as server:
        address = ("127.0.0.1", int(port_file.read_text()))
        socket.create_connection(address).close()
    assert server._process.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < deadline:
            socket.create_connection(address).close()
            time.sleep(0.02)


def test_an_error_in_the_block_stops_the_server_too():
    with pytest.raises(KeyError), process(READY) as server:
        raise KeyError
    assert server._process.returncode is not None


def test_sigterm_ends_the_block_and_so_the_server(tmp_path):
    script = textwrap.dedent(
        f"""
        import sys, time
        from headway.bench.server_process import ServerProcess, exit_on_sigterm
        exit_on_sigterm()
        with ServerProcess(command=(sys.executable, "-c", {textwrap.dedent(READY)!r})) as server:
            print(server._process.pid, flush=True)
            time.sleep(60)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.terminate()
    assert parent.wait(60) == 128 + signal.SIGTERM
    parent.stdout.close()
    assert not is_alive(child)
