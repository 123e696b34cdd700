"""The engines of an API replica: they come and go as Ray says, and Ray's router places requests by our rules.

submit ─▶ PlacedRequest, first read ─▶ a ticket ─▶ Ray's call `hold(ticket)` ─▶ EngineRouter asks `order(ticket)`
                                                                             ─▶ a replica takes it: `routed(ticket)`
          tokens ◀── EngineClient of that replica, over its own sockets ◀──── submit there
          the end of all requests there ─▶ `Over(ticket)` to the desk of the replica, whose call returns

While a call is open at the engine that is the best for a request, the request goes there without a call of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import zmq

from headway.client.engine_client import EngineClient
from headway.client.engine_clients import EngineClients, SubmitTo
from headway.client.link import AttachedLink, EngineStartError
from headway.client.routed_request import MovableRequest
from headway.cluster.ray import desk
from headway.cluster.ray.holds import Hold, Holds
from headway.cluster.ray.identity import Identity
from headway.cluster.ray.placed_request import Place, PlacedRequest
from headway.config import SchedulerConfig
from headway.engine_choice import Prefixes
from headway.errors import EngineRestartingError
from headway.model_files import ModelFiles
from headway.request import NewRequest
from headway.wire import encrypted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CLIENT_BITS = 22
LINGER_MS = 1000  # that the last word to a desk may take
PLACE_SECONDS = 60.0  # that Ray may take to find an engine for a request
ATTACH_SECONDS = 30.0
_AGAIN_SECONDS = 1.0  # before an engine that could not be reached is tried again

Call = Callable[[int, int], Awaitable[None]]
"""Calls `hold` of the replica that Ray's router chooses. Arguments: ticket, client."""


def _some_number() -> int:
    """A number of a client of an engine. Never 0, which is the owner of the engine."""
    return secrets.randbelow((1 << CLIENT_BITS) - 1) + 1


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request that is being placed. routed: the replica that has taken it. asked: the engine that the choice
    counts it for."""

    prompt: Prefixes
    routed: asyncio.Future[str]
    asked: str | None = None


@dataclass(slots=True, eq=False)
class _Remote:
    """An engine replica. ready: its client, once it is attached. desk: the socket to its desk."""

    identity: Identity
    ready: asyncio.Future[EngineClient]
    task: asyncio.Task[None]
    desk: zmq.Socket[bytes]
    number: int = field(default_factory=_some_number)
    link: AttachedLink | None = None
    leaving: bool = False


class RemoteEngines(EngineClients):
    """See the module. An `Office`. For one event loop.

    call: see `Call`. host: of this machine, where engines reach this process. model: see `Identity`. shares_calls: see
    `Holds`.
    """

    def __init__(
        self,
        *,
        call: Call,
        host: str,
        model: str,
        files: ModelFiles,
        tokenizer: PreTrainedTokenizerBase,
        config: SchedulerConfig,
        max_waiting: int,
        shares_calls: bool = True,
    ) -> None:
        super().__init__(files=files, tokenizer=tokenizer, config=config, max_waiting=max_waiting)
        self._call = call
        self._host = host
        self._model = model
        self._max_waiting = max_waiting
        self._me = secrets.randbits(62)
        self._holds = Holds(lambda hold: self._tell_over(hold.ticket, hold.engine), shares=shares_calls)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._remotes: dict[str, _Remote] = {}
        self._tickets: dict[int, _Ticket] = {}
        self._next_ticket = itertools.count(1)
        self._ids: set[str] = set()
        self._beating = asyncio.ensure_future(self._beat())
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait_for_first(self) -> None:
        """Wait until an engine is there; from then on `config` is what the engines have."""
        await asyncio.shield(self._first)

    # -- the office

    def order(self, ticket: int) -> Sequence[str]:
        """See `Office`. The best engine counts the prompt from now on, so that requests that come at the same time
        do not all go there."""
        waiting = self._tickets.get(ticket)
        if waiting is None:
            return list(self._clients)
        self._unask(waiting)
        names = self._order(waiting.prompt)
        if names:
            waiting.asked = names[0]
            self._choice.begin(names[0], waiting.prompt)
        return names

    def routed(self, ticket: int, replica: str) -> None:
        """See `Office`."""
        waiting = self._tickets.get(ticket)
        if waiting is None:
            return
        if waiting.asked != replica:
            self._unask(waiting)
            waiting.asked = replica
            self._choice.begin(replica, waiting.prompt)
        if not waiting.routed.done():
            waiting.routed.set_result(replica)

    def running(self, replicas: Mapping[str, Mapping[str, Any]]) -> None:
        """See `Office`. Engines that do not run any more finish what they have."""
        for name, metadata in replicas.items():
            if name not in self._remotes:
                self._come(name, metadata)
        for name, remote in list(self._remotes.items()):
            if name not in replicas and not remote.leaving:
                remote.leaving = True
                self.retire(name)
                remote.task.cancel()
                remote.task = asyncio.ensure_future(self._leave(name, remote))

    def _order(self, prompt: Prefixes) -> list[str]:
        """The engines that take requests, the best first."""
        self._hear()
        return [name for name in self._choice.order(prompt, self._clock()) if self._takes(name)]

    def _takes(self, name: str) -> bool:
        client = self._clients.get(name)
        return client is not None and client.why_refused() is None

    def _unask(self, waiting: _Ticket) -> None:
        if waiting.asked is not None:
            self._choice.end(waiting.asked, waiting.prompt, failed=False, now=self._clock())
            waiting.asked = None

    # -- engines come and go

    def _come(self, name: str, metadata: Mapping[str, Any]) -> None:
        try:
            identity = Identity.of(metadata)
        except ValueError as error:
            logger.error("engine %s is left out: %s", name, error)
            return
        if (why := identity.differs(self._model)) is not None:
            logger.error("engine %s is left out: %s", name, why)
            return
        socket = self._context.socket(zmq.PUSH)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        encrypted.connect(socket, identity.desk)
        ready: asyncio.Future[EngineClient] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._attach(name))
        self._remotes[name] = _Remote(identity, ready, task, socket)

    async def _attach(self, name: str) -> None:
        """Attach to the engine, again and again until it answers."""
        remote = self._remotes[name]
        while True:
            link = AttachedLink(remote.identity.engine, f"tcp://{self._host}:*", remote.number, remote.identity.pid)
            self._tell(remote, desk.Beat(self._me, remote.number))
            try:
                ready = await asyncio.wait_for(link.attach(), ATTACH_SECONDS)
                break
            except (TimeoutError, EngineStartError) as error:
                logger.warning("engine %s cannot be reached (%s); it is tried again", name, error or "no answer")
                link.engine_has_ended("it did not answer")
                await link.close()
                await asyncio.sleep(_AGAIN_SECONDS)
                remote.number = _some_number()  # the old one may be another process's
            except BaseException:
                link.engine_has_ended("it is not wanted any more")
                await link.close()
                raise
        client = EngineClient(
            files=self.files,
            tokenizer=self.tokenizer,
            config=ready.config,
            link=link,
            index=remote.number,
            max_waiting=self._max_waiting,
            placement=ready.placement,
            tells_cache=ready.tells_cache,
            prompts=self.prompts,
        )
        remote.link = link
        if not self._clients:
            self.config, self.placement = ready.config, ready.placement
            self.capacity = ready.config.max_num_seqs + self._max_waiting
        self.add(name, client)
        remote.ready.set_result(client)
        if not self._first.done():
            self._first.set_result(None)
        logger.info("engine %s is there: process %d of its machine", name, remote.identity.pid)

    async def _leave(self, name: str, remote: _Remote) -> None:
        client = self._clients.get(name)
        if client is not None:
            while client.num_open and client.why_refused() is None:
                await asyncio.sleep(0.1)
            self.remove(name)
        else:
            remote.ready.cancel()
        del self._remotes[name]
        if client is not None:
            await client.shutdown()
            self._tell(remote, desk.Bye(self._me))
        remote.desk.close(linger=LINGER_MS)
        logger.info("engine %s has gone", name)

    def _has_died(self, name: str, why: str) -> None:
        remote = self._remotes.get(name)
        if remote is not None and remote.link is not None:
            remote.link.engine_has_ended(why)

    async def _watch(self, client: EngineClient) -> None:
        """Other engines may come even if all are dead."""

    def why_unhealthy(self) -> str | None:
        if not self._clients:
            return "there is no engine now"
        return super().why_unhealthy()

    async def _beat(self) -> None:
        while True:
            for remote in self._remotes.values():
                self._tell(remote, desk.Beat(self._me, remote.number))
            await asyncio.sleep(desk.BEAT_SECONDS)

    @staticmethod
    def _tell(remote: _Remote, message: desk.ToDesk) -> None:
        if not remote.desk.closed:
            remote.desk.send(desk.encode(message), zmq.NOBLOCK)

    # -- requests

    def _is_in_use(self, request_id: str) -> bool:
        return request_id in self._ids

    def _submit_part(self, requests: Sequence[NewRequest], submit_to: SubmitTo) -> MovableRequest:
        if self._shut_down:
            raise self._refusal()
        ids = [request.request_id for request in requests]
        prompt = self._prefixes(requests)
        self._ids.update(ids)

        return PlacedRequest(partial(self._place, prompt, submit_to), lambda: self._ids.difference_update(ids))

    async def _place(self, prompt: Prefixes, submit_to: SubmitTo) -> Place:
        """Give the request to the best engine, if it has an open call; else let Ray choose. Raises EngineDeadError or
        QueueFullError."""
        hold = self._shared(prompt) or await self._route(prompt)
        name, counts = hold.engine, True

        def begun(failed: bool = False) -> None:
            nonlocal counts
            if counts:
                self._choice.end(name, prompt, failed=failed, now=self._clock())
            counts = False

        def leave(failed: bool) -> None:
            begun(failed)
            self._holds.leave(hold)

        try:
            client = self._clients.get(name)
            if client is None:
                raise EngineRestartingError(f"engine {name} has just gone")
            return Place(name, submit_to(client), begun, leave)
        except BaseException:
            leave(False)
            raise

    def _shared(self, prompt: Prefixes) -> Hold | None:
        """The open call at the best engine, which counts the prompt from now on."""
        best = next(iter(self._order(prompt)), None)
        hold = None if best is None else self._holds.share(best)
        if hold is not None:
            self._choice.begin(hold.engine, prompt)
        return hold

    async def _route(self, prompt: Prefixes) -> Hold:
        """Ray's call at the replica that its router chooses, once the replica has taken it; the engine counts the
        prompt from now on."""
        ticket = next(self._next_ticket)
        waiting = self._tickets[ticket] = _Ticket(prompt, asyncio.get_running_loop().create_future())
        call = asyncio.ensure_future(self._call(ticket, self._me))
        try:
            both: set[asyncio.Future[Any]] = {waiting.routed, call}
            await asyncio.wait(both, timeout=PLACE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.routed.done():
                if call.done():
                    call.result()  # raises, as nothing has ended it
                raise EngineRestartingError(f"no engine has taken the request within {PLACE_SECONDS:g} s")
        except BaseException:
            call.cancel()
            self._unask(waiting)
            if waiting.routed.done():  # also if this task has been cancelled before it could see that
                self._tell_over(ticket, waiting.routed.result())
            raise
        finally:
            del self._tickets[ticket]
        hold = self._holds.add(waiting.routed.result(), ticket, call)
        call.add_done_callback(lambda _: self._call_ended(hold))
        return hold

    def _tell_over(self, ticket: int, name: str) -> None:
        if (remote := self._remotes.get(name)) is not None:
            self._tell(remote, desk.Over(self._me, [ticket]))

    def _call_ended(self, hold: Hold) -> None:
        self._holds.lose(hold)
        if not hold.call.cancelled() and (error := hold.call.exception()) is not None:
            self._has_died(hold.engine, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    async def shutdown(self) -> None:
        self._beating.cancel()
        for remote in self._remotes.values():
            remote.task.cancel()
        await asyncio.gather(*(one.task for one in self._remotes.values()), self._beating, return_exceptions=True)
        await super().shutdown()
        for remote in self._remotes.values():
            self._tell(remote, desk.Bye(self._me))
            remote.desk.close(linger=LINGER_MS)
        self._context.term()
