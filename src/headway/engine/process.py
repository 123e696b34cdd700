"""The engine process: an `Engine` between two ZeroMQ threads. It does no work per token.

    sockets -- intake (main thread) --> Engine.add, abort, finish --> mailbox --> WRITER
                            '---------> ControlDesk: pause, audit ...   ---------^         |
    sockets <-- output thread <-- queue <-----'------------- Effects ----------------------'

`EngineClient` starts it as `python -m headway.engine.process`. The first line of its standard input is a `Launch` in
JSON. The end of its standard input means that the parent is gone. It ignores SIGINT and SIGTERM: these signals reach a
whole process group or service, so the parent gets them too, and decides how long running requests may go on.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import zmq

from headway.engine import interpreter
from headway.engine.cache_teller import CacheTeller
from headway.engine.control_desk import ControlDesk
from headway.engine.engine import Engine
from headway.engine.intake import Intake
from headway.engine.output import LINGER_MS, Output, connect_output
from headway.engine.simulated_engine import simulate
from headway.engine.writer import OnEffects, OnKVEvents
from headway.error_text import first_line
from headway.executor.load_stages import stage
from headway.executor.simulated import StepTimeModel
from headway.exit import exit_process
from headway.logs import LogFormat, LogLevel, log_to_standard_error
from headway.parent_process import at_end_of_parent
from headway.wire import codec, to_client
from headway.wire.launch import Launch, output_address

logger = logging.getLogger("headway.engine.process")  # it runs as __main__

STDIN = 0  # read without Python's buffer: a thread that waits would keep the buffer's lock at exit

Build = Callable[[Launch, OnEffects, OnKVEvents | None], Engine]


class Parent:
    """Watches over standard input, from the first moment of the process: loading takes seconds.

    Its end means that the parent is gone. Then this ends the process and removes the folder of the sockets, which the
    parent cannot do any more.
    """

    def __init__(self, socket_dir: str) -> None:
        self._socket_dir = socket_dir
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._watch, name="headway-parent", daemon=True).start()

    def launch(self) -> Launch:
        """Wait for what the parent wants to be run."""
        return msgspec.json.decode(self._lines.get(), type=Launch)

    def _watch(self) -> None:
        read = b""
        while part := os.read(STDIN, 65536):
            if b"\n" not in read:
                read += part
                if b"\n" in read:
                    self._lines.put(read)
        shutil.rmtree(self._socket_dir, ignore_errors=True)
        os._exit(1)


def run(launch: Launch, build: Build) -> int:
    """The life of an engine process; returns its exit status."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    output = Output()
    teller = CacheTeller(launch.config.block_size, output.answer) if launch.tells_cache else None
    parent = connect_output(context, output_address(launch.socket_dir, 0))
    try:
        engine = build(launch, output.put, None if teller is None else teller.publish)
    except Exception as error:
        if not isinstance(error, ValueError):  # a ValueError is an error of the user; its message is enough
            logger.exception("the engine cannot be loaded")
        parent.send(codec.encode(to_client.LoadFailed(first_line(error))))
        context.destroy(linger=LINGER_MS)
        return 2
    desk = ControlDesk(engine.manager, output.reply, engine.peer_of)
    intake = Intake(context, launch, engine, desk, output, teller)
    interpreter.settle()
    if teller is not None:
        teller.start()
    engine.start()
    if launch.paused:
        engine.manager.pause()
    output.attach(0, parent)
    output.start(engine, intake.errors, intake.address, tells_cache=teller is not None)
    status, grace = 0, 0.0
    try:
        grace = intake.run()
    except Exception:  # without intake the engine is of no use; what is inside ends, and the parent sees the status
        logger.critical("the engine process ends: no message can be received any more", exc_info=True)
        status = 1
    engine.shutdown(grace)
    desk.close()
    if teller is not None:
        teller.close()
    output.stop()
    intake.close()
    context.destroy(linger=LINGER_MS)
    interpreter.unsettle()
    return status


def load(launch: Launch, on_effects: OnEffects, on_kv_events: OnKVEvents | None) -> Engine:
    """An engine with a real model."""
    return Engine.from_config(launch.config, on_effects, on_kv_events=on_kv_events)


def end_with_thread(args: threading.ExceptHookArgs) -> None:
    """End the process: one of its threads has died, and the engine needs them all."""
    name = args.thread.name if args.thread is not None else "unknown"
    error = args.exc_value
    logger.critical("the engine process ends: the thread %s has died of %r", name, error, exc_info=error)
    os._exit(1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headway.engine.process", description="One engine.")
    parser.add_argument("--socket-dir", required=True, help="folder of the sockets, removed if the parent is gone")
    parser.add_argument("--executor", choices=("transformers", "simulated"), default="transformers")
    parser.add_argument("--base-s", type=float, default=0.0, help="simulated: seconds per step")
    parser.add_argument("--per-token-s", type=float, default=0.0, help="simulated: seconds more per token")
    parser.add_argument("--per-seq-s", type=float, default=0.0, help="simulated: seconds more per request")
    parser.add_argument("--log-format", type=LogFormat, default=LogFormat.TEXT, help="text or json")
    parser.add_argument("--log-level", type=LogLevel, default=LogLevel.INFO, help="debug, info, warning or error")
    args = parser.parse_args(argv)
    at_end_of_parent(signal.SIGCONT)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    log_to_standard_error(args.log_format, args.log_level, libraries=logging.INFO)
    threading.excepthook = end_with_thread
    parent = Parent(args.socket_dir)
    build: Build = load
    if args.executor == "simulated":
        build = partial(simulate, StepTimeModel(args.base_s, args.per_token_s, args.per_seq_s))
    else:
        with stage("importing torch and transformers"):  # takes seconds, while the parent finds the model
            import headway.executor.transformers_executor  # noqa: F401
    return run(parent.launch(), build)


if __name__ == "__main__":
    exit_process(main())
