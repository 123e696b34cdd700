"""`headway bench gap`: how long the device waits for its next step.

An engine as in the engine process, with a simulated device: many threads add requests, and the tokens of each step
leave in one message to another process. The device has its own timeline: a step begins when it is launched and the step
before it has ended. The gap is the time between the two steps, when the device is idle.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
import zmq

from headway.bench import plot
from headway.bench.benchmark import Table, run_benchmark
from headway.bench.plot import PlotOption
from headway.bench.report import Row, percentile
from headway.bench.tables import Column, JsonOption
from headway.commands.lists import numbers, whole_numbers
from headway.config import SchedulerName
from headway.engine import interpreter
from headway.engine.output import Output, connect_output
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.wire.launch import output_address
from headway.wire.wire_errors import WireErrors
from headway_lab.rigs.busy_engine import MAX_MODEL_LEN, VOCAB_SIZE, BusyEngine
from headway_lab.rigs.sink import Sink

PROMPT_TOKENS = 128
MIN_STEPS = 100  # for a 99th percentile
ROUNDS = 2
_LATE_S = 0.005  # a step may take so much longer than the device does
_WARM_UP_S = 0.3

COLUMNS = (
    Column("step, ms", "step_ms", "g"),
    Column("running", "running", ",d"),
    Column("scheduler", "scheduler", ""),
    Column("overlapped", "async_scheduling", ""),
    Column("running, mean", "mean_running", ",.0f"),
    Column("steps", "steps", ",d"),
    Column("gap p50, µs", "gap_p50_us", ",.0f"),
    Column("p99", "gap_p99_us", ",.0f"),
    Column("max", "gap_max_us", ",.0f"),
    Column("idle, %", "idle_percent", ".2f"),
    Column("turn p50, µs", "turn_p50_us", ",.0f"),
    Column("p99", "turn_p99_us", ",.0f"),
)


class Contender(NamedTuple):
    """One way to run the traffic."""

    scheduler: SchedulerName
    async_scheduling: bool


CONTENDERS = tuple(itertools.starmap(Contender, itertools.product(("v1", "v2"), (False, True))))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests at `rate` per second from `threads` threads, for `seconds`. Their length is such that `running` of them
    run at a time when a step takes `step_s` seconds."""

    running: int
    step_s: float
    rate: float
    threads: int
    seconds: float

    @property
    def max_tokens(self) -> int:
        return max(1, round(self.running / (self.rate * self.step_s)))

    @property
    def slots(self) -> int:
        """Slots for the requests that run at a time; their number varies around `running`."""
        return self.running + 8 * math.isqrt(self.running)


class Intake(threading.Thread):
    """Adds requests at random moments, until it is stopped."""

    def __init__(self, busy: BusyEngine, traffic: Traffic, number: int) -> None:
        super().__init__(name=f"intake-{number}")
        self._busy, self._traffic, self._number = busy, traffic, number
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True
        self.join()

    def run(self) -> None:
        rng, traffic = np.random.default_rng(self._number), self._traffic
        sampling = SamplingParams(max_tokens=traffic.max_tokens, ignore_eos=True)
        due = time.perf_counter()
        for count in itertools.count():
            due += rng.exponential(traffic.threads / traffic.rate)
            prompt = rng.integers(1, VOCAB_SIZE, PROMPT_TOKENS, dtype=np.int32)
            time.sleep(max(0.0, due - time.perf_counter()))
            if self._stopping:
                return
            self._busy.engine.add(NewRequest(request_id=f"{self._number}-{count}", prompt=prompt, sampling=sampling))


class Sample(NamedTuple):
    """The result of one run of a contender. gaps, turns: seconds, for each step. idle: seconds without a step, of
    `whole` seconds in all. running: requests in each step."""

    gaps: list[float]
    turns: list[float]
    idle: float
    whole: float
    running: list[int]


def run(contender: Contender, traffic: Traffic) -> Sample:
    """Let the engine run under this traffic."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with Sink(context) as sink:
        output = Output()
        output.attach(0, connect_output(context, output_address(sink.socket_dir, 0)))
        busy = BusyEngine(
            contender.scheduler,
            traffic.slots,
            traffic.step_s,
            prompt_tokens=PROMPT_TOKENS,
            max_tokens=traffic.max_tokens,
            async_scheduling=contender.async_scheduling,
            on_effects=output.put,
        )
        with busy:
            output.start(busy.engine, WireErrors("engine"))
            sample = _measure(busy, traffic)
        output.stop()
        sink.least = len(sample.gaps)
    context.destroy()
    if sink.steps < sink.least:
        raise RuntimeError(f"the tokens of {sink.steps} steps came out of {len(sample.gaps)} steps")
    return sample


def _measure(busy: BusyEngine, traffic: Traffic) -> Sample:
    for i in range(traffic.running):  # at all ages, as if traffic had gone on for long
        busy.add(f"first-{i}", 1 + i * traffic.max_tokens // traffic.running)
    busy.wait_until_admitted(traffic.running)
    threads = [Intake(busy, traffic, number) for number in range(traffic.threads)]
    for thread in threads:
        thread.start()
    time.sleep(_WARM_UP_S)
    running = []
    first = len(busy.steps)
    until = time.perf_counter() + traffic.seconds
    while time.perf_counter() < until:
        running.append(busy.engine.manager.snapshot().num_running)
        time.sleep(0.05)
    busy.wait_for_steps(first, MIN_STEPS // ROUNDS)  # later than that only where the machine is slow
    steps = busy.steps[first:]
    for thread in threads:
        thread.stop()
    gaps = busy.gaps(steps)
    return Sample(gaps, busy.turns(steps), sum(gaps), steps[-1].ended - steps[0].ended, running)


def measure(traffic: Traffic, contenders: Sequence[Contender] = CONTENDERS) -> Iterator[Row]:
    """A row for each contender; all run in turn, so that what slows the machine down for a while slows all."""
    part = Traffic(traffic.running, traffic.step_s, traffic.rate, traffic.threads, traffic.seconds / ROUNDS)
    rounds = [[run(contender, part) for contender in contenders] for _ in range(ROUNDS)]
    for contender, samples in zip(contenders, zip(*rounds, strict=True), strict=True):
        gaps = [gap * 1e6 for sample in samples for gap in sample.gaps]
        turns = [turn * 1e6 for sample in samples for turn in sample.turns]
        idle = sum(sample.idle for sample in samples) / sum(sample.whole for sample in samples)
        yield {
            "scheduler": contender.scheduler,
            "async_scheduling": contender.async_scheduling,
            "step_ms": traffic.step_s * 1e3,
            "running": traffic.running,
            "request_rate_req_per_s": traffic.rate,
            "intake_threads": traffic.threads,
            "tokens_per_request": traffic.max_tokens,
            "mean_running": round(float(np.mean([count for sample in samples for count in sample.running])), 1),
            "steps": len(gaps),
            "gap_p50_us": _rounded(percentile(gaps, 50)),
            "gap_p99_us": _rounded(percentile(gaps, 99)),
            "gap_max_us": round(max(gaps), 1),
            "idle_percent": round(100 * idle, 3),
            "turn_p50_us": _rounded(percentile(turns, 50)),
            "turn_p99_us": _rounded(percentile(turns, 99)),
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def command(
    step_ms: Annotated[
        Sequence[float],
        typer.Option(
            parser=numbers(0.1, 1000),
            metavar="MS,...",
            help="Milliseconds that a step of the simulated device takes.",
        ),
    ] = (10,),
    running: Annotated[
        Sequence[int],
        typer.Option(parser=whole_numbers(1, 16_384), metavar="N,...", help="Requests that run at the same time."),
    ] = (256, 1024),
    request_rate: Annotated[float, typer.Option(help="Requests that come per second, in total.")] = 500.0,
    threads: Annotated[int, typer.Option(help="Threads that add the requests.")] = 16,
    seconds: Annotated[float, typer.Option(help="How long each contender runs, in two parts.")] = 4.0,
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Time the gaps between steps of a simulated device, for V1 and V2, with and without overlapped steps.

    A turn is the time from the end of a step to the next launch. The gap is the part of it in which the device waits.
    """
    traffics = [Traffic(count, ms / 1e3, request_rate, threads, seconds) for ms in step_ms for count in running]
    if not 0 < request_rate <= 100_000:
        raise typer.BadParameter(f"must be in (0, 100000], got {request_rate:g}", param_hint="--request-rate")
    if not 1 <= threads <= 256:
        raise typer.BadParameter(f"must be in [1, 256], got {threads}", param_hint="--threads")
    needed = max(MIN_STEPS * (traffic.step_s + _LATE_S) for traffic in traffics)
    if not seconds >= needed:
        raise typer.BadParameter(
            f"a 99th percentile takes {MIN_STEPS} steps, and so at least {needed:.1f} seconds, got {seconds:g}",
            param_hint="--seconds",
        )
    longest = max(traffics, key=lambda traffic: traffic.max_tokens)
    if PROMPT_TOKENS + longest.max_tokens > MAX_MODEL_LEN:
        raise typer.BadParameter(
            f"{longest.running} running at {request_rate:g} requests/s and {longest.step_s * 1e3:g} ms a step means "
            f"answers of {longest.max_tokens} tokens; prompt and answer must fit max_model_len ({MAX_MODEL_LEN})",
            param_hint="--running",
        )

    def rows() -> Iterator[Row]:
        with interpreter.settled():
            for traffic in traffics:
                yield from measure(traffic)

    title = f"Idle time of the device between steps, {request_rate:g} requests/s by {threads} threads"
    run_benchmark(Table(title, COLUMNS, rows()), as_json=as_json, plot_file=plot_file, draw=_draw)


def _draw(rows: Sequence[Row], file: Path) -> None:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        how = "overlapped" if row["async_scheduling"] else "one at a time"
        xs, ys = series.setdefault(f"{row['scheduler']}, {how}, {row['running']:,} running", ([], []))
        xs.append(row["step_ms"])
        ys.append(row["idle_percent"])
    plot.lines(file, "Device idle between steps", "step, ms", "idle, %", series, log=False)
