"""The process of a server in a group: what `headway serve` runs, for as long as the group is there.

The first line of its standard input is a `Member` in JSON. The end of its standard input means that the group is gone,
even if it was killed: then the server ends as it does on SIGTERM.
"""

from __future__ import annotations

import os
import signal
import threading

import msgspec

from headway.cluster.group_server import Member
from headway.exit import exit_process
from headway.parent_process import at_end_of_parent
from headway.server.serve import serve

STDIN = 0  # read without Python's buffer: a thread that waits would keep the buffer's lock at exit


def main() -> int:
    at_end_of_parent(signal.SIGCONT)
    member = msgspec.json.decode(_first_line(), type=Member)
    threading.Thread(target=_end_with_the_group, name="headway-group", daemon=True).start()
    return serve(member.config, member.settings)


def _first_line() -> bytes:
    read = b""
    while b"\n" not in read and (part := os.read(STDIN, 65536)):
        read += part
    return read


def _end_with_the_group() -> None:
    while os.read(STDIN, 65536):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    exit_process(main())
