"""`headway bench memory`: bytes per slot and per block of the scheduler's state, and a soak.

bytes   the resident memory for each additional slot or block, measured in separate processes
soak    an engine with a simulated device; requests are added, share prefixes, end and are aborted. After the warm-up
        its resident memory must not grow
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from headway.bench import plot
from headway.bench.benchmark import Table, run_benchmark
from headway.bench.plot import PlotOption
from headway.bench.report import Row
from headway.bench.tables import Column, JsonOption
from headway.config import SchedulerConfig
from headway.engine.engine import Engine
from headway.executor.simulated import SimulatedExecutor, StepTimeModel
from headway.managers import LockFreeManager
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.scheduler import Effects
from headway_lab.rigs.footprint import resident_bytes

FOOTPRINT = "headway_lab.rigs.footprint"  # not imported: it is run
COUNTS = {"slots": (4_096, 32_768), "running": (1_024, 9_216), "blocks": (65_536, 524_288), "cached": (65_536, 262_144)}
MEANINGS = {
    "slots": "an empty slot",
    "running": "a running request of 128 tokens, its slot and 8 blocks",
    "blocks": "an empty block",
    "cached": "a full block in the prefix cache",
}

MIN_SECONDS = 10.0
WARM_UP = 0.2  # share of a soak; every block of the pool has been used several times by then
WINDOW = 0.1  # share of a soak: the medians of the first window after the warm-up and of the last are compared
SAMPLES_PER_WINDOW = 20
MAX_GROWTH = 0.01

RUNNING = 128
PAUSE_S = 0.002  # between two looks at how many requests have ended
PROMPTS = 64  # beginnings that requests share
VOCAB_SIZE = 32_000
ABORTED = 0.15
FINISHED = 0.1  # share of requests that are finished from outside, as by a stop string

COLUMNS = (
    Column("one of", "what", ""),
    Column("fewer", "fewer", ",d"),
    Column("more", "more", ",d"),
    Column("bytes each", "bytes_each", ",.0f"),
)
SOAK_COLUMNS = (
    Column("seconds", "seconds", ",.0f"),
    Column("requests", "requests", ",d"),
    Column("aborted", "aborted", ",d"),
    Column("steps", "steps", ",d"),
    Column("warm after, s", "warm_up_s", ".0f"),
    Column("resident then, MiB", "resident_warm_mib", ",.2f"),
    Column("at the end", "resident_end_mib", ",.2f"),
    Column("growth, %", "growth_percent", "+.3f"),
)


def bytes_each(what: str, fewer: int, more: int) -> Row:
    """Bytes for one object: the slope between two counts, each built in its own process."""
    low, high = (_footprint(what, count) for count in (fewer, more))
    return {
        "what": what,
        "meaning": MEANINGS[what],
        "fewer": fewer,
        "more": more,
        "bytes_each": round((high - low) / (more - fewer), 1),
    }


def _footprint(what: str, count: int) -> int:
    return int(subprocess.check_output([sys.executable, "-m", FOOTPRINT, what, str(count)]))


class Resident(NamedTuple):
    """Resident memory at one moment of a soak."""

    seconds: float
    bytes: int


class Soak:
    """An engine under changing load, for so many seconds of `clock`. samples: its resident memory over time."""

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.seconds = seconds
        self._clock, self._sleep = clock, sleep
        self.samples: list[Resident] = []
        self.requests = self.aborted = self.steps = 0
        self._rng = np.random.default_rng(0)
        self._inside = 0
        self._ends: deque[int] = deque()  # how many ended, from the writer's thread
        self._later: deque[tuple[list[int], list[int]]] = deque()  # to be aborted, to be finished
        config = SchedulerConfig(
            max_num_seqs=RUNNING,
            max_num_batched_tokens=8_192,
            max_model_len=2_048,
            num_blocks=8_192,
        )
        executor = SimulatedExecutor(StepTimeModel(base_s=0.002), max_num_seqs=RUNNING, vocab_size=VOCAB_SIZE)
        self._engine = Engine(LockFreeManager(config), executor, self._take)
        self._stems = self._rng.integers(0, VOCAB_SIZE, (PROMPTS, 256), dtype=np.int32)

    def run(self) -> None:
        """Returns when the time is over and every request has ended."""
        self._engine.start()
        started = self._clock()
        next_sample = 0.0
        try:
            for number in itertools.count():
                now = self._clock() - started
                if now >= self.seconds:
                    break
                if now >= next_sample:
                    self.samples.append(Resident(now, resident_bytes()))
                    next_sample += self.seconds * WINDOW / SAMPLES_PER_WINDOW
                self._add_some(number)
                self._sleep(PAUSE_S)
            self.steps = self._engine.manager.snapshot().step_id
        finally:
            self._engine.shutdown()

    def row(self) -> Row:
        """The figures of the soak."""
        warm = self._median(WARM_UP, WARM_UP + WINDOW)
        end = self._median(1.0 - WINDOW, 1.0)
        return {
            "seconds": self.seconds,
            "requests": self.requests,
            "aborted": self.aborted,
            "steps": self.steps,
            "warm_up_s": round(self.seconds * WARM_UP, 1),
            "resident_warm_mib": round(warm / 2**20, 3),
            "resident_end_mib": round(end / 2**20, 3),
            "growth_percent": round((end / warm - 1) * 100, 4),
        }

    def _median(self, first: float, last: float) -> float:
        """The median resident memory in this part of the time, in bytes."""
        return statistics.median(
            sample.bytes for sample in self.samples if first <= sample.seconds / self.seconds <= last
        )

    def _take(self, effects: Effects) -> None:
        if effects.ended:
            self._ends.append(len(effects.ended))

    def _add_some(self, number: int) -> None:
        """Keep twice as many requests inside as can run, so that there is always a queue; abort or finish some."""
        while self._ends:
            self._inside -= self._ends.popleft()
        uids = []
        for i in range(2 * RUNNING - self._inside):
            stem, length, output = self._rng.integers((0, 1, 1), (PROMPTS, 256, 128)).tolist()
            tail = self._rng.integers(0, VOCAB_SIZE, length, dtype=np.int32)
            prompt = np.concatenate((self._stems[stem], tail))
            sampling = SamplingParams(max_tokens=output, ignore_eos=True)
            uids.append(self._engine.add(NewRequest(request_id=f"{number}-{i}", prompt=prompt, sampling=sampling)))
        self._inside += len(uids)
        self.requests += len(uids)
        lots = self._rng.random(len(uids))
        aborted = [uid for uid, lot in zip(uids, lots, strict=True) if lot < ABORTED]
        finished = [uid for uid, lot in zip(uids, lots, strict=True) if lot > 1 - FINISHED]
        self._later.append((aborted, finished))
        if len(self._later) > 50:  # by now they wait, run, or have ended
            aborted, finished = self._later.popleft()
            self._engine.manager.abort(aborted)
            self._engine.manager.finish(finished)
            self.aborted += len(aborted)


def command(
    seconds: Annotated[float, typer.Option(help="How long the soak runs; 0: not at all.")] = 60.0,
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Weigh the scheduler's state, then run an engine for a while and see that its memory does not grow.

    The exit code is 1 if the memory grows by 1% or more after the warm-up.
    """
    if seconds != 0 and not MIN_SECONDS <= seconds < float("inf"):
        raise typer.BadParameter(
            f"must be 0 or at least {MIN_SECONDS:g}: it takes that long to be warm, got {seconds:g}",
            param_hint="--seconds",
        )
    if plot_file is not None and not seconds:
        raise typer.BadParameter("draws the soak, which --seconds 0 leaves out", param_hint="--plot")
    weights = Table(
        "Resident bytes of the scheduler's state",
        COLUMNS,
        _weights(),
        notes=[f"{what}: {meaning}" for what, meaning in MEANINGS.items()],
    )
    if not seconds:
        run_benchmark(weights, as_json=as_json)
        return
    soak = Soak(seconds)

    def soaked() -> Iterator[Row]:
        soak.run()
        yield soak.row()

    def draw(weights: Sequence[Row], soaks: Sequence[Row], file: Path) -> None:
        mib = [sample.bytes / 2**20 for sample in soak.samples]
        series = {"resident": ([sample.seconds for sample in soak.samples], mib)}
        plot.lines(file, "Resident memory of an engine under load", "seconds", "resident, MiB", series, log=False)

    tables = weights, Table("Soak", SOAK_COLUMNS, soaked())
    _, (row,) = run_benchmark(*tables, as_json=as_json, plot_file=plot_file, draw=draw)
    if row["growth_percent"] >= MAX_GROWTH * 100:
        raise typer.Exit(1)


def _weights() -> Iterator[Row]:
    return (bytes_each(what, *counts) for what, counts in COUNTS.items())
