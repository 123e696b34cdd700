"""`headway bench all`: the benchmarks of `SUITE`, one after the other, and a page of their results.

FOLDER/results/NAME.jsonl    the rows, as the command printed them, and the machine
FOLDER/results/NAME.png      the picture, where the command draws one
FOLDER/results.md            all of it as tables
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from headway.bench import plot, throughput
from headway.bench.machine import described, machine
from headway.bench.report import Row
from headway.bench.tables import Column, markdown, plain_columns
from headway_lab.benches import choose, churn, gap, intake, memory, pd, preempt, prefix, query, step, vllm
from headway_lab.schedulers.contenders import PeerName

HEADWAY = (sys.executable, "-m", "headway.cli")
CIRCUMSTANCES = ("command", "date", "took_s", "exit_code", *machine())  # keys of a row that are not figures
PEERS, DRAWS = "--peer", "--plot"  # options that the command of an entry may have


@dataclass(frozen=True)
class Entry:
    """A line of the suite.

    quick, full: the arguments of `headway bench`; full may be left out if it is the same. options: PEERS or DRAWS, if
    the command has them. tables: columns of each table, which shows the rows that have its first column. Without
    tables, rows with equal keys make one. needs: the peer that it is about;
    it runs where this peer, or the entry by its name, is asked for.
    """

    name: str
    title: str
    quick: str
    full: str = ""
    options: tuple[str, ...] = ()
    tables: tuple[Sequence[Column], ...] = ()
    needs: PeerName | None = None

    def arguments(self, full: bool, peers: Sequence[PeerName]) -> list[str]:
        """The arguments of `headway bench`, without --json and --plot."""
        arguments = shlex.split(self.full if full and self.full else self.quick)
        if PEERS in self.options:
            arguments += [part for peer in peers for part in (PEERS, peer.value)]
        return arguments


SERVED = (
    Column("requests/s asked", "request_rate_req_per_s"),
    Column("successful", "successful_requests", ",d"),
    Column("failed", "failed_requests", ",d"),
    Column("requests/s", "request_throughput_req_per_s"),
    Column("output tokens/s", "output_throughput_tok_per_s", ",.0f"),
    Column("TTFT median, ms", "median_ttft_ms"),
    Column("TTFT p99, ms", "p99_ttft_ms"),
    Column("ITL median, ms", "median_itl_ms"),
    Column("ITL p99, ms", "p99_itl_ms"),
    Column("right", "right_answers", ",d"),
)

# To add one: a line here, once the command is registered.
SUITE = (
    Entry(
        "step",
        "Steady decode",
        "step --pause-ms 5",
        "step --steps 500 --pause-ms 5",
        options=(PEERS, DRAWS),
        tables=(step.COLUMNS,),
    ),
    Entry(
        "step_loaded",
        "Steady decode with a long queue, and with every feature on",
        "step --running 256,1024,4096 --waiting 100000 --features",
        "step --waiting 100000 --features --steps 500",
        tables=(step.COLUMNS,),
    ),
    Entry(
        "churn",
        "Short answers",
        "churn",
        "churn --requests 20000",
        options=(PEERS, DRAWS),
        tables=(churn.COLUMNS,),
    ),
    Entry(
        "prefix",
        "A long prompt",
        "prefix",
        "prefix --repeats 100",
        options=(PEERS, DRAWS),
        tables=(prefix.COLUMNS,),
    ),
    Entry(
        "preempt",
        "Preemption",
        "preempt",
        "preempt --runs 5",
        options=(PEERS, DRAWS),
        tables=(preempt.COLUMNS,),
    ),
    Entry(
        "vllm_step",
        "Under vLLM: steady decode",
        "step --peer vllm --through-adapter --running 64,256,1024",
        options=(DRAWS,),
        tables=(step.COLUMNS,),
        needs=PeerName.VLLM,
    ),
    Entry(
        "vllm_churn",
        "Under vLLM: short answers",
        "churn --peer vllm --through-adapter",
        options=(DRAWS,),
        tables=(churn.COLUMNS,),
        needs=PeerName.VLLM,
    ),
    Entry(
        "vllm_preempt",
        "Under vLLM: preemption",
        "preempt --peer vllm --through-adapter",
        options=(DRAWS,),
        tables=(preempt.COLUMNS,),
        needs=PeerName.VLLM,
    ),
    Entry(
        "vllm_engine",
        "Under vLLM: tokens per second of the whole engine",
        "vllm",
        tables=(vllm.COLUMNS,),
        needs=PeerName.VLLM,
    ),
    Entry(
        "query",
        "Queries while steps run",
        "query",
        "query --queries 1000",
        options=(DRAWS,),
        tables=(query.QUERY_COLUMNS, query.FINISH_COLUMNS),
    ),
    Entry(
        "intake",
        "The door: handing in while steps run",
        "intake",
        "intake --producers 1,4,16 --running 64,256,1024",
        options=(DRAWS,),
        tables=(intake.CALL_COLUMNS, intake.STEP_COLUMNS),
    ),
    Entry(
        "gap",
        "The gap: the device between two steps",
        "gap",
        "gap --step-ms 2,10,30 --running 256,1024 --seconds 12",
        options=(DRAWS,),
        tables=(gap.COLUMNS,),
    ),
    Entry(
        "choose",
        "The choice among many engines",
        "choose",
        options=(DRAWS,),
        tables=(choose.CHOOSE_COLUMNS, choose.MESSAGE_COLUMNS),
    ),
    Entry(
        "pd",
        "Prefill and decode on engines of their own, on virtual time",
        "pd --rates 2,8 --requests 200",
        "pd",
        options=(DRAWS,),
        tables=(pd.COLUMNS,),
    ),
    Entry(
        "throughput",
        "Tokens per second on a CPU",
        "throughput --threads 2 --systems headway,static,batching",
        "throughput --threads 1,2 --rounds 5",
        options=(DRAWS,),
        tables=(throughput.COLUMNS,),
    ),
    Entry(
        "memory",
        "Memory",
        "memory --seconds 60",
        "memory --seconds 600",
        options=(DRAWS,),
        tables=(memory.COLUMNS, memory.SOAK_COLUMNS),
    ),
    Entry(
        "serve_heldout",
        "Serving the held-out problems",
        "serve --dataset heldout --request-rate 16,inf",
        "serve --dataset heldout --request-rate 4,16,inf",
        options=(DRAWS,),
        tables=(SERVED,),
    ),
    Entry(
        "serve_azure",
        "Serving Azure's traffic of 2023, scaled to the model",
        "serve --dataset azure --time-scale 0.5 --max-model-len 512",
        "serve --dataset azure --max-model-len 512",
        options=(DRAWS,),
        tables=(SERVED,),
    ),
    Entry(
        "serve_mooncake",
        "Serving Mooncake's synthetic traffic, scaled to the model",
        "serve --dataset mooncake --time-scale 0.5",
        "serve --dataset mooncake",
        options=(DRAWS,),
        tables=(SERVED,),
    ),
)


def run(entry: Entry, results: Path, *, full: bool = False, peers: Sequence[PeerName] = ()) -> int:
    """Run an entry in its own process and write its rows; returns its exit code.

    Its standard error is passed on. If it prints no rows, the rows of an earlier run stay.
    """
    arguments = entry.arguments(full, peers)
    forms = ["--json"]
    if DRAWS in entry.options:
        forms += [DRAWS, str(results / f"{entry.name}.png")]
    started = time.monotonic()
    done = subprocess.run([*HEADWAY, "bench", *arguments, *forms], stdout=subprocess.PIPE, text=True)
    circumstances = {
        "command": shlex.join(["headway", "bench", *arguments]),
        "date": time.strftime("%Y-%m-%d"),
        "took_s": round(time.monotonic() - started),
        "exit_code": done.returncode,
        **machine(),
    }
    rows = [json.loads(line) | circumstances for line in done.stdout.splitlines()]
    if rows:
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (results / f"{entry.name}.jsonl").write_text(text)
    return done.returncode


def page(results: Path) -> str:
    """All rows in this folder, in Markdown."""
    found = {entry: _rows(results / f"{entry.name}.jsonl") for entry in SUITE}
    machines = {described(row): None for rows in found.values() for row in rows}
    systems = {
        f"{row['system'].partition(',')[0]} {row['version']}": None
        for rows in found.values()
        for row in rows
        if "system" in row
    }
    lines = [
        "# Results",
        "",
        "Written by `headway bench all` (`make bench`); each command's `--help` explains its columns.",
        "",
        *(f"- {one}" for one in machines),
        f"- schedulers: {', '.join(systems)}",
    ]
    for entry, rows in found.items():
        if rows:
            lines += ["", *_section(entry, rows, results)]
    return "\n".join(lines) + "\n"


def _rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _section(entry: Entry, rows: Sequence[Row], results: Path) -> list[str]:
    one = rows[0]
    lines = [f"## {entry.title}", "", f"`{one['command']}`, {one['date']}, {one['took_s']} s"]
    if one["exit_code"]:
        lines += ["", f"**It ended with exit code {one['exit_code']}.**"]
    for columns, filling in _tables(entry, rows):
        lines += ["", markdown(filling, columns)]
    picture = results / f"{entry.name}.png"
    if DRAWS in entry.options and picture.exists():
        lines += ["", f"![{entry.title}]({results.name}/{picture.name})"]
    return lines


def _tables(entry: Entry, rows: Sequence[Row]) -> list[tuple[Sequence[Column], list[Row]]]:
    """The tables of an entry: columns, and the rows that have them."""
    if entry.tables:
        pairs = [(columns, [row for row in rows if columns[0].key in row]) for columns in entry.tables]
        return [(columns, filling) for columns, filling in pairs if filling]
    groups: dict[frozenset[str], list[Row]] = {}
    for row in rows:
        own = {key: value for key, value in row.items() if key not in CIRCUMSTANCES}
        groups.setdefault(frozenset(own), []).append(own)
    return [(plain_columns(filling), filling) for filling in groups.values()]


def command(
    full: Annotated[bool, typer.Option("--full", help="More sizes and more samples, for an hour or so.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Run only this entry; may be given several times."),
    ] = None,
    peer: Annotated[
        list[PeerName] | None, typer.Option("--peer", help="Also run this peer, in benchmarks that can.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where results.md and results/ are written.")] = Path(
        "docs/benchmarks"
    ),
) -> None:
    """Run every benchmark and write a page of tables and pictures. Within 15 minutes on two cores.

    If a benchmark fails, the others still run; then the exit code is 1.
    """
    names = [entry.name for entry in SUITE]
    for name in only or ():
        if name not in names:
            raise typer.BadParameter(f"must be one of {', '.join(names)}, got {name!r}", param_hint="--only")
    if not out.is_dir():
        raise typer.BadParameter(f"there is no folder {str(out)!r}", param_hint="--out")
    results = out / "results"
    plot.check(results.with_suffix(".png"))
    results.mkdir(exist_ok=True)
    chosen = [
        entry for entry in SUITE if (entry.name in only if only else entry.needs is None or entry.needs in (peer or ()))
    ]
    failed = []
    for number, entry in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {entry.name}", file=sys.stderr)
        if run(entry, results, full=full, peers=peer or ()):
            failed.append(entry.name)
        (out / "results.md").write_text(page(results))  # at once: the next may take an hour
    if failed:
        print(f"headway: these failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)
