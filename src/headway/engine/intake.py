"""Receives the messages of API processes for the engine."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import zmq

from headway.engine.cache_teller import CacheTeller
from headway.engine.control_desk import ControlDesk
from headway.engine.engine import Engine
from headway.engine.output import Output, connect_output
from headway.errors import EngineDeadError
from headway.request import NewRequest, Transfer
from headway.wire import codec, encrypted, to_client, to_engine
from headway.wire.checks import check_to_engine
from headway.wire.launch import Launch, input_address
from headway.wire.refusals import kind_of
from headway.wire.uids import client_of
from headway.wire.wire_errors import WireError, WireErrors

logger = logging.getLogger(__name__)


class Intake:
    """Passes wire messages of the API processes on to the engine, and knows which processes there are. Owns its
    sockets; only one thread uses it.

    address: where clients of other machines reach it; None: nowhere.
    errors: counts what reaches the socket and is no message; it is dropped. Other threads may read the count.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        launch: Launch,
        engine: Engine,
        desk: ControlDesk,
        output: Output,
        teller: CacheTeller | None = None,
    ) -> None:
        self._context = context
        self._engine = engine
        self._desk = desk
        self._output = output
        self._teller = teller
        self._clients = {0}
        self._gone: set[int] = set()  # the message by which a client comes may be found after word of its death
        self._commands = context.socket(zmq.PULL)
        self._commands.set_hwm(0)  # no limit here: the door bounds the requests, and a refused one is dropped
        self._commands.bind(input_address(launch.socket_dir))
        self.address: str | None = None
        self._sockets = [self._commands]
        if launch.listen is not None:
            remote = context.socket(zmq.PULL)
            remote.set_hwm(0)
            self._sockets.append(remote)
            self.address = encrypted.listen(remote, f"tcp://{launch.listen}:*")
        self.errors = WireErrors("engine")

    def run(self) -> float:
        """Serve until the message `Shutdown`; returns its grace in seconds."""
        for frames in self._received():
            try:
                message = codec.decode_to_engine(codec.only_frame(frames))
                check_to_engine(message, self._clients)
                self._attach(message)
            except WireError as error:
                self.errors.note(error)
                continue
            match message:
                case to_engine.AddGroup():
                    self._add(message)
                case to_engine.Abort(uids):
                    self._abort(uids)
                case to_engine.Finish(uids):
                    with contextlib.suppress(EngineDeadError):  # as below
                        self._engine.manager.finish(uids)
                case to_engine.PullFrom(uid, params):
                    self._engine.pull_from(uid, params)
                case to_engine.Call():
                    self._desk.take(message)
                case to_engine.Detach(client):
                    self._detach(client)
                case to_engine.TellCache(client):
                    self._tell_cache(client)
                case to_engine.Shutdown(grace):
                    return grace
        raise AssertionError("messages never end")

    def _received(self) -> Iterator[list[bytes]]:
        """The messages, as they come."""
        if len(self._sockets) == 1:
            while True:
                yield self._commands.recv_multipart()
        poller = zmq.Poller()
        for socket in self._sockets:
            poller.register(socket, zmq.POLLIN)
        while True:
            for socket, _ in poller.poll():
                yield socket.recv_multipart()

    def _attach(self, message: to_engine.ToEngine) -> None:
        """Let a client come, if the message says so. Raises WireError for a number that is or was in use, and for an
        address unknown to ZeroMQ."""
        if not isinstance(message, to_engine.Attach):
            return
        client, address = message.client, message.address
        if client in self._clients or client in self._gone:
            raise WireError(f"client {client} cannot come: that number has been in use")
        try:
            socket = connect_output(self._context, address)
        except zmq.ZMQError as error:
            raise WireError(f"client {client} cannot be reached at {address!r}: {error}") from None
        self._clients.add(client)
        self._output.attach(client, socket)

    def _tell_cache(self, client: int) -> None:
        if self._teller is not None:  # else it has not said in `Ready` that it can
            self._teller.ask(client)

    def _detach(self, client: int) -> None:
        """Forget a client for good, also before it has come."""
        self._clients.discard(client)
        self._gone.add(client)
        if self._teller is not None:
            self._teller.leave(client)
        self._output.detach(client)
        left = [claim.uid for claim in self._engine.manager.door.inside() if client_of(claim.uid) == client]
        if left:
            logger.info("client %d is gone: %d requests are aborted", client, len(left))
            self._abort(left)

    def _add(self, group: to_engine.AddGroup) -> None:
        """Take the requests of the group in order, up to the first that is refused."""
        uid = group.requests[0].uid
        assert uid is not None, "`check_to_engine` refuses a request without a uid"
        for count, request in enumerate(group.requests):
            try:
                self._engine.add(request)
            except Exception as error:
                kind = kind_of(error)
                if kind == "internal":
                    logger.exception("cannot add a request")
                self._reply(uid, to_client.Refused(uid, count, kind, str(error)))
                return
            if request.transfer is Transfer.LEND:
                self._tell_who_lends(request)
        if group.confirm:
            self._reply(uid, to_client.Accepted(uid))

    def _tell_who_lends(self, request: NewRequest) -> None:
        assert request.uid is not None, "`check_to_engine` refuses a request without a uid"
        params = self._engine.handover(request.uid)
        if params is not None:
            self._reply(request.uid, to_client.Lends(request.uid, params))

    def _abort(self, uids: Sequence[int]) -> None:
        with contextlib.suppress(EngineDeadError):  # then the requests have ended, and the next pulse says why
            self._engine.manager.abort(uids)

    def _reply(self, uid: int, message: to_client.ToClient) -> None:
        self._output.answer(client_of(uid), message)

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()
