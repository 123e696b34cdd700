"""The engine process's thread that takes commands, before an engine of this process."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq

from headway.config import EngineConfig, Role
from headway.engine.control_desk import ControlDesk
from headway.engine.intake import Intake
from headway.engine.output import Output
from headway.model_limits import ModelLimits
from headway.request import NewRequest, Request, Transfer
from headway.sampling import SamplingParams
from headway.token_ids import pack
from headway.wire import codec, to_client, to_engine
from headway.wire.launch import Launch, input_address
from headway.wire.uids import UID_BITS
from tests.engine.running import Running, running
from tests.managers.driving import PATIENCE, VOCAB, new_request


def through_the_intake(
    it: Running, folder: Path, messages: list[to_engine.ToEngine]
) -> tuple[float, list[to_client.ToClient]]:
    """What the intake returns, and what it and its desk reply to these messages, the last one a Shutdown."""
    launch = Launch(EngineConfig(), ModelLimits(), str(folder))
    replies: list[to_client.ToClient] = []
    returned: list[float] = []
    with zmq.Context() as context:
        commands = context.socket(zmq.PUSH)
        commands.connect(input_address(launch.socket_dir))
        output = Output()
        output.answer = lambda _, message: replies.append(message)  # type: ignore[method-assign]
        intake = Intake(context, launch, it.engine, ControlDesk(it.manager, replies.append), output)
        thread = threading.Thread(target=lambda: returned.append(intake.run()), daemon=True)
        thread.start()
        for message in messages:
            commands.send(codec.encode(message))
        thread.join(PATIENCE)
        intake.close()
        commands.close(linger=0)
    assert returned, "the intake has not come to the end"
    return returned[0], replies


def add(uid: int) -> NewRequest:
    return new_request(f"r{uid}", pack([1, 2, 3], VOCAB), SamplingParams(max_tokens=2), uid=uid)


def test_whatever_comes_for_an_engine_that_has_stopped_does_not_stop_the_intake(tmp_path: Path) -> None:
    with running("v2") as it:
        it.engine.shutdown()
        grace, replies = through_the_intake(
            it,
            tmp_path,
            [
                to_engine.Abort([1]),
                to_engine.Finish([1]),
                to_engine.AddGroup([add(1), add(2)]),
                to_engine.Call(1, to_engine.ResumeEngine()),
                to_engine.Shutdown(1.5),
            ],
        )
    assert grace == 1.5
    assert sorted(replies, key=lambda reply: type(reply).__name__) == [
        to_client.Raised(1, "dead", "the engine is shutting down"),
        to_client.Refused(1, 0, "dead", "the engine is shutting down"),
    ]


def test_a_message_that_cannot_be_read_is_dropped(tmp_path: Path) -> None:
    with running("v2") as it:
        nonsense = to_engine.Call(1, to_engine.PauseEngine("sideways", True, 1.0))  # type: ignore[arg-type]
        _, replies = through_the_intake(
            it, tmp_path, [nonsense, to_engine.Call(2, to_engine.IsPaused()), to_engine.Shutdown()]
        )
    assert replies == [to_client.Returned(2, False)]


def test_junk_of_every_kind_is_dropped_counted_and_followed_by_service(tmp_path: Path) -> None:
    with running("v2") as it:
        junk = [
            [bytes.fromhex("92a54162ff72749101")],
            [codec.encode(to_engine.AddGroup([add(5 << UID_BITS)]))],
            [codec.encode(to_engine.Call(5 << UID_BITS, to_engine.IsPaused()))],
            [codec.encode(to_engine.Abort([1, 5 << UID_BITS]))],
            [codec.encode(to_engine.PullFrom(5 << UID_BITS, None))],
            [codec.encode(to_engine.Attach(0, f"ipc://{tmp_path}/again"))],
            [codec.encode(to_engine.Attach(5, "nowhere"))],
            [codec.encode(to_engine.Attach(5, "tcp://"))],  # only ZeroMQ knows that this is no address
            [codec.encode(to_engine.Detach(0))],
            [codec.encode(to_engine.IsPaused())],  # a call in no Call
            [codec.encode(to_engine.Abort([1])), b"a second frame"],
            [b""],
        ]
        with zmq.Context() as context:
            launch = Launch(EngineConfig(), ModelLimits(), str(tmp_path))
            commands = context.socket(zmq.PUSH)
            commands.connect(input_address(launch.socket_dir))
            replies: list[to_client.ToClient] = []
            intake = Intake(context, launch, it.engine, ControlDesk(it.manager, replies.append), Output())
            for frames in junk:
                commands.send_multipart(frames)
            commands.send(codec.encode(to_engine.Call(2, to_engine.IsPaused())))
            commands.send(codec.encode(to_engine.Shutdown(1.5)))
            assert intake.run() == 1.5
            intake.close()
            commands.close(linger=0)
    assert intake.errors.count == len(junk)
    assert replies == [to_client.Returned(2, False)]


class Lending:
    """A connector that lends all, and notes what is pulled."""

    def __init__(self) -> None:
        self.pulled: list[tuple[int, dict[str, Any] | None]] = []

    def expect(self, request: Request) -> None: ...

    def handover(self, uid: int) -> dict[str, Any]:
        return {"remote_reference": str(uid)}

    def pull_from(self, uid: int, params: dict[str, Any] | None) -> None:
        self.pulled.append((uid, params))

    def answered(self, uids: Any) -> None: ...

    def lending(self, lending: Any) -> None: ...

    def ended(self, uids: Any) -> None: ...

    def close(self) -> None: ...


def test_a_request_that_lends_is_told_of_at_once_and_a_source_reaches_the_connector(tmp_path: Path) -> None:
    connector = Lending()
    lends = replace(add(1), transfer=Transfer.LEND)
    with running("v2", role=Role.PREFILL, connector=connector) as it:
        messages: list[to_engine.ToEngine] = [
            to_engine.AddGroup([lends]),
            to_engine.PullFrom(5, {"remote_reference": "x"}),
            to_engine.PullFrom(6, None),
            to_engine.Shutdown(),
        ]
        _, replies = through_the_intake(it, tmp_path, messages)
    assert replies == [to_client.Lends(1, {"remote_reference": "1"})]
    assert connector.pulled == [(5, {"remote_reference": "x"}), (6, None)]
