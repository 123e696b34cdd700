"""The engine process: an `Engine` between two ZeroMQ threads, and nothing per token.

    sockets -- intake (main thread) --> Engine.add, abort, finish --> mailbox --> WRITER
                            '---------> ControlDesk: pause, audit ...   ---------^         |
    sockets <-- output thread <-- queue <-----'------------- Effects ----------------------'

Started by `EngineClient` as `python -m headway.engine.process`; its first line of standard input is a `wire.Launch`
in JSON, and the end of that input means that the parent is gone. It ignores SIGINT and SIGTERM: those reach a whole
process group or service, and the parent, which gets them too, decides how long running work may go on.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import zmq

from headway import wire
from headway.engine import interpreter
from headway.engine.control_desk import ControlDesk
from headway.engine.engine import Engine
from headway.engine.writer import OnEffects
from headway.error_text import first_line
from headway.errors import EngineDeadError
from headway.executor.simulated import SimulatedExecutor, StepTimeModel
from headway.model_limits import ModelLimits
from headway.request import NewRequest
from headway.scheduler.effects import Effects

STDIN = 0  # read past Python's buffers, whose locks a thread that waits would hold at exit
STATUS_INTERVAL = 0.2  # seconds between two pulses
STATUS_DELAY = 0.02  # seconds from the end of a request to the next pulse
LINGER_MS = 2000  # for the last messages to leave, at the end


class Intake:
    """Takes commands from the API processes into the engine. Owns its sockets; one thread uses it."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], launch: wire.Launch, engine: Engine, desk: ControlDesk
    ) -> None:
        self._engine = engine
        self._desk = desk
        self._commands = context.socket(zmq.PULL)
        self._commands.set_hwm(0)  # bounded by the engine's own queue: what it refuses is not kept
        self._commands.bind(wire.input_address(launch.socket_dir))
        self._replies = [connect_output(context, launch, client) for client in range(launch.num_clients)]

    def run(self) -> float:
        """Serve until told to shut down; returns the grace in seconds."""
        while True:
            data = self._commands.recv()
            try:
                message = wire.decode_to_engine(data)
            except msgspec.DecodeError:
                print(f"headway engine: undecodable message of {len(data)} bytes dropped", file=sys.stderr)
                traceback.print_exc()
                continue
            match message:
                case wire.AddGroup(requests):
                    self._add(requests)
                case wire.Abort(uids):
                    self._abort(uids)
                case wire.Finish(uids):
                    with contextlib.suppress(EngineDeadError):  # as below
                        self._engine.finish(uids)
                case wire.Ask():
                    self._desk.take(message)
                case wire.Shutdown(grace):
                    return grace

    def _add(self, group: Sequence[NewRequest]) -> None:
        """All of them, or none and a refusal."""
        accepted: list[int] = []
        uid = group[0].uid
        assert uid is not None, "clients give their requests uids"
        try:
            for request in group:
                accepted.append(self._engine.add(request))
        except Exception as error:
            self._abort(accepted)
            kind = wire.kind_of(error)
            if kind == "internal":
                traceback.print_exc()
            self._reply(uid, wire.Rejected(uid, kind, str(error)))
        else:
            if len(group) > 1:
                self._reply(uid, wire.Accepted(uid))

    def _abort(self, uids: Sequence[int]) -> None:
        with contextlib.suppress(EngineDeadError):  # then they have ended, and the next pulse says why
            self._engine.abort(uids)

    def _reply(self, uid: int, message: wire.ToClient) -> None:
        self._replies[wire.client_of(uid)].send(wire.encode(message))

    def close(self) -> None:
        for socket in (self._commands, *self._replies):
            socket.close()


class Output:
    """Carries effects to the API processes, one message per turn of the writer, answers, and the pulse.

    `put` is called on the writer thread, `reply` on any; both only append. The rest belongs to the thread of `run`.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], launch: wire.Launch) -> None:
        self._context = context
        self._launch = launch
        self._queue: queue.SimpleQueue[Effects | wire.Answered | wire.Refused | None] = queue.SimpleQueue()
        self.put: Callable[[Effects], None] = self._queue.put
        self.reply: Callable[[wire.Answered | wire.Refused], None] = self._queue.put
        self._thread: threading.Thread | None = None

    def start(self, engine: Engine) -> None:
        self._thread = threading.Thread(target=self._run, args=(engine,), name="headway-output", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send what is queued, and end the thread."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self, engine: Engine) -> None:
        num_clients = self._launch.num_clients
        sockets = [connect_output(self._context, self._launch, client) for client in range(num_clients)]
        next_pulse = 0.0
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=max(0.0, next_pulse - time.monotonic()))
                if item is None:
                    break
                if not isinstance(item, Effects):
                    sockets[wire.client_of(item.number)].send(wire.encode(item))
                else:
                    self._send(sockets, item)
                    if item.ended:  # so that who looks at the counters after an answer finds it counted
                        next_pulse = min(next_pulse, time.monotonic() + STATUS_DELAY)
            if time.monotonic() >= next_pulse:
                snapshot = engine.snapshot()
                if not snapshot.has_work:
                    interpreter.tidy()
                status = wire.encode(wire.Status(snapshot, engine.is_stalled(), engine.failure()))
                for socket in sockets:
                    socket.send(status)
                next_pulse = time.monotonic() + STATUS_INTERVAL
        for socket in sockets:
            socket.close()

    @staticmethod
    def _send(sockets: Sequence[zmq.Socket[bytes]], effects: Effects) -> None:
        if len(sockets) == 1:
            sockets[0].send(wire.encode(wire.pack_effects(effects)))
            return
        for client, socket in enumerate(sockets):
            if part := wire.effects_of_client(effects, client):
                socket.send(wire.encode(wire.pack_effects(part)))


def connect_output(context: zmq.Context[zmq.Socket[bytes]], launch: wire.Launch, client: int) -> zmq.Socket[bytes]:
    """A socket of the calling thread's own to API process `client`."""
    socket = context.socket(zmq.PUSH)
    socket.set_hwm(0)  # bounded by what the engine runs; a slow reader must not stop the thread
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.connect(wire.output_address(launch.socket_dir, client))
    return socket


def read_launch() -> wire.Launch | None:
    """What to run; None if the parent gave up before it knew."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(STDIN, 65536)
        if not part:
            return None
        line += part
    return msgspec.json.decode(line, type=wire.Launch)


def end_with_parent(launch: wire.Launch) -> None:
    """End this process, and remove the sockets, when standard input ends: nobody else would."""
    while os.read(STDIN, 4096):
        pass
    shutil.rmtree(launch.socket_dir, ignore_errors=True)
    os._exit(1)


Build = Callable[[wire.Launch, OnEffects], Engine]


def run(launch: wire.Launch, build: Build) -> int:
    """The life of an engine process; returns its exit status."""
    threading.Thread(target=end_with_parent, args=(launch,), name="headway-parent", daemon=True).start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    output = Output(context, launch)
    hello = [connect_output(context, launch, client) for client in range(launch.num_clients)]

    def tell(message: wire.ToClient) -> None:
        for socket in hello:
            socket.send(wire.encode(message))

    try:
        engine = build(launch, output.put)
    except Exception as error:
        if not isinstance(error, ValueError):  # a ValueError is the user's to mend, and says all there is to say
            traceback.print_exc()
        tell(wire.LoadFailed(first_line(error)))
        context.destroy(linger=LINGER_MS)
        return 2
    desk = ControlDesk(engine, output.reply)
    intake = Intake(context, launch, engine, desk)
    interpreter.settle()
    engine.start()
    limits = engine.scheduler_config
    tell(wire.Ready(limits.max_model_len, limits.max_num_seqs, limits.num_blocks, limits.block_size))
    output.start(engine)
    grace = intake.run()
    engine.shutdown(grace)
    desk.close()
    output.stop()
    intake.close()
    context.destroy(linger=LINGER_MS)
    return 0


def load(launch: wire.Launch, on_effects: OnEffects) -> Engine:
    """The engine as it is meant."""
    return Engine.from_config(launch.config, on_effects)


def simulate(step_time: StepTimeModel, launch: wire.Launch, on_effects: OnEffects) -> Engine:
    """The model's limits, with a device that only takes its time. Needs none of the model's files."""
    config, model = launch.config, launch.model
    executor = SimulatedExecutor(step_time, max_num_seqs=config.max_num_seqs, vocab_size=model.vocab_size)
    num_blocks = config.num_blocks
    if num_blocks is None:  # room for everything that may run
        num_blocks = 1 + config.max_num_seqs * -(-model.max_model_len // config.block_size)
    limits = ModelLimits(model.vocab_size, model.eos_token_ids)
    return Engine.assemble(config, executor, model.max_model_len, num_blocks, limits, on_effects)


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
        import headway.executor.transformers_executor  # noqa: F401  takes seconds: meanwhile the parent finds the model
    launch = read_launch()
    return 1 if launch is None else run(launch, build)


if __name__ == "__main__":
    sys.exit(main())
