"""A P in its own process, which lends blocks that are there, and sends the same bytes over plain sockets too.

    python -m headway.bench.lending_process LAYOUT TRANSPORT

Questions: `["lend", uid, blocks]`, answered with `kv_transfer_params`; the greeting: see `LendingProcess.where`.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np

from headway.bench.answering import answer_questions
from headway.bench.child_process import AnsweringProcess
from headway.config import KVTransport
from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler.effects import Lending
from headway.transfer.connector import KVConnector
from headway.transfer.layout import KVLayout
from headway.transfer.memory import KVMemory, MemoryHandle

NUM_TOKEN_IDS = 1000
TOKEN = 7
PEER = ("lender", 1)  # its name among the peers of D
LEASE_SECONDS = 600.0


class LendingProcess(AnsweringProcess):
    """Lends for the time of a `with` block. Raises ChildError."""

    def __init__(self, layout: KVLayout, transport: KVTransport = KVTransport.AUTO) -> None:
        module = [sys.executable, "-m", "headway.bench.lending_process"]
        super().__init__([*module, msgspec.json.encode(layout).decode(), transport])

    @property
    def where(self) -> tuple[int, int, MemoryHandle]:
        """The port of the connector, that of the plain sockets, and the memory."""
        connector, plain, handle = self.hello
        return connector, plain, MemoryHandle(*handle)

    def lend(self, uid: int, blocks: list[int]) -> dict[str, Any]:
        """Lend these blocks. Returns the parameters for D."""
        params: dict[str, Any] = self.ask(["lend", uid, blocks])
        return params


class Patient:
    """A manager whose leases never end by themselves."""

    def consume_lease(self, uid: int, generation: int, timeout: float = 5.0) -> bool:
        return True

    def renew_leases(self, uids: Iterable[int]) -> None:
        pass

    def end_leases(self, uids: Iterable[int]) -> None:
        pass

    def receive_done(self, uid: int, token: int | None = None, error: str | None = None) -> None:
        pass


def prompt_of(uid: int, num_tokens: int, params: dict[str, Any] | None = None) -> Request:
    """The request on both sides."""
    return Request(
        request_id=f"r{uid}",
        uid=uid,
        prompt=np.arange(num_tokens, dtype=np.int32),
        sampling=SamplingParams(temperature=0),
        max_tokens=1,
        kv_transfer_params=params,
    )


def begin(layout: KVLayout, transport: KVTransport) -> tuple[Any, Callable[[Any], Any]]:
    """Fill the memory; returns the greeting, and the function that answers a question."""
    memory = KVMemory(layout)
    for index, part in enumerate(memory.parts):
        part[:] = np.random.default_rng(index).integers(0, 256, part.shape, np.uint8)
    connector = KVConnector(
        Patient(),
        memory,
        num_token_ids=NUM_TOKEN_IDS,
        lease_seconds=LEASE_SECONDS,
        address=PEER,
        transport=transport,
    )
    plain = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve_plain, args=(plain, memory), daemon=True).start()

    def answer(question: Any) -> Any:
        match question:
            case ["lend", uid, blocks]:
                num_tokens = len(blocks) * layout.block_size
                connector.expect(prompt_of(uid, num_tokens))
                params = connector.handover(uid)
                connector.lending(Lending(uid, f"r{uid}", np.array(blocks, np.int32), num_tokens, 0, TOKEN))
                return params
        raise ValueError(f"unknown question {question!r}")

    handle = memory.handle()
    return (connector.server.port, plain.getsockname()[1], [handle.pid, handle.fd, handle.name]), answer


# -- plain sockets: first byte, number of pieces, size of a piece; each comes after its checksum -------

ASKED = struct.Struct("<QII")


def _serve_plain(listener: socket.socket, memory: KVMemory) -> None:
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_send_plain, args=(sock, memory.whole), daemon=True).start()


def _send_plain(sock: socket.socket, whole: memoryview) -> None:
    while asked := sock.recv(ASKED.size, socket.MSG_WAITALL):
        first, count, size = ASKED.unpack(asked)
        for start in range(first, first + count * size, size):
            piece = whole[start : start + size]
            sock.sendall(struct.pack("<I", zlib.crc32(piece)))
            sock.sendall(piece)


if __name__ == "__main__":
    answer_questions(lambda: begin(msgspec.json.decode(sys.argv[1], type=KVLayout), KVTransport(sys.argv[2])))
