"""The process of a rank other than 0: `python -m headway.executor.ranks.process --reports FD`.

Standard input brings a `RankLaunch`, and then the batches. Its end means that rank 0 is gone; then this process ends,
whatever it does. It ignores SIGINT and SIGTERM: the engine decides when it ends.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence

import msgspec

from headway.error_text import first_line
from headway.executor.ranks.orders import Failed, Joining, Loaded, RankLaunch, Report, read_frames, write_frame
from headway.logs import LogLevel, log_to_standard_error
from headway.parent_process import at_end_of_parent

STDIN = 0

Tell = Callable[[Report], None]


class Orders:
    """Reads standard input from the first moment on, so that its end is noticed while a model is read."""

    def __init__(self) -> None:
        self._frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="headway-orders", daemon=True).start()

    def next(self) -> bytes:
        """The next frame; waits for it."""
        return self._frames.get()

    def _read(self) -> None:
        for data in read_frames(STDIN):
            self._frames.put(data)
        os._exit(0)


def serve(launch: RankLaunch, orders: Orders, tell: Tell) -> None:
    """Be a rank until the end of the orders. Raises whatever is wrong with the model or a step."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // launch.size)))
    from headway.executor.loader import choose_device
    from headway.executor.ranks.rank import Rank, check_same, device_of, makes
    from headway.executor.ranks.rank_executor import RankExecutor
    from headway.executor.ranks.step_bytes import step_of
    from headway.model_files import ModelFiles

    files = ModelFiles.resolve(launch.config)
    check_same(launch.number, makes(files), launch.makes)
    device = device_of(choose_device(launch.config.device), launch.number)
    tell(Joining())
    rank = Rank(launch.number, launch.size, launch.meeting, device)
    executor = RankExecutor(files, launch.config, rank)
    tell(Loaded(executor.weight_bytes, executor.kv_cache_bytes))
    while True:
        executor.follow(step_of(orders.next()))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headway.executor.ranks.process", description="One rank.")
    parser.add_argument("--reports", type=int, required=True, help="the pipe for reports")
    reports: int = parser.parse_args(argv).reports
    at_end_of_parent(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    orders = Orders()
    launch = msgspec.msgpack.decode(orders.next(), type=RankLaunch)
    log_to_standard_error(launch.log_format, LogLevel.WARNING)  # rank 0 says what is the same for all

    def tell(report: Report) -> None:
        write_frame(reports, msgspec.msgpack.encode(report))

    try:
        serve(launch, orders, tell)
    except Exception as error:  # of the model, torch, a driver
        if isinstance(error, ValueError):  # an error of the user; its message is enough
            tell(Failed(first_line(error)))
        else:  # rank 0 knows whether it comes of the end of another rank
            why = f"rank {launch.number} failed: {type(error).__name__}: {first_line(error)}"
            tell(Failed(why, traceback.format_exc()))
    return 1


if __name__ == "__main__":
    status = main()
    os._exit(status)  # other threads of torch may wait for a rank that is gone
