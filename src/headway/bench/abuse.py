"""`headway bench abuse`: what a server's other clients notice of clients that ask for too much, or do not read.

One server, with the embedded model. While one abuse after the other is done to it, a neighbour in another process asks
/health and streams. The first row is the neighbour alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Annotated

import typer

from headway.bench.attacks import ATTACKS, Attack, Idle, open_deaf, summary
from headway.bench.benchmark import Table, run_benchmark
from headway.bench.neighbour_process import NeighbourProcess
from headway.bench.peak_memory import PeakMemory, largest_child
from headway.bench.raw_http import Address
from headway.bench.report import Row
from headway.bench.server_process import ServerError, ServerProcess, exit_on_sigterm
from headway.bench.tables import Column, JsonOption
from headway.server.entrance.connections import raise_file_limit

SHUTDOWN = "shutdown"
GRACE_S = 2.0
SOFT_LIMIT = 1_024  # open files with which the server starts
_LATE_S = 10.0  # after the grace time
_UNTIL_DEAF_S = 2.0  # in which the streams that are not read fill all buffers

COLUMNS = (
    Column("abuse", "abuse", ""),
    Column("sent, KB", "sent_kb", ",.1f"),
    Column("answers", "answers", ""),
    Column("as it should be", "right", ""),
    Column("seconds", "seconds", ",.2f"),
    Column("/health, ms", "health_ms"),
    Column("stream gap, ms", "stream_gap_ms"),
    Column("API peak, MiB", "api_peak_mib", "+,.1f"),
    Column("engine peak, MiB", "engine_peak_mib", "+,.1f"),
    Column("log lines", "log_lines", ",d"),
    Column("neighbour's failure", "failure", ""),
)
NOTES = (
    "/health, stream gap: the longest wait of the neighbour, which shares the processor with all else here.",
    "peak: growth of the peak of resident memory, of the API process and of the engine process.",
    f"shutdown: SIGTERM with a grace time of {GRACE_S:g} s while clients do not read their streams.",
)


class AbusedServer(ServerProcess):
    """A server with a low soft limit of open files, and a short grace time."""

    def __init__(self) -> None:
        limited = ("sh", "-c", f'ulimit -Sn {SOFT_LIMIT} && exec "$@"', "sh")
        super().__init__(
            ["--shutdown-grace", str(GRACE_S)], command=(*limited, sys.executable, "-m", "headway.cli", "serve")
        )

    def abuse(self, name: str, attack: Attack, neighbour: NeighbourProcess) -> Row:
        """The figures of one attack. Raises ServerError if it ends the server."""
        attack.prepare()
        lines = self.printed().count("\n")
        neighbour.begin()
        peaks = {"api": PeakMemory(self.pid), "engine": PeakMemory(largest_child(self.pid))}
        statuses = asyncio.run(attack.run(Address.of(self.base_url)))
        waits = neighbour.end()
        if not self.running:
            raise ServerError(f"{name}: the server has ended:\n{self.last_words()}")
        return {
            "abuse": name,
            "sent_kb": attack.sent_bytes / 1000,
            "answers": summary(statuses),
            "right": attack.statuses.issuperset(statuses) and not waits.failure,
            "seconds": round(attack.seconds, 3),
            "health_ms": round(waits.health_ms, 1),
            "stream_gap_ms": round(waits.stream_gap_ms, 1),
            **{f"{process}_peak_mib": round(peak.growth() / 2**20, 1) for process, peak in peaks.items()},
            "log_lines": self.printed().count("\n") - lines,
            "failure": waits.failure,
        }

    def shut_down(self) -> Row:
        """Ends the server while clients do not read their streams. seconds: from the signal to the end."""
        lines = self.printed().count("\n")

        async def end() -> tuple[int, str, float]:
            streams, sent = await open_deaf(Address.of(self.base_url))
            await asyncio.sleep(_UNTIL_DEAF_S)
            began = perf_counter()
            os.kill(self.pid, signal.SIGTERM)
            try:
                ended = f"exit {await asyncio.to_thread(self.wait, GRACE_S + _LATE_S)}"
            except subprocess.TimeoutExpired:
                ended = "no exit"
            seconds = perf_counter() - began
            for stream in streams:
                stream.close()
            return sent, ended, seconds

        sent, ended, seconds = asyncio.run(end())
        log = self.printed()
        traceback = "a traceback" if "Traceback" in log else ""
        return {
            "abuse": SHUTDOWN,
            "sent_kb": sent / 1000,
            "answers": ", ".join(filter(None, (ended, traceback))),
            "right": ended == "exit 0" and not traceback,
            "seconds": round(seconds, 3),
            "health_ms": None,
            "stream_gap_ms": None,
            "api_peak_mib": None,
            "engine_peak_mib": None,
            "log_lines": log.count("\n") - lines,
            "failure": "",
        }


def measured(only: Sequence[str]) -> Iterator[Row]:
    """One row after the other; the first is that of the idle server. only: names of attacks; none: all."""
    wanted = [name for name in ATTACKS if not only or name in only]
    with AbusedServer() as server:
        with NeighbourProcess(server.base_url) as neighbour:
            neighbour.begin()  # pays for what happens once
            neighbour.end()
            yield server.abuse("idle", Idle(), neighbour)
            for name in wanted:
                yield server.abuse(name, ATTACKS[name](), neighbour)
        if not only or SHUTDOWN in only:
            yield server.shut_down()


def command(
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Do only this, may be given again: {', '.join((*ATTACKS, SHUTDOWN))}."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Abuse a server in many ways, and see what its other clients notice.

    The exit code is 1 if an answer is not the right one, if the neighbour is failed, or if the server ends.
    """
    unknown = set(only or ()) - {*ATTACKS, SHUTDOWN}
    if unknown:
        raise typer.BadParameter(
            f"there is no {', '.join(sorted(unknown))} (there are {', '.join((*ATTACKS, SHUTDOWN))})",
            param_hint="--only",
        )
    if not sys.platform.startswith("linux"):
        raise typer.BadParameter("the benchmark reads the memory of processes from /proc, which only Linux has")
    exit_on_sigterm()
    raise_file_limit()  # for connections to the server
    try:
        (rows,) = run_benchmark(Table("Abuse", COLUMNS, measured(only or ()), NOTES), as_json=as_json)
    except ServerError as error:
        print(f"headway: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if not all(row["right"] for row in rows):
        raise typer.Exit(1)
