"""`headway bench throughput`: tokens per second from prompts to answers, beside transformers."""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from headway.bench import plot
from headway.bench.benchmark import Table, run_benchmark
from headway.bench.child_process import ChildError
from headway.bench.generator_process import GeneratorProcess
from headway.bench.generators import GENERATORS, Answers, Setting
from headway.bench.plot import PlotOption
from headway.bench.report import Row
from headway.bench.rounds import Rounds, Samples, compared, pooled
from headway.bench.shapes import MAX_POSITIONS, SHAPES, Shape
from headway.bench.tables import Column, JsonOption
from headway.commands.lists import names, whole_numbers

MIN_ROUNDS = 3  # for a median with a value on either side of it
OURS, PEER = "headway", "batching"  # the other systems are compared with these two
WARM_UP_TOKENS = 4

COLUMNS = (
    Column("shape", "shape", ""),
    Column("threads", "threads", "d"),
    Column("requests", "requests", ",d"),
    Column("system", "system", ""),
    Column("tokens/s", "tokens_per_s", ",.0f", spread=True),
    Column("× headway's time", "times_headway", ".2f", spread=True),
    Column("× batching's tokens/s", "times_batching", ".2f", spread=True),
    Column("decode step, ms", "step_ms", ",.2f"),
    Column("memory floor, ms", "floor_ms", ",.2f"),
    Column("forward, %", "forward_percent"),
    Column("device busy, %", "device_busy_percent"),
    Column("other answers", "differing", ",d"),
)


def measure(shape: Shape, names: Sequence[str], setting: Setting, new_tokens: int, rounds: int) -> Iterator[Row]:
    """A row for each generator, all on the same prompts. Raises ChildError.

    On a CPU they run in turn, a round of each. On CUDA they run one after the other, because the device has not enough
    memory for all.
    """
    prompts = _prompts(shape, setting.requests)
    turns = [names] if setting.device == "cpu" else [[name] for name in names]
    measured: list[tuple[GeneratorProcess, list[Answers], float | None]] = []
    bandwidth = 0.0
    for turn in turns:
        with ExitStack() as stack:
            running = [stack.enter_context(GeneratorProcess(name, setting)) for name in turn]
            bandwidth = bandwidth or running[0].copy_bandwidth()
            for process in running:
                process.generate(prompts, WARM_UP_TOKENS if setting.device == "cpu" else new_tokens)
            found: list[list[Answers]] = [[] for _ in running]
            for _ in range(rounds):
                for process, its in zip(running, found, strict=True):
                    its.append(process.generate(prompts, new_tokens))
            busy = [
                process.device_seconds(prompts, new_tokens) if setting.device == "cuda" else None for process in running
            ]
            measured += zip(running, found, busy, strict=True)
    samples = {name: [_samples(one) for one in answers] for name, (_, answers, _) in zip(names, measured, strict=True)}
    seen = sum(map(len, prompts)) + setting.requests * new_tokens / 2
    floor_ms = (shape.weight_bytes + seen * shape.kv_bytes_per_token) / bandwidth * 1e3
    for name, (process, answers, device_seconds) in zip(names, measured, strict=True):
        row: Row = {"system": process.title, "version": process.version, "threads": setting.threads}
        row |= _speed(samples[name]) | _step(answers)
        row["floor_ms"] = round(floor_ms, 3)
        if device_seconds is not None:
            seconds = statistics.median(one.seconds for one in answers)
            row["device_busy_percent"] = round(100 * device_seconds / seconds, 1)
        if name != names[0]:
            pairs = zip(answers[0].tokens, measured[0][1][0].tokens, strict=True)
            row["differing"] = sum(theirs != ours for theirs, ours in pairs)
        if OURS in names and name != OURS:
            row |= compared(samples[name], samples[OURS], _seconds_per_token)
        if PEER in names and name != PEER:
            row |= compared(samples[PEER], samples[name], _seconds_per_token, "times_batching")
        yield row


def _samples(answers: Answers) -> Samples:
    return {"seconds": [answers.seconds], "tokens": [sum(map(len, answers.tokens))]}


def _seconds_per_token(samples: Samples) -> float:
    return sum(samples["seconds"]) / sum(samples["tokens"])


def _speed(rounds: Rounds) -> Row:
    speeds = [1 / _seconds_per_token(samples) for samples in rounds]
    return {
        "rounds": len(rounds),
        "generated_tokens": int(sum(pooled(rounds)["tokens"])) // len(rounds),
        "tokens_per_s": round(statistics.median(speeds), 1),
        "tokens_per_s_low": round(min(speeds), 1),
        "tokens_per_s_high": round(max(speeds), 1),
    }


def _step(rounds: Sequence[Answers]) -> Row:
    """The steps in which all requests decode: their median time, and the share of the forward of the model in it."""
    steps, inside, whole = [], 0.0, 0.0
    for answers in rounds:
        begin, end = max(each[0] for each in answers.times), min(each[-1] for each in answers.times)
        marks = [at for at in answers.times[0] if begin <= at <= end]
        steps += [later - sooner for sooner, later in itertools.pairwise(marks)]
        if answers.forwards:
            inside += sum(
                min(to, end) - max(since, begin) for since, to in answers.forwards if since < end and to > begin
            )
            whole += end - begin
    return {
        "decode_steps": len(steps),
        "step_ms": round(statistics.median(steps) * 1e3, 3) if steps else None,
        "forward_percent": round(100 * inside / whole, 1) if whole else None,
    }


def _prompts(shape: Shape, count: int) -> list[list[int]]:
    """Prompts of lengths spread evenly from the shortest to the longest, shuffled, of random token ids without special
    tokens."""
    draw = random.Random(0)
    span = shape.longest - shape.shortest
    lengths = [shape.shortest + (span * index // (count - 1) if count > 1 else span // 2) for index in range(count)]
    draw.shuffle(lengths)
    return [[draw.randrange(3, shape.vocabulary) for _ in range(length)] for length in lengths]


def command(
    shape: Annotated[str, typer.Option(help=f"Shape of the model (its weights are random): {', '.join(SHAPES)}.")] = (
        "small"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        Sequence[int],
        typer.Option(
            parser=whole_numbers(1, 1024),
            metavar="N,...",
            help="Threads of each system; several numbers are run one by one.",
        ),
    ] = (1, 2),
    requests: Annotated[
        Sequence[int] | None,
        typer.Option(
            parser=whole_numbers(1, 1024),
            metavar="N,...",
            help="Requests at a time; several numbers are run one by one.",
            show_default="64; qwen3-8b: 1,32,256",
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(help="Output tokens of each request.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds of each system, after one round to warm up.")] = 3,
    systems: Annotated[
        Sequence[str],
        typer.Option(
            parser=names(tuple(GENERATORS)),
            metavar="NAME,...",
            help="Systems to measure; the answers of the others are compared with those of the first.",
        ),
    ] = tuple(GENERATORS),
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Generate from random weights, loaded by the real loader: prompts of 32 to 512 tokens, all added at once.

    Greedy. `generate` gets one batch, padded on the left to the longest prompt. Continuous batching gets the same
    budget of tokens for a step as Headway. Each system has its own process, and one system computes at a time. On CUDA
    also: the share of the time that the device computes, and the least time of a step, which reads weights and KV once
    at the bandwidth of a copy.
    """
    if shape not in SHAPES:
        raise typer.BadParameter(f"must be one of {', '.join(SHAPES)}, got {shape!r}", param_hint="--shape")
    chosen = SHAPES[shape]
    if rounds < MIN_ROUNDS:
        raise typer.BadParameter(f"must be at least {MIN_ROUNDS} for a median, got {rounds}", param_hint="--rounds")
    most = MAX_POSITIONS - chosen.longest
    if not WARM_UP_TOKENS <= new_tokens <= most:
        raise typer.BadParameter(
            f"must be from {WARM_UP_TOKENS} to {most}, got {new_tokens}", param_hint="--new-tokens"
        )
    _check_device(device)
    counts = chosen.requests if requests is None else requests
    title = f"Shape {shape} on {device}, {chosen.dtype}, {new_tokens} new tokens each"

    def rows() -> Iterator[Row]:
        with tempfile.TemporaryDirectory() as path:
            folder = Path(path)
            chosen.build(folder, device)
            for num_threads, count in itertools.product(threads, counts):
                setting = Setting(folder, device, chosen.dtype, count, chosen.longest + new_tokens, num_threads)
                for row in measure(chosen, systems, setting, new_tokens, rounds):
                    yield {"shape": shape, "device": device, "requests": count, "new_tokens": new_tokens} | row

    def draw(rows: Sequence[Row], file: Path) -> None:
        bars = {
            f"{row['system']}, {row['requests']} at a time, {row['threads']} threads": {"tokens/s": row["tokens_per_s"]}
            for row in rows
        }
        plot.bars(file, title, "tokens per second", bars)

    try:
        run_benchmark(Table(title, COLUMNS, rows()), as_json=as_json, plot_file=plot_file, draw=draw)
    except ChildError as error:
        print("headway:", error, file=sys.stderr)
        raise typer.Exit(1) from error


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"must be cpu or cuda, got {device!r}", param_hint="--device")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise typer.BadParameter("torch sees no CUDA device here", param_hint="--device")
