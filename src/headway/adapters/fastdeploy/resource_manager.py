"""The original's calls, over Headway's managers."""

from __future__ import annotations

from headway.config import SchedulerName
from headway.managers import LockedManager, LockFreeManager, StaticManager
from headway.managers.surface import Ids, Surface
from headway.request import Request
from headway.scheduler import Reservation


class OriginalCalls(Surface):
    """The calls of the original, each by its plain verb. `ids`: request ids or uids, one or several."""

    def add_request(self, request: Request) -> None:
        """See `add`."""
        self.add(request)

    def finish_requests(self, ids: Ids) -> None:
        """See `finish`."""
        self.finish(ids)

    def finish_requests_async(self, ids: Ids) -> None:
        """See `finish`, which never waits for slots and blocks to become free."""
        self.finish(ids)

    def add_abort_req_ids(self, ids: Ids) -> None:
        """See `abort`."""
        self.abort(ids)

    def reschedule_preempt_task(self, ids: Ids) -> None:
        """The device has stopped working on preempted requests.

        Does nothing: a preempted request went back to the queue when it was preempted. No message enters the mailbox,
        so a late call cannot touch a request that runs again. Raises EngineDeadError once the engine has stopped.
        """
        self._check_open()

    def recycle_abort_task(self, ids: Ids) -> None:
        """The device has stopped working on aborted requests.

        Does nothing: slot and blocks became free when the request was aborted. No message enters the mailbox, so a
        late call cannot touch a newer request with the same id. Raises EngineDeadError once the engine has stopped.
        """
        self._check_open()

    def cache_output_tokens(self, ids: Ids) -> None:
        """See `publish_output`."""
        self.publish_output(ids)

    def preallocate_resource_in_p(self, request: Request, timeout: float = 5.0) -> Reservation | None:
        """See `reserve_prefill`."""
        return self.reserve_prefill(request, timeout=timeout)

    def preallocate_resource_in_d(self, request: Request, timeout: float = 5.0) -> Reservation | None:
        """See `reserve_decode`."""
        return self.reserve_decode(request, timeout=timeout)

    def has_resource_for_prefilled_req(self, request: Request, timeout: float = 5.0) -> bool:
        """D, when the KV arrives in a host buffer first: whether slot and blocks for it are free.

        True: they are reserved, as by `reserve_decode`, but only for `hold_timeout` seconds.
        """
        return (
            self.reserve_decode(request, expires_after=self.config.hold_timeout, timeout=timeout, shows_blocks=False)
            is not None
        )

    def add_request_in_p(self, ids: Ids) -> None:
        """See `start_prefill`."""
        self.start_prefill(ids)

    def add_prefilled_request(self, request_id: str | int, token: int) -> None:
        """See `start_decode`."""
        self.start_decode(request_id, token)

    def pre_recycle_resource(self, ids: Ids) -> None:
        """See `drop_reservations`."""
        self.drop_reservations(ids)

    def preempted_all(self) -> None:
        """See `preempt_all`."""
        self.preempt_all()

    def clear_data(self) -> None:
        """See `clear`."""
        self.clear()

    def wait_worker_inflight_requests_finish(self, timeout: float) -> None:
        """See `await_steps`."""
        self.await_steps(timeout)

    def available_batch(self) -> int:
        """See `num_free_slots`."""
        return self.num_free_slots()

    def get_real_bsz(self) -> int:
        """The highest slot in use + 1, as last published: the number of rows that a worker has to read."""
        return self.snapshot().num_slots_spanned


class ResourceManager(OriginalCalls, StaticManager):
    """v0: static allocation under one lock."""


class ResourceManagerV1(OriginalCalls, LockedManager):
    """v1: dynamic allocation under one lock."""


class ResourceManagerV2(OriginalCalls, LockFreeManager):
    """v2: dynamic allocation, no lock. The default."""


MANAGERS: dict[SchedulerName, type[OriginalCalls]] = {
    "v0": ResourceManager,
    "v1": ResourceManagerV1,
    "v2": ResourceManagerV2,
}
