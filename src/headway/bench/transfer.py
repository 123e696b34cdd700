"""`headway bench transfer`: how fast KV blocks come from another process, beside what the machine can do.

Shared memory is measured beside a memcpy of the same bytes, TCP beside plain sockets that compute the same checksum,
and NIXL, where it is installed, beside the memcpy too; all in turn in the same run. P is a process of its own; a
transfer is timed from the order to the answer, with all that passes between the two connectors.
"""

from __future__ import annotations

import queue
import socket
import statistics
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Annotated

import numpy as np
import typer

from headway.bench.benchmark import Table, run_benchmark
from headway.bench.lending_process import (
    ASKED,
    LEASE_SECONDS,
    NUM_TOKEN_IDS,
    PEER,
    TOKEN,
    LendingProcess,
    Patient,
    prompt_of,
)
from headway.bench.report import Row
from headway.bench.rounds import Samples, compared
from headway.bench.tables import Column, JsonOption
from headway.config import KVTransport
from headway.scheduler.batch import IntArray
from headway.scheduler.effects import Pull
from headway.transfer.connector import KVConnector
from headway.transfer.layout import KVLayout, LayerSizes
from headway.transfer.memory import KVMemory, PeerMemory
from headway.transfer.nixl import is_installed as has_nixl

BLOCK_SIZE = 16  # tokens
LAYERS, HEADS, HEAD_DIM, ITEMSIZE = 16, 8, 64, 2  # as of Llama 3.2 1B
MIN_ROUNDS = 3
_PATIENCE = 120.0  # seconds for one transfer

COLUMNS = (
    Column("way", "way", ""),
    Column("blocks", "placement", ""),
    Column("MiB", "mib", ",.0f"),
    Column("streams", "streams", "d"),
    Column("GB/s", "gb_per_s", ".2f", spread=True),
    Column("% of its yardstick", "percent_of_yardstick", ".0f", spread=True),
    Column("yardstick", "yardstick", ""),
)


def layout_of(num_blocks: int) -> KVLayout:
    """The KV memory of one side."""
    return KVLayout(
        block_size=BLOCK_SIZE,
        layers=(LayerSizes(HEADS, HEAD_DIM, HEADS, HEAD_DIM),) * LAYERS,
        dtype="bfloat16",
        itemsize=ITEMSIZE,
        model="benchmark",
        num_blocks=num_blocks,
    )


class Answered(Patient):
    """Waits for the answer of a pull."""

    def __init__(self) -> None:
        self._answers: queue.SimpleQueue[tuple[int | None, str | None]] = queue.SimpleQueue()

    def receive_done(self, uid: int, token: int | None = None, error: str | None = None) -> None:
        self._answers.put((token, error))

    def wait(self) -> None:
        """Raises RuntimeError if the blocks have not come."""
        token, error = self._answers.get(timeout=_PATIENCE)
        if error is not None or token != TOKEN:
            raise RuntimeError(f"the blocks have not come: {error}")


class Bench:
    """P in another process, D here. num_blocks: of one transfer. streams: connections that carry blocks."""

    def __init__(self, num_blocks: int, streams: int, stack: ExitStack) -> None:
        self.num_blocks, self.streams = num_blocks, streams
        layout = layout_of(num_blocks)
        self.bytes = num_blocks * layout.block_bytes
        self._block_bytes = layout.block_bytes
        self._memory = KVMemory(layout)
        self.transports = [KVTransport.SHARED_MEMORY, KVTransport.TCP, *([KVTransport.NIXL] if has_nixl() else [])]
        offers = KVTransport.NIXL if has_nixl() else KVTransport.AUTO
        self._lender = stack.enter_context(LendingProcess(layout, offers))
        port, plain, handle = self._lender.where
        self._peer = PeerMemory(handle, layout)
        self._manager = Answered()
        self._connectors = {
            transport: stack.enter_context(closing(self._connector(port, transport))) for transport in self.transports
        }
        self._sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", plain))) for _ in range(streams)]
        self._pool = stack.enter_context(ThreadPoolExecutor(streams))
        self._own = KVMemory(layout)
        for part in self._own.parts:
            part[:] = 1
        self._uid = 0
        rng = np.random.default_rng(0)
        self.consecutive: IntArray = np.arange(num_blocks, dtype=np.int32)
        self.scattered = (rng.permutation(num_blocks).astype(np.int32), rng.permutation(num_blocks).astype(np.int32))
        ends = np.cumsum(self._shares()) * self._block_bytes
        self._ranges = list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))

    def memcpy(self) -> None:
        """The same bytes, within this process."""
        for source, target in zip(self._own.parts, self._memory.parts, strict=True):
            np.copyto(target, source)

    def plain_sockets(self) -> None:
        """As many bytes, with a checksum per block on both sides."""
        list(self._pool.map(self._receive_plain, self._sockets, self._ranges))

    def transfer(self, sources: IntArray, targets: IntArray, transport: KVTransport) -> Callable[[], None]:
        """A transfer of these blocks, to be timed."""
        self._uid += 1
        num_tokens = len(sources) * BLOCK_SIZE
        params = self._lender.lend(self._uid, sources.tolist())
        pull = Pull(prompt_of(self._uid, num_tokens, params), targets, 0)
        connector = self._connectors[transport]

        def run() -> None:
            connector.pull(pull)
            self._manager.wait()

        return run

    def check(self, sources: IntArray, targets: IntArray) -> None:
        """Raises RuntimeError if these blocks of D do not hold what P's hold."""
        for theirs, mine in zip(self._peer.parts, self._memory.parts, strict=True):
            if not np.array_equal(theirs[sources], mine[targets]):
                raise RuntimeError("other bytes have come")

    def _connector(self, port: int, transport: KVTransport) -> KVConnector:
        return KVConnector(
            self._manager,
            self._memory,
            num_token_ids=NUM_TOKEN_IDS,
            lease_seconds=LEASE_SECONDS,
            peers={PEER: ("127.0.0.1", port)},
            num_streams=self.streams,
            transport=transport,
        )

    def _shares(self) -> list[int]:
        """Blocks of each stream."""
        return [len(part) for part in np.array_split(np.arange(self.num_blocks), self.streams)]

    def _receive_plain(self, sock: socket.socket, part: tuple[int, int]) -> None:
        size, whole, expected = self._block_bytes, self._own.whole, bytearray(4)
        sock.sendall(ASKED.pack(part[0], (part[1] - part[0]) // size, size))
        for start in range(*part, size):
            piece = whole[start : start + size]
            for view in (memoryview(expected), piece):
                done = 0
                while done < len(view):
                    done += sock.recv_into(view[done:], 0, socket.MSG_WAITALL)
            if zlib.crc32(piece) != struct.unpack("<I", expected)[0]:
                raise RuntimeError("other bytes have come over plain sockets")


def measure(num_blocks: int, streams: int, rounds: int) -> Iterator[Row]:
    """A row for each way. Raises ChildError, and RuntimeError for bytes that have not come, or come wrong."""
    with ExitStack() as stack:
        bench = Bench(num_blocks, streams, stack)
        straight, (sources, targets) = bench.consecutive, bench.scattered
        yardsticks = {
            KVTransport.SHARED_MEMORY: ("memcpy", "consecutive"),
            KVTransport.TCP: ("plain sockets", "consecutive"),
            KVTransport.NIXL: ("memcpy", "consecutive"),
        }
        blocks = {"consecutive": (straight, straight), "scattered": (sources, targets)}

        def ways() -> dict[tuple[str, str], Callable[[], None]]:
            all_ways = {
                ("memcpy", "consecutive"): bench.memcpy,
                ("plain sockets", "consecutive"): bench.plain_sockets,
            }
            for transport in bench.transports:
                for placement, (from_, to) in blocks.items():
                    all_ways[transport, placement] = bench.transfer(from_, to, transport)
            return all_ways

        seconds: dict[tuple[str, str], list[Samples]] = {}
        for number in range(rounds + 1):
            for name, run in ways().items():
                begin = time.perf_counter()
                run()
                if not number:  # the first round connects, touches all memory, and is checked
                    if name[0] in bench.transports:
                        bench.check(*blocks[name[1]])
                else:
                    seconds.setdefault(name, []).append({"seconds": [time.perf_counter() - begin]})
    for (way, placement), samples in seconds.items():
        yardstick = yardsticks.get(KVTransport(way)) if way in bench.transports else None
        row: Row = {"way": way, "placement": placement, "mib": round(bench.bytes / 2**20), "rounds": rounds}
        if way in ("plain sockets", KVTransport.TCP):
            row["streams"] = streams
        speeds = [bench.bytes / sample["seconds"][0] / 1e9 for sample in samples]
        row |= {
            "gb_per_s": round(statistics.median(speeds), 3),
            "gb_per_s_low": round(min(speeds), 3),
            "gb_per_s_high": round(max(speeds), 3),
        }
        if yardstick is not None:
            row["yardstick"] = yardstick[0]
            times = compared(seconds[yardstick], samples, _median_seconds, "percent_of_yardstick")
            row |= {key: round(100 * share) for key, share in times.items()}
        yield row


def _median_seconds(samples: Samples) -> float:
    return statistics.median(samples["seconds"])


def command(
    mib: Annotated[int, typer.Option(min=1, help="Of one transfer.")] = 64,
    streams: Annotated[int, typer.Option(min=1, max=16, help="Connections that carry blocks, over TCP.")] = 4,
    rounds: Annotated[int, typer.Option(min=MIN_ROUNDS, help="Each way once in a round.")] = 9,
    as_json: JsonOption = False,
) -> None:
    """Move KV blocks between two processes: shared memory and NIXL beside memcpy, TCP beside plain sockets."""
    num_blocks = max(streams, mib * 2**20 // layout_of(1).block_bytes)
    run_benchmark(Table("Transfer of KV blocks", COLUMNS, measure(num_blocks, streams, rounds)), as_json=as_json)
