"""`headway bench intake`: what commands cost their callers while steps run, and what they cost the loop.

Threads add, finish and abort requests and publish their output, at moments that do not depend on the steps. The manager
with one lock (V1) and the manager with the mailbox (V2) are measured in the same run.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from headway.bench import plot
from headway.bench.benchmark import Table, run_benchmark
from headway.bench.plot import PlotOption
from headway.bench.report import Row, percentile
from headway.bench.tables import Column, JsonOption
from headway.commands.lists import numbers, whole_numbers
from headway.config import SchedulerName
from headway.engine import interpreter
from headway.errors import QueueFullError
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.token_ids import pack
from headway_lab.rigs.busy_engine import MAX_MODEL_LEN, VOCAB_SIZE, BusyEngine

SCHEDULERS: tuple[SchedulerName, ...] = ("v1", "v2")
PROMPT_TOKENS = 512
ROUNDS = 2
PERCENTILES = (50, 99, 99.9)
MIN_CALLS = 1000  # of each kind, for a 99.9th percentile
MIN_STEPS = 100
FLAT_OUT_S = 2.0
MIN_S = 2.0
_PROMPTS = 32  # prompts that are made before the clock starts

Kind = str
ADD, ADD_LIST, FINISH, ABORT, CACHE = KINDS = ("add, packed", "add, list", "finish", "abort", "cache outputs")
REFUSED = "add, refused"
CYCLE = (ADD, CACHE, FINISH, ADD_LIST, CACHE, ABORT)
"""The calls of each thread, repeated. As many requests are added as end."""


@dataclass(frozen=True, slots=True)
class Load:
    """`producers` threads hand in `rate` calls per second in all (inf: as fast as they can), for `seconds`, while
    `running` requests decode in steps of `step_s` seconds."""

    producers: int
    running: int
    rate: float
    seconds: float
    step_s: float


class Latency(NamedTuple):
    """The times of one call, in seconds: inside the call, and since its planned begin."""

    inside: float
    from_arrival: float


class Producer(threading.Thread):
    """Makes its share of the calls, at random moments, until its time is over; each kind at least once.

    mine: uids of its requests, oldest first. latencies: by kind of call.
    """

    def __init__(self, busy: BusyEngine, load: Load, number: int, mine: Sequence[int]) -> None:
        super().__init__(name=f"producer-{number}")
        self._engine, self._manager = busy.engine, busy.manager
        self._load, self._number, self._mine = load, number, deque(mine)
        self._packed = [busy.prompt() for _ in range(_PROMPTS)]
        self._lists = [prompt.tolist() for prompt in self._packed]
        self._sampling = SamplingParams(max_tokens=busy.max_tokens, ignore_eos=True)
        self._count = 0
        self.latencies: defaultdict[Kind, list[Latency]] = defaultdict(list)

    def run(self) -> None:
        clock, load = time.perf_counter, self._load
        rng = np.random.default_rng(self._number)
        due = began = clock()
        while self._count < len(CYCLE) or (due < began + load.seconds and clock() < began + 2 * load.seconds):
            if math.isinf(load.rate):
                due = clock()
            else:
                due += rng.exponential(load.producers / load.rate)
                time.sleep(max(0.0, due - clock()))
            kind = CYCLE[self._count % len(CYCLE)]
            call = self._prepared(kind)
            started = clock()
            try:
                call()
            except QueueFullError:
                kind = REFUSED
            ended = clock()
            self.latencies[kind].append(Latency(ended - started, ended - due))
            self._count += 1

    def _prepared(self, kind: Kind) -> Callable[[], object]:
        """The call, ready to be timed: its arguments are made."""
        mine, request_id = self._mine, f"{self._number}-{self._count}"
        if kind == ADD:
            packed = self._packed[self._count % _PROMPTS]
            return lambda: mine.append(self._add(request_id, packed))
        if kind == ADD_LIST or not mine:
            tokens = self._lists[self._count % _PROMPTS]
            return lambda: mine.append(self._add(request_id, pack(tokens, VOCAB_SIZE)))
        if kind == FINISH:
            uid = [mine.popleft()]
            return lambda: self._engine.manager.finish(uid)
        if kind == ABORT:
            uid = [mine.pop()]
            return lambda: self._engine.manager.abort(uid)
        uid = [mine[0]]
        return lambda: self._manager.publish_output(uid)

    def _add(self, request_id: str, prompt: NDArray[np.int32]) -> int:
        return self._engine.add(NewRequest(request_id=request_id, prompt=prompt, sampling=self._sampling))


class Sample(NamedTuple):
    """The result of one run. turns: seconds from the end of a step to the launch that follows its result."""

    latencies: dict[Kind, list[Latency]]
    turns: list[float]
    seconds: float


def run(scheduler: SchedulerName, load: Load) -> Sample:
    """Let the loop step under this load."""
    max_tokens = min(64 + round(4 * load.seconds / load.step_s), MAX_MODEL_LEN - PROMPT_TOKENS)  # none ends by itself
    busy = BusyEngine(
        scheduler, load.running, load.step_s, prompt_tokens=PROMPT_TOKENS, max_tokens=max_tokens, max_waiting=1024
    )
    with busy:
        uids = [busy.add(f"first-{i}", max_tokens) for i in range(load.running)]
        busy.wait_until_admitted(load.running)
        producers = [Producer(busy, load, i, uids[i :: load.producers]) for i in range(load.producers)]
        first, began = len(busy.steps), time.perf_counter()
        if producers:
            for producer in producers:
                producer.start()
            for producer in producers:
                producer.join()
        else:
            time.sleep(load.seconds)
        busy.wait_for_steps(first, MIN_STEPS // ROUNDS)  # later than that only where the machine is slow
        seconds, steps = time.perf_counter() - began, busy.steps[first:]
    latencies: dict[Kind, list[Latency]] = defaultdict(list)
    for producer in producers:
        for kind, values in producer.latencies.items():
            latencies[kind] += values
    return Sample(latencies, busy.turns(steps), seconds)


def measure(load: Load) -> dict[SchedulerName, Sample]:
    """Both managers in turn, so that what slows the machine down for a while slows both."""
    part = replace(load, seconds=load.seconds / ROUNDS)
    rounds = [{scheduler: run(scheduler, part) for scheduler in SCHEDULERS} for _ in range(ROUNDS)]
    return {scheduler: _pooled([samples[scheduler] for samples in rounds]) for scheduler in SCHEDULERS}


def _pooled(samples: Sequence[Sample]) -> Sample:
    kinds = dict.fromkeys(kind for sample in samples for kind in sample.latencies)
    return Sample(
        {kind: [one for sample in samples for one in sample.latencies.get(kind, ())] for kind in kinds},
        [turn for sample in samples for turn in sample.turns],
        sum(sample.seconds for sample in samples),
    )


def _settings(scheduler: SchedulerName, load: Load) -> Row:
    return {
        "scheduler": scheduler,
        "producers": load.producers,
        "running": load.running,
        "step_ms": load.step_s * 1e3,
        "calls_per_s_wanted": None if math.isinf(load.rate) else load.rate,
    }


def call_rows(load: Load, samples: dict[SchedulerName, Sample]) -> Iterator[Row]:
    """A row for each kind of call and manager."""
    for kind in (*KINDS, REFUSED):
        p99: dict[SchedulerName, float | None] = {}
        for scheduler, sample in samples.items():
            latencies = sample.latencies.get(kind)
            if not latencies:
                continue
            row = _settings(scheduler, load) | {"call": kind, "calls": len(latencies)}
            for name, values in zip(Latency._fields, zip(*latencies, strict=True), strict=True):
                micros = [value * 1e6 for value in values]
                for percent in PERCENTILES:
                    row[f"{name}_p{percent:g}_us"] = _rounded(percentile(micros, percent))
                row[f"{name}_max_us"] = round(max(micros), 1)
            own = p99[scheduler] = row["inside_p99_us"]
            with_lock = p99.get("v1")
            if scheduler == "v2" and with_lock and own:
                row["v1_p99_times"] = round(with_lock / own, 1)
            yield row


def step_row(scheduler: SchedulerName, load: Load, sample: Sample, quiet: Sample) -> Row:
    """The loop's time from the end of a step to the next launch, under this load. quiet: without the load."""
    turns = [turn * 1e3 for turn in sample.turns]
    calls = sum(map(len, sample.latencies.values()))
    p99, unloaded = percentile(turns, 99), percentile([turn * 1e3 for turn in quiet.turns], 99)
    return _settings(scheduler, load) | {
        "calls_per_s": round(calls / sample.seconds, 1),
        "refused": len(sample.latencies.get(REFUSED, ())),
        "steps": len(turns),
        "turn_p50_ms": _rounded(percentile(turns, 50), 3),
        "turn_p99_ms": _rounded(p99, 3),
        "turn_p99_times_unloaded": round(p99 / unloaded, 2) if p99 and unloaded else None,
        "turn_max_ms": round(max(turns), 3),
    }


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)


_SETTINGS = (
    Column("scheduler", "scheduler", ""),
    Column("calls/s", "calls_per_s_wanted", ",g"),
    Column("producers", "producers", "d"),
    Column("running", "running", ",d"),
)
CALL_COLUMNS = (
    Column("call", "call", ""),
    *_SETTINGS,
    Column("calls", "calls", ",d"),
    Column("inside p50, µs", "inside_p50_us"),
    Column("p99", "inside_p99_us", ",.0f"),
    Column("p99.9", "inside_p99.9_us", ",.0f"),
    Column("max", "inside_max_us", ",.0f"),
    Column("v1 / v2, p99", "v1_p99_times"),
    Column("from arrival p50, µs", "from_arrival_p50_us", ",.0f"),
    Column("p99", "from_arrival_p99_us", ",.0f"),
    Column("p99.9", "from_arrival_p99.9_us", ",.0f"),
    Column("max", "from_arrival_max_us", ",.0f"),
)
STEP_COLUMNS = (
    Column("calls/s made", "calls_per_s", ",.0f"),
    *_SETTINGS,
    Column("refused", "refused", ",d"),
    Column("steps", "steps", ",d"),
    Column("turn p50, ms", "turn_p50_ms", ",.3f"),
    Column("p99", "turn_p99_ms", ",.3f"),
    Column("p99 / unloaded", "turn_p99_times_unloaded", ".2f"),
    Column("max", "turn_max_ms", ",.3f"),
)


def command(
    producers: Annotated[
        Sequence[int],
        typer.Option(parser=whole_numbers(1, 256), metavar="N,...", help="Threads that send commands."),
    ] = (4,),
    running: Annotated[
        Sequence[int],
        typer.Option(parser=whole_numbers(1, 16_384), metavar="N,...", help="Requests that decode meanwhile."),
    ] = (64, 1024),
    rate: Annotated[
        Sequence[float],
        typer.Option(
            parser=numbers(1, math.inf),
            metavar="RATE,...",
            help="Calls per second of all threads together; inf: as fast as they can.",
        ),
    ] = (500, 8000, math.inf),
    seconds: Annotated[
        float | None,
        typer.Option(help="How long each of them runs, in two parts.", show_default="what a 99.9th percentile takes"),
    ] = None,
    step_ms: Annotated[float, typer.Option(help="Milliseconds that a step of the simulated device takes.")] = 10.0,
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Time commands while steps run, and the turns of the loop at the same time, for V1 and V2.

    A turn is the time from the end of a step to the next launch. It is also measured without commands.
    """
    if not 0.1 <= step_ms <= 1000:
        raise typer.BadParameter(f"must be in [0.1, 1000], got {step_ms:g}", param_hint="--step-ms")
    loads = [
        Load(threads, count, calls, _seconds(calls, seconds, step_ms / 1e3), step_ms / 1e3)
        for count in running
        for calls in rate
        for threads in producers
    ]
    quiet = {count: Load(0, count, 0.0, _seconds(math.inf, seconds, step_ms / 1e3), step_ms / 1e3) for count in running}

    @cache
    def measured() -> list[tuple[Load, dict[SchedulerName, Sample]]]:
        with interpreter.settled():
            return [(load, measure(load)) for load in (*quiet.values(), *loads)]

    def calls_of_all() -> Iterator[Row]:
        for load, samples in measured():
            yield from call_rows(load, samples)

    def steps_of_all() -> Iterator[Row]:
        unloaded = {load.running: samples for load, samples in measured()[: len(quiet)]}
        for load, samples in measured():
            for scheduler in SCHEDULERS:
                yield step_row(scheduler, load, samples[scheduler], unloaded[load.running][scheduler])

    run_benchmark(
        Table(f"Calls while the loop makes steps of {step_ms:g} ms", CALL_COLUMNS, calls_of_all()),
        Table("The loop's turns meanwhile", STEP_COLUMNS, steps_of_all()),
        as_json=as_json,
        plot_file=plot_file,
        draw=_draw,
    )


def _seconds(rate: float, seconds: float | None, step_s: float) -> float:
    """How long to run; raises BadParameter where the percentiles take longer."""
    calls = 0.0 if math.isinf(rate) else 1.1 * MIN_CALLS * len(CYCLE) / rate
    needed = max(calls, 1.5 * MIN_STEPS * step_s)
    if seconds is None:
        return max(needed, MIN_S)
    if not seconds >= needed:
        raise typer.BadParameter(
            f"a 99.9th percentile takes {MIN_CALLS} calls of each kind and a 99th {MIN_STEPS} steps, and so at least "
            f"{needed:.1f} seconds at {rate:g} calls/s, got {seconds:g}",
            param_hint="--seconds",
        )
    return seconds


def _draw(rows: Sequence[Row], turns: Sequence[Row], file: Path) -> None:
    """99th percentiles inside the call, with the most producers and the most running."""
    busiest = max(row["producers"] for row in rows), max(row["running"] for row in rows)
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        there = (row["producers"], row["running"]) == busiest and row["call"] in (ADD, FINISH)
        if there and row["calls_per_s_wanted"] and row["inside_p99_us"]:
            xs, ys = series.setdefault(f"{row['scheduler']}, {row['call']}", ([], []))
            xs.append(row["calls_per_s_wanted"])
            ys.append(row["inside_p99_us"])
    title = f"Handing in work, {busiest[0]} threads, {busiest[1]:,} running"
    plot.lines(file, title, "calls per second", "99th percentile inside the call, µs", series, log=True)
