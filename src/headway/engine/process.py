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
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import zmq

from headway.engine import interpreter
from headway.engine.control_desk import ControlDesk
from headway.engine.engine import Engine
from headway.engine.intake import Intake
from headway.engine.output import LINGER_MS, Output, connect_output
from headway.engine.simulated_engine import simulate
from headway.engine.writer import OnEffects
from headway.error_text import first_line
from headway.executor.simulated import StepTimeModel
from headway.wire import codec, to_client
from headway.wire.launch import Launch

STDIN = 0  # read without Python's buffer: a thread that waits would keep the buffer's lock at exit

Build = Callable[[Launch, OnEffects], Engine]


def read_launch() -> Launch | None:
    """The `Launch` on standard input; None if standard input ends before it is complete."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(STDIN, 65536)
        if not part:
            return None
        line += part
    return msgspec.json.decode(line, type=Launch)


def end_with_parent(launch: Launch) -> None:
    """End this process, and remove its sockets, when standard input ends: the parent cannot do it any more."""
    while os.read(STDIN, 4096):
        pass
    shutil.rmtree(launch.socket_dir, ignore_errors=True)
    os._exit(1)


def run(launch: Launch, build: Build) -> int:
    """The life of an engine process; returns its exit status."""
    threading.Thread(target=end_with_parent, args=(launch,), name="headway-parent", daemon=True).start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    output = Output(context, launch)
    hello = [connect_output(context, launch, client) for client in range(launch.num_clients)]

    def tell(message: to_client.ToClient) -> None:
        for socket in hello:
            socket.send(codec.encode(message))

    try:
        engine = build(launch, output.put)
    except Exception as error:
        if not isinstance(error, ValueError):  # a ValueError is an error of the user; its message is enough
            traceback.print_exc()
        tell(to_client.LoadFailed(first_line(error)))
        context.destroy(linger=LINGER_MS)
        return 2
    desk = ControlDesk(engine.manager, output.reply)
    intake = Intake(context, launch, engine, desk)
    interpreter.settle()
    engine.start()
    tell(to_client.Ready(engine.manager.config))
    output.start(engine)
    grace = intake.run()
    engine.shutdown(grace)
    desk.close()
    output.stop()
    intake.close()
    context.destroy(linger=LINGER_MS)
    return 0


def load(launch: Launch, on_effects: OnEffects) -> Engine:
    """An engine with a real model."""
    return Engine.from_config(launch.config, on_effects)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headway.engine.process", description="One engine.")
    parser.add_argument("--executor", choices=("transformers", "simulated"), default="transformers")
    parser.add_argument("--base-s", type=float, default=0.0, help="simulated: seconds per step")
    parser.add_argument("--per-token-s", type=float, default=0.0, help="simulated: seconds more per token")
    parser.add_argument("--per-seq-s", type=float, default=0.0, help="simulated: seconds more per request")
    args = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    build: Build = load
    if args.executor == "simulated":
        build = partial(simulate, StepTimeModel(args.base_s, args.per_token_s, args.per_seq_s))
    else:
        import headway.executor.transformers_executor  # noqa: F401  takes seconds, while the parent finds the model
    launch = read_launch()
    return 1 if launch is None else run(launch, build)


if __name__ == "__main__":
    sys.exit(main())
