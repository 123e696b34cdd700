"""The writer: the one thread that drives a manager and an executor."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from headway.config import Role
from headway.engine.connector import Connector
from headway.engine.preprocess import PreprocessPool
from headway.error_text import first_line
from headway.executor.base import Executor
from headway.kvcache import KVEvent
from headway.managers import Manager
from headway.request import FinishReason
from headway.scheduler.effects import Effects, Sending
from headway.scheduler.messages import DeviceLost, PreprocessDone

logger = logging.getLogger(__name__)

OnEffects = Callable[[Effects], None]
OnSending = Callable[[Sending], None]
OnKVEvents = Callable[[list[KVEvent]], None]

SHUT_DOWN = "the engine was shut down"  # the error of the requests that were inside
NO_CONNECTOR = "no connector: this engine has nothing to send KV with"
NO_PREPROCESSOR = "this engine has no preprocessor"

_LONGEST_SLEEP = 0.5  # seconds; a writer with nothing to do still makes a turn this often, to show its health
_OVERSLEPT = 1.0  # seconds that the writer may come late; if it comes later, its process did not run
_STALL_SECONDS = 10.0  # with work, an idle device and no progress for this long, the engine counts as stalled


class WriterLoop:
    """Applies messages, keeps the device busy, and passes the effects on.

    It waits only in `manager.wait`. A step that fails ends its own requests only. A step without a result within
    `step_timeout` seconds is given up: the running requests end with an error, and the executor is restarted. If the
    executor cannot be restarted, if it says that it is lost, or if an invariant breaks, the loop sets `failure`, ends
    every request and stops.

    on_effects: gets `started`, `tokens` and `ended` on this thread; must not block.
    on_sending: gets each prompt whose KV has to go to D, on this thread, after the effects with its first token. It
        must not block, and must arrange that `manager.send_done` follows. None: there is no connector.
    on_kv_events: gets what a turn has done to the prefix cache, on this thread; must not block. None: it is dropped.
    connector: moves KV that is pulled or lent. None: prompts whose KV should be pulled are computed here, and leases
        end as soon as they begin.
    pool: prepares requests; the loop starts and stops it. None: there is no preprocessor.
    async_scheduling: launch the next step while one computes, if the executor takes two. False: each launch waits for
        the result of the step before it.
    step_timeout: the most seconds from one sign of progress of the device to the next. Where the whole process was
        stopped for a while (SIGSTOP, a virtual machine that moves), they are counted anew from then on.
    """

    def __init__(
        self,
        manager: Manager,
        executor: Executor,
        on_effects: OnEffects,
        *,
        on_sending: OnSending | None = None,
        on_kv_events: OnKVEvents | None = None,
        connector: Connector | None = None,
        pool: PreprocessPool | None = None,
        async_scheduling: bool = True,
        step_timeout: float = 300.0,
    ) -> None:
        self._manager = manager
        self._executor = executor
        self._on_effects = on_effects
        self._on_sending = on_sending
        self._on_kv_events = on_kv_events
        self._connector = connector
        self._pool = pool
        self._max_in_flight = executor.max_in_flight if async_scheduling else 1
        self._step_timeout = step_timeout
        self._schedule = manager.prefill_schedule if manager.config.role is Role.PREFILL else manager.schedule
        self._stopping = False
        self._failure: str | None = None
        self._seen: tuple[int, int] = (0, 0)
        self._progress_at = time.monotonic()
        self._looked_at = self._progress_at  # when the writer last looked around
        self._asleep = 0.0  # seconds that it wanted to sleep since, at most
        self._thread = threading.Thread(target=self._run, name="headway-writer", daemon=True)

    @property
    def failure(self) -> str | None:
        """Why the loop failed and stopped, in one line; None while it has not."""
        return self._failure

    def is_stalled(self) -> bool:
        """Whether there is work and no progress: a dead or stuck writer, or a device without results."""
        if self._failure is not None:
            return True
        if not self._manager.door.num_inside:
            return False
        on_device = self._manager.snapshot().num_in_flight > 0
        patience = self._step_timeout if on_device else _STALL_SECONDS
        return time.monotonic() - self._progress_at > patience + _LONGEST_SLEEP

    def start(self) -> None:
        """Start the device, the pool and the writer."""
        self._executor.start(self._manager.post_result)
        if self._pool is not None:
            self._pool.start()
        self._thread.start()

    def stop(self) -> None:
        """End every request that is left and stop. Idempotent; returns when the thread has ended."""
        self._stopping = True
        self._manager.wake()
        if self._thread.ident is None:  # never started: this thread has to end the requests inside
            self._run()
        elif self._thread.is_alive():
            self._thread.join()
        if self._pool is not None:
            self._pool.shutdown()
        if self._connector is not None:  # before the executor: it writes to the memory of the KV cache
            self._connector.close()
        self._executor.shutdown()

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            try:
                while not self._stopping and self._failure is None:
                    self._turn()
            except BaseException as error:  # any error: no other thread would end the requests inside
                self._give_up(error)
        finally:
            self._close()

    def _give_up(self, error: BaseException) -> None:
        self._failure = f"the engine stopped: {type(error).__name__}"  # in case `str(error)` raises
        self._failure = f"{self._failure}: {first_line(error)}"
        logger.critical("the writer stops: an invariant is broken", exc_info=error)

    def _close(self) -> None:
        """End the requests inside, fail the queries whose callers wait, and pass the last effects on."""
        reason = FinishReason.ABORT if self._failure is None else FinishReason.ERROR
        try:
            effects = self._manager.close(reason, self._failure or SHUT_DOWN)
            effects.jobs, effects.sending = [], []  # their requests have ended
            _forget_transfers(effects)
            self._tell_kv_events(effects)
            if effects:
                self._on_effects(effects)
        except BaseException as error:
            self._give_up(error)
        if self._pool is not None:
            self._pool.shutdown(timeout=0.0)

    def _turn(self) -> None:
        manager, executor = self._manager, self._executor
        manager.wait(self._patience())
        manager.drain()
        self._watch()
        if self._failure is not None:
            return
        while manager.snapshot().num_in_flight < self._max_in_flight:
            batch = self._schedule()
            if batch is None:
                break
            executor.launch(batch)
        self._carry_out(manager.take_effects())

    def _carry_out(self, effects: Effects) -> None:
        """Jobs go to the pool, KV to the connector, KV events to their publisher, all other effects to `on_effects`."""
        self._carry_out_transfers(effects)
        self._tell_kv_events(effects)
        jobs, sending = effects.jobs, effects.sending
        effects.jobs, effects.sending = [], []
        for request in jobs:
            if self._pool is not None:
                self._pool.submit(request)
            else:  # the limits of the door said that there is a preprocessor
                self._manager.post_result(PreprocessDone(request.uid, error=NO_PREPROCESSOR))
        if self._pool is not None:
            for end in effects.ended:
                self._pool.cancel(end.uid)
        if effects:
            self._on_effects(effects)
        for one in sending:
            if self._on_sending is not None:
                self._on_sending(one)
            else:
                self._manager.send_done(one.uid, NO_CONNECTOR)

    def _tell_kv_events(self, effects: Effects) -> None:
        if effects.kv_events and self._on_kv_events is not None:
            self._on_kv_events(effects.kv_events)
        effects.kv_events = []

    def _carry_out_transfers(self, effects: Effects) -> None:
        """Tell the connector what is pulled and lent. It hears of a lease before the callers hear that the request has
        ended: D may ask for the lease at once."""
        connector = self._connector
        if connector is None:
            self._refuse_transfers(effects)
        else:
            self._lend(effects, connector)
            self._pull(effects, connector)
            if effects.ended:
                connector.ended([end.uid for end in effects.ended])
            if effects.kv_is_void:  # last: what was shown in this turn may be of before
                connector.begin_anew()
        _forget_transfers(effects)

    def _refuse_transfers(self, effects: Effects) -> None:
        for pull in effects.pulls:
            self._manager.receive_done(pull.request.uid, error=NO_CONNECTOR)
        if leased := [one.uid for one in effects.lending if one.token is not None]:
            self._manager.end_leases(leased)

    @staticmethod
    def _lend(effects: Effects, connector: Connector) -> None:
        for part in effects.lending:
            connector.lending(part)
            if part.token is not None and (params := connector.handover(part.uid)) is not None:
                effects.handovers.append((part.uid, params))
        for uid in effects.revoked:  # after `lending`: both may concern one lease
            connector.revoked(uid)

    @staticmethod
    def _pull(effects: Effects, connector: Connector) -> None:
        for uid in effects.stopped_pulls:
            connector.stop_pull(uid)
        for pull in effects.pulls:
            connector.pull(pull)
            if pull.request.kv_transfer_params is None:
                effects.sourceless.append(pull.request.uid)
        for outputs in effects.tokens:
            connector.answered(outputs.uids)

    def _patience(self) -> float:
        """How long the writer may sleep, in seconds: not past a deadline of the core, nor of the watchdog."""
        snapshot, now = self._manager.snapshot(), time.monotonic()
        until = now + _LONGEST_SLEEP
        if snapshot.num_in_flight:
            until = min(until, self._progress_at + self._step_timeout)
        if snapshot.next_deadline is not None:
            until = min(until, snapshot.next_deadline)
        self._asleep = max(until - now, 0.0)
        return self._asleep

    def _watch(self) -> None:
        """Note progress; give up a step without a result, and a device that is lost."""
        lost = self._executor.failure()
        if lost is not None:
            self._failure = f"the engine stopped: {lost}"
            logger.critical("the writer stops: %s", lost)
            return
        snapshot, now = self._manager.snapshot(), time.monotonic()
        late, self._looked_at = now - self._looked_at - self._asleep, now
        if snapshot.num_in_flight and late > _OVERSLEPT:  # the step may have been stopped too, or its answer be waiting
            logger.warning("the writer was stopped for %.1f s: the time of the step is counted anew", late)
            self._progress_at = now
        seen = (snapshot.step_id, snapshot.num_in_flight)
        # Nothing runs, because blocks or slots are held for or by another engine: the writer waits for that. The core
        # has a deadline for this, except for blocks that a connector has not said to have left.
        idle = not (snapshot.num_in_flight or snapshot.num_running)
        held = snapshot.num_reserved + snapshot.num_sending + snapshot.num_receiving
        awaits_other = idle and (held or snapshot.num_blocks_lent or snapshot.num_blocks_quarantined)
        if seen != self._seen or awaits_other or not snapshot.has_work:
            self._seen, self._progress_at = seen, now
        elif snapshot.num_in_flight and now - self._progress_at >= self._step_timeout:
            oldest = snapshot.step_id - snapshot.num_in_flight + 1  # steps are answered in launch order
            reason = f"step {oldest} did not answer within step_timeout ({self._step_timeout:g} s)"
            logger.error("%s; its requests fail", reason)
            self._progress_at = now
            if self._executor.restart():
                self._manager.post_result(DeviceLost(reason))
                self._manager.drain()
            else:
                self._failure = f"the engine stopped: {reason}, and the device cannot be restarted"


def _forget_transfers(effects: Effects) -> None:
    """What is left is for the callers."""
    effects.pulls, effects.stopped_pulls, effects.lending, effects.revoked = [], [], [], []
    effects.kv_is_void = False
