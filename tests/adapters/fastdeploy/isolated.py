"""Runs a module of Python where FastDeploy's code can harm nothing: in namespaces of its own for processes, network and
mounts. FastDeploy's tests kill process groups by made-up ids, and whatever listens on some ports.

    python -m tests.adapters.fastdeploy.isolated MODULE ARGUMENT ...

Needs util-linux, and the right to make namespaces.
"""

from __future__ import annotations

import fcntl
import os
import runpy
import shutil
import socket
import struct
import subprocess
import sys

UNSHARE = ("unshare", "-npf", "--mount-proc", "--kill-child")
INSIDE = "--inside"
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def is_possible() -> bool:
    """Whether this machine lets us make such namespaces."""
    return (
        shutil.which("unshare") is not None and subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    )


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def main() -> None:
    if sys.argv[1] != INSIDE:
        os.execvp(
            UNSHARE[0], [*UNSHARE, sys.executable, "-m", "tests.adapters.fastdeploy.isolated", INSIDE, *sys.argv[1:]]
        )
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)  # queues and signals have fixed names
    _loopback_up()
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
