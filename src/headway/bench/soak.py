"""`headway bench soak`: whether the engine process keeps its memory under very many short requests.

The requests go through the client, the sockets and the engine process, as the requests of a server do. All prompts are
different, answers are short, and every tenth client leaves before its answer is complete. The KV pool is small, so all
blocks, and the index of the prefix cache, have been used several times before the warm-up ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from headway.bench import plot
from headway.bench.benchmark import Table, run_benchmark
from headway.bench.plot import PlotOption
from headway.bench.report import Row
from headway.bench.tables import Column, JsonOption
from headway.client.engine_client import EngineClient
from headway.config import EngineConfig
from headway.request import NewRequest
from headway.sampling import SamplingParams

WARM_UP = 0.3  # share of the requests
WINDOW = 0.1  # share of the requests: the medians of the first window after the warm-up and of the last are compared
SAMPLES = 200
MAX_GROWTH = 1.0  # percent of the resident memory
SMALLEST_GROWTH = 5.0  # MiB: the free lists of CPython may take as much (docs/memory.md)
MIN_REQUESTS = 1_000

CONCURRENCY = 64
NUM_BLOCKS = 1_025
MAX_MODEL_LEN = 256
LONGEST_PROMPT, LONGEST_ANSWER = 64, 8  # tokens
LEAVES_EARLY = 10  # every how many-th client

COLUMNS = (
    Column("executor", "executor", ""),
    Column("requests", "requests", ",d"),
    Column("seconds", "seconds", ",.0f"),
    Column("engine when warm, MiB", "engine_warm_mib", ",.1f"),
    Column("at the end", "engine_end_mib", ",.1f"),
    Column("growth, %", "engine_growth_percent", "+.2f"),
    Column("bytes per request", "engine_bytes_per_request", "+,.0f"),
    Column("client when warm, MiB", "client_warm_mib", ",.1f"),
    Column("at the end ", "client_end_mib", ",.1f"),
    Column("growth, % ", "client_growth_percent", "+.2f"),
)


class Device(StrEnum):
    """What computes the steps. The names are those of `python -m headway.engine.process --executor`."""

    SIMULATED = "simulated"
    TRANSFORMERS = "transformers"


REQUESTS = {Device.SIMULATED: 200_000, Device.TRANSFORMERS: 20_000}


class Resident(NamedTuple):
    """Resident memory after so many requests, in bytes: of the engine process, and of the client's process."""

    requests: int
    engine: int
    client: int


def resident_bytes(pid: int) -> int:
    """The resident memory of a process. Linux only."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Soak:
    """The load of one soak. samples: the resident memory over time. weigh: the resident bytes of a process id."""

    def __init__(self, device: Device, requests: int, *, weigh: Callable[[int], int] = resident_bytes) -> None:
        self.device = device
        self.requests = requests
        self.samples: list[Resident] = []
        self.seconds = 0.0
        self._weigh = weigh
        self._rng = random.Random(0)
        self._begun = self._ended = 0

    async def run(self) -> None:
        """Returns when every request has ended."""
        config = EngineConfig(
            max_num_seqs=CONCURRENCY, num_blocks=NUM_BLOCKS, max_model_len=MAX_MODEL_LEN, device="cpu"
        )
        client = await EngineClient.start(config, engine_args=("--executor", self.device.value))
        started = time.monotonic()
        try:
            self._sample(client)
            async with asyncio.TaskGroup() as group:
                for _ in range(CONCURRENCY):
                    group.create_task(self._ask_in_turn(client))
        finally:
            await client.shutdown()
        self.seconds = time.monotonic() - started

    def row(self) -> Row:
        """The figures of the soak."""
        row: Row = {"executor": self.device.value, "requests": self.requests, "seconds": round(self.seconds, 1)}
        for process in ("engine", "client"):
            warm, end = (self._median(process, first) for first in (WARM_UP, 1.0 - WINDOW))
            between = (1.0 - WINDOW - WARM_UP) * self.requests
            row |= {
                f"{process}_warm_mib": round(warm / 2**20, 2),
                f"{process}_end_mib": round(end / 2**20, 2),
                f"{process}_growth_percent": round((end / warm - 1) * 100, 3),
                f"{process}_bytes_per_request": round((end - warm) / between, 1),
            }
        return row

    def _median(self, process: str, first: float) -> float:
        """The median resident bytes in the window that begins after this share of the requests."""
        window = range(round(first * self.requests), round((first + WINDOW) * self.requests) + 1)
        return statistics.median(getattr(sample, process) for sample in self.samples if sample.requests in window)

    def _sample(self, client: EngineClient) -> None:
        self.samples.append(Resident(self._ended, self._weigh(client.engine_pid), self._weigh(os.getpid())))

    async def _ask_in_turn(self, client: EngineClient) -> None:
        while self._begun < self.requests:
            number, self._begun = self._begun, self._begun + 1
            await self._ask(client, number)
            self._ended += 1
            if self._ended % max(1, self.requests // SAMPLES) == 0:
                self._sample(client)

    async def _ask(self, client: EngineClient, number: int) -> None:
        rng, vocabulary = self._rng, client.files.limits.vocab_size
        prompt = [rng.randrange(vocabulary) for _ in range(rng.randint(1, LONGEST_PROMPT))]
        sampling = SamplingParams(
            max_tokens=rng.randint(1, LONGEST_ANSWER), temperature=rng.choice((0.0, 1.0)), ignore_eos=True
        )
        request = NewRequest(request_id=str(number), prompt=client.pack(prompt), sampling=sampling)
        leaves = number % LEAVES_EARLY == 0
        with client.submit([request], stream=leaves) as pending:
            async for _ in pending:
                if leaves:
                    break


def command(
    executor: Annotated[
        Device, typer.Option(help="simulated: a device that computes nothing; transformers: the embedded model.")
    ] = Device.SIMULATED,
    requests: Annotated[
        int | None, typer.Option(help="How many.", show_default="200,000; transformers: 20,000")
    ] = None,
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Send very many short requests to an engine process, and see that its memory does not grow.

    The exit code is 1 if the resident memory of the engine process grows by 1% or more, and by 5 MiB or more, after
    the first 30% of the requests.
    """
    count = REQUESTS[executor] if requests is None else requests
    if count < MIN_REQUESTS:
        raise typer.BadParameter(f"must be at least {MIN_REQUESTS} to be warm, got {count}", param_hint="--requests")
    if not sys.platform.startswith("linux"):
        raise typer.BadParameter("the soak reads resident memory from /proc, which only Linux has")
    soak = Soak(executor, count)

    def rows() -> Iterator[Row]:
        asyncio.run(soak.run())
        yield soak.row()

    def draw(_rows: Sequence[Row], file: Path) -> None:
        done = [sample.requests for sample in soak.samples]
        series = {
            process: (done, [getattr(sample, process) / 2**20 for sample in soak.samples])
            for process in ("engine", "client")
        }
        plot.lines(file, "Resident memory under short requests", "requests", "resident, MiB", series, log=False)

    ((row,),) = run_benchmark(Table("Soak", COLUMNS, rows()), as_json=as_json, plot_file=plot_file, draw=draw)
    growth_mib = row["engine_end_mib"] - row["engine_warm_mib"]
    if row["engine_growth_percent"] >= MAX_GROWTH and growth_mib >= SMALLEST_GROWTH:
        raise typer.Exit(1)
