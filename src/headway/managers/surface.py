"""What callers can do, written once for all managers."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, get_args

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
    ConsumeLease,
    DropReservations,
    FinishRequests,
    GetProgress,
    HoldAdmissions,
    LiftHold,
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

_NO_REQUEST = -1  # no request has this uid


class Surface(ABC):
    """Everything that any thread may call: one plain verb per action.

    `ids` are request ids or uids, one or several. Unknown ids are ignored.

    A command sends its message and returns. A query waits for an answer, at most `timeout` seconds (above 0).
    TimeoutError means that the query did not run and changed nothing. Both raise EngineDeadError once the engine has
    stopped.
    """

    def __init__(self, config: SchedulerConfig, limits: ModelLimits, max_waiting: int) -> None:
        self.config = config
        self.door = Door(config, limits, max_waiting)
        self._desk = QueryDesk()
        self._closed = False

    # -- commands ------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Add a request that `door.make_request` has made. It will end exactly once, with a RequestEnd.

        Raises DuplicateRequestError, QueueFullError, EnginePausedError or EngineDeadError; then nothing was added.
        """
        self.door.enter(request)
        try:
            self._put(AddRequest(request))
        except BaseException:  # an interrupt
            self._take_back(request, AbortRequests)
            raise
        if self._closed and self.door.leave(request.uid):  # closed while this request entered
            raise EngineDeadError(self._reason())

    def finish(self, ids: Ids) -> None:
        """End requests whose answer is complete (STOP); their slots and blocks become free."""
        self._tell_of(ids, FinishRequests, "FinishRequests")

    def abort(self, ids: Ids) -> None:
        """End requests whose answer is no longer wanted (ABORT), in any status."""
        self._tell_of(ids, AbortRequests, "AbortRequests")

    def publish_output(self, ids: Ids) -> None:
        """Put the full blocks of the output of these requests into the prefix cache. With `enable_output_caching` this
        happens without the command."""
        self._tell_of(ids, PublishOutput, "PublishOutput")

    def start_prefill(self, ids: Ids) -> None:
        """P: D has agreed; compute the prompts of these reserved requests."""
        self._tell_of(ids, StartPrefill, "StartPrefill")

    def start_decode(self, request_id: str | int, token: int) -> None:
        """D: the KV of a reserved request has come; decode on from its first output token, `token`.

        Raises RequestError for a token id outside the vocabulary.
        """
        if not self.door.is_token_id(token):
            limit = self.door.num_token_ids
            raise RequestError(f"the first token is {token!r}; token ids are integers from 0 to {limit - 1}")
        self._tell_of(request_id, lambda uids: StartDecode(uids[0], int(token)), "StartDecode")

    def drop_reservations(self, ids: Ids) -> None:
        """End reserved requests, because the other engine has failed. Requests with another status are left alone."""
        self._tell_of(ids, DropReservations, "DropReservations")

    # -- queries -------------------------------------------------------------------------------------------------

    def reserve_prefill(
        self, request: Request, timeout: float = 5.0, *, shows_blocks: bool = False
    ) -> Reservation | None:
        """P: reserve a slot and the blocks for the prompt, cached blocks included. None: too few are free; nothing is
        reserved.

        shows_blocks: whether a connector is told the blocks now. Then they stay those of the reservation. Else wait for
        `Effects.sending`: a block may be exchanged for a block of another request, computed meanwhile.

        A reservation is an accepted request: it ends exactly once. It expires if `start_prefill` does not come within
        `reservation_timeout` seconds.
        Raises QueryError on an engine of another role, RequestError for a request that must be prepared first or has
        a `transfer`, and the errors of `add`.
        """
        return self._reserve(request, lambda reply: ReservePrefill(reply, request, shows_blocks), timeout)

    def reserve_decode(
        self,
        request: Request,
        timeout: float = 5.0,
        *,
        expires_after: float | None = None,
        shows_blocks: bool = True,
    ) -> Reservation | None:
        """D: reserve a slot and the blocks for the prompt and the first token. None: nothing is reserved, because
        requests wait, or too few slots or blocks are free (with the headroom left over).

        A reservation is an accepted request: it ends exactly once. It expires if `start_decode` does not come within
        `expires_after` seconds; None: `reservation_timeout`.

        shows_blocks: whether a connector is told the blocks. Then the blocks of a reservation that ends without
        `start_decode` or `drop_reservations` come back when `receive_done` says that the connector has stopped.
        Raises QueryError on an engine of another role, RequestError for a request that must be prepared first or has
        a `transfer`, and the errors of `add`.
        """
        seconds = self.config.reservation_timeout if expires_after is None else expires_after
        return self._reserve(request, lambda reply: ReserveDecode(reply, request, seconds, shows_blocks), timeout)

    def consume_lease(self, uid: int, generation: int, timeout: float = 5.0) -> bool:
        """P: D has read all that a lease lends; the lease ends. Whether it was there all the time; if not, what D has
        read is void."""
        valid: bool = self._ask(lambda reply: ConsumeLease(reply, uid, generation), timeout)
        return valid

    def progress(self, request_id: str | int, timeout: float = 5.0) -> Progress | None:
        """How far a request is; None if it is not in the engine."""
        uid = next(iter(self._uids(request_id, "GetProgress")), _NO_REQUEST)
        progress: Progress | None = self._ask(lambda reply: GetProgress(reply, uid), timeout)
        return progress

    def audit(self, timeout: float = 30.0) -> AuditReport:
        """Recount the blocks of all owners."""
        report: AuditReport = self._ask(Audit, timeout)
        return report

    # -- control -------------------------------------------------------------------------------------------------

    def preempt_all(self) -> None:
        """Preempt all running requests. Each goes back to its place in line, and its prompt and output are computed
        again."""
        self._tell(PreemptAll())

    def hold_admissions(self) -> None:
        """Give no request a slot until `lift_hold`. Requests with a slot go on, and new requests may enter."""
        self._tell(HoldAdmissions())

    def lift_hold(self) -> None:
        """Give requests slots again."""
        self._tell(LiftHold())

    def await_steps(self, timeout: float) -> None:
        """Return when the core has the result of every step that is in flight now. Raises TimeoutError if that takes
        longer than `timeout` seconds."""
        self._await_steps(timeout)

    def clear(self) -> None:
        """End every request that was added before (ABORT), and empty the prefix cache. Later requests are left
        alone."""
        self._tell(Clear())

    def reset_prefix_cache(self, timeout: float = 5.0) -> int:
        """Empty the prefix cache; returns the number of blocks that it had. Requests go on."""
        count: int = self._ask(ResetPrefixCache, timeout)
        return count

    def pause(self, mode: PauseMode = "abort", *, reset_prefix_cache: bool = True, timeout: float = 30.0) -> None:
        """Refuse new requests, abort or preempt all others, and return when the device is idle. Then the weights may
        be changed.

        mode: "abort" ends all requests; "preempt" keeps them, to be computed again after `resume`.
        reset_prefix_cache: empty the prefix cache before this returns.
        Raises ValueError for another mode, TimeoutError if the device is not idle within `timeout` seconds; the engine
        is paused all the same. A request that enters at the moment of the call may still be added; it waits for
        `resume`.
        """
        if mode not in get_args(PauseMode):
            raise ValueError(f"mode must be one of {', '.join(get_args(PauseMode))}, got {mode!r}")
        pause = Pause(abort=mode == "abort", reset_prefix_cache=reset_prefix_cache)

        def begin() -> None:
            self.door.pause()
            self._tell(pause)

        self._await_steps(timeout, begin, but="; the engine is paused all the same")

    def resume(self) -> None:
        """Accept new requests again, and go on with the preempted ones."""
        self.door.resume()  # before the command: see `Manager._carry_out`
        self._tell(Resume())

    # -- reads ---------------------------------------------------------------------------------------------------

    def num_free_slots(self) -> int:
        """Slots that are left when each request inside has one, requests that the core has not got yet included."""
        return max(0, self.config.max_num_seqs - self.door.num_inside)

    def info(self) -> dict[str, Any]:
        """The fields of the snapshot by name, and `num_inside`: requests accepted and not ended."""
        return {**self.snapshot()._asdict(), "num_inside": self.door.num_inside}

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The last published snapshot. Immutable."""

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
        """The uids of the requests inside with these ids. what: the name of the command or query, for the log."""
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
        """Send a query and wait for its answer. begin: called before the query is sent, when its cell is open."""
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
        """Ask for a reservation. The request enters first, not yet accepted, and leaves again if the answer is None."""
        checked_timeout(timeout)
        if request.to_prepare:
            raise RequestError(
                f"request {request.request_id!r} has to be prepared first; nothing can be reserved for it yet"
            )
        if request.transfer is not None:
            raise RequestError(
                f"request {request.request_id!r} has transfer={request.transfer.value!r}: a request that pulls or "
                "lends its KV is added; nothing is reserved for it"
            )
        self.door.enter(request, accepted=False)
        try:
            reservation: Reservation | None = self._ask(query, timeout)
        except Exception:  # the query did not run
            self.door.leave(request.uid)
            raise
        except BaseException:  # an interrupt
            self._take_back(request, DropReservations)  # no connector has heard of its blocks
            raise
        if reservation is None:
            self.door.leave(request.uid)
        return reservation

    def _take_back(self, request: Request, end: Callable[[tuple[int, ...]], Command]) -> None:
        """Undo the entry of a request whose caller was interrupted. The message may have been sent, or not: the command
        that ends the request comes after it, and the end is not reported."""
        if self.door.leave(request.uid):
            self._put(end((request.uid,)))
