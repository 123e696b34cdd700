"""`headway simtest`: deterministic simulation of the scheduler with injected faults, many seeds at once."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from headway.commands.interrupts import Interrupts

if TYPE_CHECKING:
    from headway.simulation.simulate import Mode, Run, Traffic

EXAMPLES = (
    "headway simtest",
    "headway simtest --seeds 0..9999 --jobs 8",
    "headway simtest --trace violation.txt",
)
VIOLATION = 1  # exit code
MAX_LINE = 1 << 24  # bytes of one seed's JSON; it holds the trace, a line per event
MAX_MINIMISED = 3  # traces that one process minimises; the first few are enough to work on
Row = dict[str, Any]


def command(
    seeds: Annotated[str, typer.Option(help="One seed, or a range with both ends: 0..999.", metavar="RANGE")] = "0..99",
    steps: Annotated[int, typer.Option(help="Number of events in each run, before the faults stop.")] = 2000,
    mode: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="safety: recount all owners after every message and pass. liveness: stop the faults after the last "
            "step; then every request must end. both: both.",
        ),
    ] = "both",
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="v0|v1|v2",
            help="v0: static allocation; v1, v2: dynamic allocation, decided by the same core. Default: drawn from "
            "the seed.",
        ),
    ] = None,
    traffic: Annotated[
        str,
        typer.Option(
            metavar="TRAFFIC",
            help="mixed: requests of many kinds, equal by chance. siblings: families of equal prompts, and of prompts "
            "that share several blocks. judged: siblings of which many ask for the log-probabilities of their prompts. "
            "transfers: requests that pull or lend the KV of their prompt, on one engine. "
            "pairs: P and D engines, and a network between them.",
        ),
    ] = "mixed",
    jobs: Annotated[int, typer.Option(help="Number of processes that share the seeds.")] = 1,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE", help="Run a trace again, in the form in which a violation prints it.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per seed, each on its own line.")
    ] = False,
) -> None:
    """Simulate the scheduler under injected faults, and check every decision.

    The same seed gives the same run, bit for bit. A violation is printed with
    its seed and the shortest trace found that shows it; the exit code is then 1.
    """
    if trace is not None:
        raise typer.Exit(_run_again(Path(trace)))
    first, last = _range(seeds)
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    from headway.simulation.simulate import Mode, Traffic

    if mode not in get_args(Mode):
        raise ValueError(f"--mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if scheduler not in (None, "v0", "v1", "v2"):
        raise ValueError(f"--scheduler must be one of v0, v1, v2, got {scheduler!r}")
    if traffic not in get_args(Traffic):
        raise ValueError(f"--traffic must be one of {', '.join(get_args(Traffic))}, got {traffic!r}")
    report: Callable[[Row], None] = _print_row if as_json else _Tally(first, last)
    if min(jobs, last - first + 1) == 1:
        static = None if scheduler is None else scheduler == "v0"
        with Interrupts.noted() as interrupts:
            options = cast("Mode", mode), static, cast("Traffic", traffic)
            rows = _rows(range(first, last + 1), steps, options, interrupts)
            violations = sum(_note(row, report) for row in rows)
    else:
        words = ["--steps", str(steps), "--mode", mode, "--traffic", traffic]
        words += ["--scheduler", scheduler] if scheduler else []
        violations = asyncio.run(_in_processes(first, last, words, jobs, report))
    if isinstance(report, _Tally):
        report.finish()
    if violations:
        raise typer.Exit(VIOLATION)


def _range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    if found is None:
        raise ValueError(f"--seeds must be a number or a range such as 0..999, got {text!r}")
    first = int(found[1])
    last = int(found[2]) if found[2] is not None else first
    if last < first:
        raise ValueError(f"--seeds must not end before it begins, got {text!r}")
    return first, last


# -- running -------------------------------------------------------------------------------------------------------


def _rows(
    seeds: range, steps: int, options: tuple[Mode, bool | None, Traffic], interrupts: Interrupts
) -> Iterator[Row]:
    """Run the seeds in this process, and return a row for each. options: as `run_seed` takes them. An
    interrupt ends this after the present seed at the latest."""
    from headway.simulation.minimise import minimise
    from headway.simulation.simulate import run_seed

    minimised = 0
    for seed in seeds:
        run = run_seed(seed, steps, *options)
        interrupts.check()
        row: Row = {"seed": seed, "steps": run.num_steps, "messages": run.num_messages, "violation": None}
        row["decisions"] = run.decisions
        if run.violation is not None:
            row["violation"] = str(run.violation)
            if minimised < MAX_MINIMISED:
                minimised += 1
                row["trace"] = str(minimise(run.trace, run.violation.rule))
        yield row | {f"num_{name.replace(' ', '_')}": count for name, count in run.counts.items()}


async def _in_processes(first: int, last: int, options: Sequence[str], jobs: int, report: Callable[[Row], None]) -> int:
    """Run the seeds in several processes, each of which prints a row per seed. Returns the number of violations."""
    size = -(-(last - first + 1) // (4 * jobs))  # several ranges per process, as some seeds take longer
    ranges = [(start, min(start + size - 1, last)) for start in range(first, last + 1, size)]

    async def work() -> int:
        violations = 0
        while ranges:
            async for row in _from_process(*ranges.pop(0), options):
                violations += _note(row, report)
        return violations

    return sum(await asyncio.gather(*(work() for _ in range(jobs))))


async def _from_process(first: int, last: int, options: Sequence[str]) -> AsyncIterator[Row]:
    """Raises OSError if the process does not tell of all its seeds."""
    arguments = ["simtest", "--seeds", f"{first}..{last}", *options, "--json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headway.cli", *arguments, stdout=asyncio.subprocess.PIPE, limit=MAX_LINE
    )
    assert process.stdout is not None
    missing = last - first + 1
    try:
        async for line in process.stdout:
            missing -= 1
            yield json.loads(line)
        code = await process.wait()
        if missing:
            raise OSError(f"the process for seeds {first}..{last} ended ({code}) without a word on {missing} of them")
    finally:
        if process.returncode is None:
            process.kill()


def _note(row: Row, report: Callable[[Row], None]) -> bool:
    report(row)
    return row["violation"] is not None


def _run_again(path: Path) -> int:
    from headway.simulation.events import read_events
    from headway.simulation.simulate import run_trace

    run: Run = run_trace(read_events(path))
    if run.violation is None:
        print(f"{len(run.trace.events)} events, no violation")
        return 0
    print(f"violation at event {len(run.trace.events)} ({run.trace.events[-1]})\n{run.violation}")
    return VIOLATION


# -- telling -------------------------------------------------------------------------------------------------------


def _print_row(row: Row) -> None:
    print(json.dumps(row), flush=True)


_DONE = (
    "requests accepted",
    "requests completed",
    "batches",
    "tokens generated",
    "tokens found in the prefix cache",
    "preemptions",
    "reservations",
)


@dataclass
class _Tally:
    """Adds up the counts of all seeds, and prints violations at once."""

    first: int
    last: int
    sums: Counter[str] = field(default_factory=Counter)
    violations: list[int] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def __call__(self, row: Row) -> None:
        self.sums["seeds"] += 1
        self.sums.update({name: count for name, count in row.items() if isinstance(count, int) and name != "seed"})
        if row["violation"] is not None:
            self.violations.append(row["seed"])
            self._clear_line()
            print(f"seed {row['seed']}, step {row['steps']}: {row['violation']}")
            if "trace" in row:
                print("the shortest trace found; `headway simtest --trace FILE` runs it again:\n")
                print(f"{row['trace']}\n", flush=True)
        elif sys.stderr.isatty() and time.monotonic() - self.told > 0.2:
            self.told = time.monotonic()
            done, total = self.sums["seeds"], self.last - self.first + 1
            print(f"\r{done} of {total} seeds, {len(self.violations)} violations", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Print the sums: they show that each kind of event has happened."""
        self._clear_line()
        seconds = max(time.monotonic() - self.started, 1e-9)
        sums = self.sums
        print(
            f"{sums['seeds']} seeds, {sums['steps']} steps, {sums['messages']} messages, {len(self.violations)} "
            f"violations, {seconds:.1f} s, {sums['steps'] / seconds:.0f} steps/s"
        )
        counts = {name.removeprefix("num_").replace("_", " "): n for name, n in sums.items() if name[:4] == "num_"}
        for title, names in (("done", _DONE), ("messages and faults", sorted(counts.keys() - set(_DONE)))):
            print(f"\n{title}")
            print("\n".join(f"  {name:<36}{counts.get(name, 0):>12}" for name in names))

    @staticmethod
    def _clear_line() -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
