"""The processes of all ranks but rank 0: started together, ended together."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import msgspec

from headway.config import EngineConfig
from headway.executor.base import DeviceLostError
from headway.executor.ranks.orders import Failed, Joining, Loaded, RankLaunch, Report, read_frames, write_frame
from headway.executor.ranks.rank import meeting_place
from headway.logs import JsonLines, LogFormat

logger = logging.getLogger(__name__)

_MODULE = "headway.executor.ranks.process"
_OTHERS_SECONDS = 1.0  # until the end of a rank, of which an error in another one may have come, is told
_LEAVE_SECONDS = 3.0  # that a rank has to end by itself
_reports = msgspec.msgpack.Decoder(Report)


class RankLostError(DeviceLostError):
    """A rank is missing: there is no model any more."""


class RankGroup:
    """Ranks 1 to `size` - 1, each a process.

    The first loss, of whatever rank, is the loss of all: the other processes are killed, so that no rank waits for a
    rank that does not come. `lost` says why. meeting: see `meeting_place`.

    Raises OSError if a process cannot be started.
    """

    def __init__(self, config: EngineConfig, size: int, makes: dict[str, str], command: Sequence[str] = ()) -> None:
        self.meeting = meeting_place()
        self.lost: str | None = None
        self._closing = False
        self._changed = threading.Condition()
        command = command or (sys.executable, "-P", "-m", _MODULE)
        self._others = [
            _Process(self, RankLaunch(config, number, size, self.meeting, makes, _log_format()), command)
            for number in range(1, size)
        ]
        for other in self._others:
            other.start()

    @property
    def pids(self) -> list[int]:
        """Process ids of ranks 1, 2, ..."""
        return [other.process.pid for other in self._others if other.process is not None]

    def await_reports(self, kind: type[Report]) -> list[Report]:
        """A report of this kind from each rank, in order. Raises RankLostError when a rank is lost."""
        with self._changed:
            self._changed.wait_for(lambda: self.lost is not None or all(kind in other.said for other in self._others))
        if self.lost is not None:
            raise RankLostError(self.lost)
        return [other.said[kind] for other in self._others]

    def send(self, data: bytes) -> None:
        """Send bytes to every rank. Raises RankLostError when a rank is lost."""
        for other in self._others:
            if self.lost is not None:
                raise RankLostError(self.lost)
            try:
                other.send(data)
            except OSError as error:
                self.lose(f"rank {other.number} takes no steps any more ({error.strerror})")

    def lose(self, why: str, trace: str = "") -> None:
        """The ranks are of no use any more. The first reason stays, and is told in the log, with its trace."""
        with self._changed:
            if self.lost is not None or self._closing:
                return
            self.lost = why
            self._changed.notify_all()
        logger.error("the ranks end: %s", "\n".join(filter(None, (why, trace.rstrip()))))
        self._kill()

    def lost_within(self, seconds: float) -> str | None:
        """Why the ranks are lost, if it is told within `seconds`: an error of a rank may come of it, and come first."""
        with self._changed:
            self._changed.wait_for(lambda: self.lost is not None, seconds)
        return self.lost

    def close(self, *, at_once: bool = False) -> None:
        """End all ranks; returns when they have ended. Idempotent. at_once: kill them; needed while a thread may be in
        `send`, as a pipe must not be closed under it."""
        with self._changed:
            self._closing = True
        if not at_once:
            for other in self._others:
                other.say_end()
            until = time.monotonic() + _LEAVE_SECONDS
            for other in self._others:
                other.join(until - time.monotonic())
        self._kill()
        for other in self._others:
            other.join(None)
        if self.meeting >= 0:
            os.close(self.meeting)
            self.meeting = -1

    def heard(self, other: _Process, report: Report) -> None:
        """A rank reports. For its thread."""
        if isinstance(report, Failed):
            if report.trace:
                self.lost_within(_OTHERS_SECONDS)
            self.lose(report.why, report.trace)
        else:
            with self._changed:
                other.said[type(report)] = report
                self._changed.notify_all()

    def _kill(self) -> None:
        for other in self._others:
            other.kill()


class _Process:
    """One rank, and the thread that starts it and reads its reports.

    Linux can end a process with the thread that started it (process.py), so this thread lives as long as the rank.
    """

    def __init__(self, group: RankGroup, launch: RankLaunch, command: Sequence[str]) -> None:
        self.number = launch.number
        self.said: dict[type[Report], Report] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._group = group
        self._launch = launch
        self._command = command
        self._started: threading.Event = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._live, name=f"headway-rank-{self.number}", daemon=True)

    def start(self) -> None:
        """Start it. Raises OSError if there can be no such process."""
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise self._error
        try:
            self.send(msgspec.msgpack.encode(self._launch))
        except OSError:  # it has ended; its thread says so
            return

    def send(self, data: bytes) -> None:
        assert self.process is not None and self.process.stdin is not None
        write_frame(self.process.stdin.fileno(), data)

    def say_end(self) -> None:
        """Close the pipe of its steps: it ends."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def join(self, seconds: float | None) -> None:
        """Wait until it has ended, at most so long."""
        self._thread.join(None if seconds is None else max(seconds, 0.0))

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def _live(self) -> None:
        ours, its = os.pipe()
        try:
            self.process = subprocess.Popen(
                [*self._command, "--reports", str(its)],
                stdin=subprocess.PIPE,
                stdout=sys.stderr.fileno() if _has_file(sys.stderr) else subprocess.DEVNULL,
                pass_fds=[its, self._launch.meeting],
            )
        except OSError as error:
            self._error = error
            os.close(ours)
            return
        finally:
            os.close(its)
            self._started.set()
        for data in read_frames(ours):
            self._group.heard(self, _reports.decode(data))
        os.close(ours)
        status = self.process.wait()
        self._group.lose(f"rank {self.number} has ended ({_in_words(status)})")


def _in_words(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def _has_file(stream: object) -> bool:
    try:
        return stream.fileno() >= 0  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False


def _log_format() -> LogFormat:
    """The form of this process's log."""
    as_json = any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)
    return LogFormat.JSON if as_json else LogFormat.TEXT


__all__ = ["Joining", "Loaded", "RankGroup", "RankLostError"]
