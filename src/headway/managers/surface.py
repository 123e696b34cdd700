"""What callers can do, written once for all managers."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, get_args

import numpy as np

from headway.config import PauseMode, SchedulerConfig
from headway.errors import EngineDeadError, RequestError
from headway.managers.door import Door
from headway.managers.query import QueryDesk, checked_timeout
from headway.model_limits import ModelLimits
from headway.request import Request
from headway.scheduler import (
    AbortRequests,
    AddRequest,
    Audit,
    AuditReport,
    AwaitSteps,
    Clear,
    Command,
    DropReservations,
    FinishRequests,
    GetProgress,
    Pause,
    PreemptAll,
    Progress,
    PublishOutput,
    Query,
    Reservation,
    ReserveDecode,
    ReservePrefill,
    ResetPrefixCache,
    Resume,
    Snapshot,
    StartDecode,
    StartPrefill,
)

logger = logging.getLogger(__name__)

Ids = str | int | Iterable[str | int]

_NOBODY = -1  # no request has this uid


class Surface(ABC):
    """Everything that any thread may call, one plain verb per deed.

    `ids` are request ids or uids, one or several; unknown ones are a no-op.

    Commands hand in and return. Queries wait for an answer, at most `timeout` seconds (above 0): TimeoutError means
    that nothing was carried out and nothing is held. Both raise EngineDeadError once the engine has stopped.
    """

    def __init__(self, config: SchedulerConfig, limits: ModelLimits, max_waiting: int) -> None:
        self.config = config
        self.door = Door(config, limits, max_waiting)
        self._desk = QueryDesk()
        self._closed = False

    # -- commands ------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Hand in a request that `door.make_request` has made. It will end exactly once, with a RequestEnd.

        Raises DuplicateRequestError, QueueFullError, EnginePausedError or EngineDeadError; then nothing was handed in.
        """
        self.door.enter(request)
        try:
            self._put(AddRequest(request))
        except BaseException:  # an interrupt
            self._take_back(request)
            raise
        if self._closed and self.door.leave(request.uid):  # it was closed while we were at the door
            raise EngineDeadError(self._reason())

    def finish(self, ids: Ids) -> None:
        """End requests whose answer is complete; slots and blocks are recycled with it."""
        self._tell_of(ids, FinishRequests, "FinishRequests")

    def abort(self, ids: Ids) -> None:
        """End requests that nobody wants any more, whatever they are doing."""
        self._tell_of(ids, AbortRequests, "AbortRequests")

    def publish_output(self, ids: Ids) -> None:
        """Let other requests find what these have generated so far, in whole blocks. With `enable_output_caching` that
        happens by itself."""
        self._tell_of(ids, PublishOutput, "PublishOutput")

    def start_prefill(self, ids: Ids) -> None:
        """P: D has agreed; compute these reserved requests."""
        self._tell_of(ids, StartPrefill, "StartPrefill")

    def start_decode(self, request_id: str | int, token: int) -> None:
        """D: the KV of a reserved request has come, and its first output token; decode from there."""
        limit = self.door.num_token_ids
        if not isinstance(token, (int, np.integer)) or not 0 <= token < limit:
            raise RequestError(f"the first token is {token!r}; token ids are integers from 0 to {limit - 1}")
        self._tell_of(request_id, lambda uids: StartDecode(uids[0], int(token)), "StartDecode")

    def drop_reservations(self, ids: Ids) -> None:
        """Give up reserved requests, as the other side has failed. Others are left alone."""
        self._tell_of(ids, DropReservations, "DropReservations")

    # -- queries -------------------------------------------------------------------------------------------------

    def reserve_prefill(self, request: Request, timeout: float = 5.0) -> Reservation | None:
        """P: slot, blocks for the prompt, and what the prefix cache has of it. None: no room now, nothing is held.

        A yes is an accepted request: it ends exactly once, at the latest when nobody takes it up
        (`start_prefill`) within `reservation_timeout`.
        Raises QueryError on an engine of another role, and what `add` raises.
        """
        return self._reserve(request, lambda reply: ReservePrefill(reply, request), timeout)

    def reserve_decode(
        self, request: Request, timeout: float = 5.0, *, expires_after: float | None = None
    ) -> Reservation | None:
        """D: slot, and blocks for prompt and first token, under the reserve rule; refused while anybody waits. None:
        no room now, nothing is held.

        A yes is an accepted request: it ends exactly once, at the latest when nobody takes it up
        (`start_decode`) within `expires_after` seconds; None: `reservation_timeout`.
        Raises QueryError on an engine of another role, and what `add` raises.
        """
        seconds = self.config.reservation_timeout if expires_after is None else expires_after
        return self._reserve(request, lambda reply: ReserveDecode(reply, request, seconds), timeout)

    def progress(self, request_id: str | int, timeout: float = 5.0) -> Progress | None:
        """How far a request is; None if it is not here."""
        uid = next(iter(self._uids(request_id, "GetProgress")), _NOBODY)
        progress: Progress | None = self._ask(lambda reply: GetProgress(reply, uid), timeout)
        return progress

    def audit(self, timeout: float = 30.0) -> AuditReport:
        """Recount who owns what."""
        report: AuditReport = self._ask(Audit, timeout)
        return report

    # -- control -------------------------------------------------------------------------------------------------

    def preempt_all(self) -> None:
        """Everything that runs goes back to its place in the queue, and is computed again from prompt and output."""
        self._tell(PreemptAll())

    def await_steps(self, timeout: float) -> None:
        """Return when every step that is in flight now has been answered for. Raises TimeoutError."""
        self._await_steps(timeout)

    def clear(self) -> None:
        """End every request that was added before (ABORT) and forget what is cached. Later ones are not touched."""
        self._tell(Clear())

    def reset_prefix_cache(self, timeout: float = 5.0) -> int:
        """Forget what is cached; returns how many blocks were. Requests go on."""
        count: int = self._ask(ResetPrefixCache, timeout)
        return count

    def pause(self, mode: PauseMode = "abort", *, reset_prefix_cache: bool = True, timeout: float = 30.0) -> None:
        """Refuse new work, abort or preempt what runs, and return when the device is idle: its weights may be changed.

        mode: "abort" ends all requests; "preempt" keeps them, to be computed again after `resume`.
        reset_prefix_cache: forget what is cached, before this returns.
        Raises TimeoutError if the device is not idle by then; the engine is paused all the same. A request that was at
        the door just then may still come in, and waits for `resume`.
        """
        if mode not in get_args(PauseMode):
            raise ValueError(f"mode must be one of {', '.join(get_args(PauseMode))}, got {mode!r}")
        pause = Pause(abort=mode == "abort", reset_prefix_cache=reset_prefix_cache)

        def begin() -> None:
            self.door.pause()
            self._tell(pause)

        self._await_steps(timeout, begin, but="; the engine is paused all the same")

    def resume(self) -> None:
        """Take new work again, and go on with what was kept."""
        self.door.resume()  # before it is told: see `Manager._carry_out`
        self._tell(Resume())

    # -- reads ---------------------------------------------------------------------------------------------------

    def num_free_slots(self) -> int:
        """Slots that no accepted request has a claim on, those not yet applied included."""
        return max(0, self.config.max_num_seqs - self.door.num_inside)

    def info(self) -> dict[str, Any]:
        """The numbers of the snapshot by name, and num_inside: requests accepted and not ended."""
        return {**self.snapshot()._asdict(), "num_inside": self.door.num_inside}

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The state as last published. Immutable."""

    # -- for subclasses ------------------------------------------------------------------------------------------

    @abstractmethod
    def _put(self, command: Command) -> None:
        """Bring a command to the core."""

    @abstractmethod
    def _put_query(self, query: Query | AwaitSteps, timeout: float) -> None:
        """Bring a query to the core. Raises TimeoutError if that alone takes longer than `timeout` seconds."""

    def _tell(self, command: Command) -> None:
        self._check_open()
        self._put(command)

    def _tell_of(self, ids: Ids, command: Callable[[tuple[int, ...]], Command], what: str) -> None:
        self._check_open()
        uids = self._uids(ids, what)
        if uids:
            self._put(command(uids))

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDeadError(self._reason())

    def _uids(self, ids: Ids, what: str) -> tuple[int, ...]:
        """uids of the requests inside that are meant."""
        ids = tuple(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else (ids,)
        uids = self.door.uids_of(ids)
        if len(uids) < len(ids):
            logger.debug("%s: %d of %d ids are not in the engine", what, len(ids) - len(uids), len(ids))
        return uids

    def _reason(self) -> str:
        return self.door.closed or "the engine has stopped"

    def _ask(
        self, query: Callable[[int], Query | AwaitSteps], timeout: float, begin: Callable[[], None] | None = None
    ) -> Any:
        """Hand in a query and wait for its answer. begin: what goes before it, once it is sure that it can be asked."""
        until = time.monotonic() + checked_timeout(timeout)

        def left() -> float:
            return max(until - time.monotonic(), 1e-3)

        reply, cell = self._desk.open()
        try:
            if begin is not None:
                begin()
            self._put_query(query(reply), left())
            return cell.wait(left())
        finally:
            self._desk.forget(reply)

    def _await_steps(self, timeout: float, begin: Callable[[], None] | None = None, but: str = "") -> None:
        try:
            self._ask(AwaitSteps, timeout, begin)
        except TimeoutError:
            raise TimeoutError(f"the device was not idle within {float(timeout):g} s{but}") from None

    def _reserve(self, request: Request, query: Callable[[int], Query], timeout: float) -> Reservation | None:
        """A query whose yes makes the request one of those inside. It is at the door until then."""
        checked_timeout(timeout)
        if request.preprocess is not None:
            raise RequestError(
                f"request {request.request_id!r} has to be prepared first; nothing can be held for it yet"
            )
        self.door.enter(request, accepted=False)
        try:
            reservation: Reservation | None = self._ask(query, timeout)
        except Exception:  # it was not carried out
            self.door.leave(request.uid)
            raise
        except BaseException:  # an interrupt
            self._take_back(request)
            raise
        if reservation is None:
            self.door.leave(request.uid)
        return reservation

    def _take_back(self, request: Request) -> None:
        """Its caller was interrupted on the way in. Perhaps it was handed in, perhaps not: the abort comes behind it,
        and nobody is told of its end."""
        if self.door.leave(request.uid):
            self._put(AbortRequests((request.uid,)))
