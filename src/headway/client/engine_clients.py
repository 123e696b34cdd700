"""Several engines as an API process sees them: one surface, over an `EngineClient` each.

A request goes to the engine that `EngineChoice` says; several prompts of one request are shared out. Engines may come
and go; an engine that is down, or is being restarted, gets no requests meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from headway import block_digests
from headway.client.engine_client import EngineClient, check_num_answers
from headway.client.engine_load import load_of
from headway.client.engines import Observe
from headway.client.joined_request import JoinedRequest, Part, in_parts
from headway.client.kv_sources import FindSource
from headway.client.pending import Pending
from headway.client.pending_request import PendingRequest
from headway.client.prompt_encoder import PromptEncoder
from headway.client.routed_request import MovableRequest, RoutedRequest
from headway.client.totals import added, counters_of
from headway.config import EngineConfig, PauseMode, SchedulerConfig
from headway.engine_choice import EngineChoice, Prefixes
from headway.errors import (
    DuplicateRequestError,
    EngineDeadError,
    EngineRestartingError,
    QueueFullError,
    ShuttingDownError,
)
from headway.kvcache import PrefixCache
from headway.model_files import ModelFiles
from headway.placement import Placement
from headway.request import NewRequest
from headway.token_ids import pack
from headway.wire.to_client import AuditReport, Snapshot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
SubmitTo = Callable[[EngineClient], PendingRequest]

logger = logging.getLogger(__name__)


class EngineClients:
    """See the module, and `Engines` for what its methods say. For one event loop.

    files, tokenizer, config, placement: of every engine; an engine with another model has no place here.
    engines: by name. Names are labels of the metrics, and are never used again for another engine.
    """

    def __init__(
        self,
        *,
        files: ModelFiles,
        tokenizer: PreTrainedTokenizerBase,
        config: SchedulerConfig,
        max_waiting: int = EngineConfig().max_waiting,
        placement: Placement | None = None,
        prompts: PromptEncoder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.files = files
        self.tokenizer = tokenizer
        self.config = config
        self.placement = placement or Placement()
        self.capacity = config.max_num_seqs + max_waiting
        self.prompts = prompts or PromptEncoder(tokenizer, config.max_model_len)
        self.dead = asyncio.Event()
        self.retried: Counter[str] = Counter()
        self._clients: dict[str, EngineClient] = {}
        self.engines: Mapping[str, EngineClient] = MappingProxyType(self._clients)
        self._choice: EngineChoice[str] = EngineChoice()
        self._heard: dict[str, tuple[int, int]] = {}  # restarts and pulses that the choice has been told of
        self._tells_cache = False
        self._observe: Observe | None = None
        self._clock = clock
        self._before = Snapshot()  # the counters of engines that have gone
        self._open: WeakSet[Pending] = WeakSet()  # client requests that were submitted; some are complete by now
        self.num_added = 0
        self._shut_down = False
        self._tasks: dict[str, asyncio.Task[None]] = {}  # of each engine: waits for its death
        self._pausing: set[asyncio.Task[None]] = set()  # pause engines that have just come

    @classmethod
    def of(cls, clients: Mapping[str, EngineClient]) -> EngineClients:
        """Over these engines, the first of which says what they have in common; at least one."""
        first = next(iter(clients.values()))
        engines = cls(
            files=first.files,
            tokenizer=first.tokenizer,
            config=first.config,
            max_waiting=first.capacity - first.config.max_num_seqs,
            placement=first.placement,
            prompts=first.prompts,
        )
        for name, client in clients.items():
            engines._take(name, client)
        return engines

    # -- engines come and go

    def add(self, name: str, client: EngineClient) -> None:
        """An engine has come, and gets requests from now on. If the others are paused it is paused too."""
        paused = self.snapshot.paused
        self._take(name, client)
        if paused:
            self._pausing.add(task := asyncio.ensure_future(client.pause("preempt", reset_prefix_cache=False)))
            task.add_done_callback(self._pausing.discard)

    def _take(self, name: str, client: EngineClient) -> None:
        assert name not in self._clients, f"there is an engine {name!r}"
        self._clients[name] = client
        self._choose_anew(name)
        self._tells_cache = client.tells_cache  # the engines of a cluster are alike
        if self._observe is not None:
            client.requests.observer = self._observe(name)
        self._tasks[name] = asyncio.ensure_future(self._watch(client))

    def retire(self, name: str) -> None:
        """The engine gets no new requests; running requests go on. Idempotent."""
        self._choice.remove(name)

    def remove(self, name: str) -> EngineClient:
        """The engine has gone: for the caller to shut down, which ends its requests."""
        self.retire(name)
        self._tasks.pop(name).cancel()
        client = self._clients.pop(name)
        del self._heard[name]
        self._before = added(counters_of(client.snapshot), self._before)
        return client

    async def _watch(self, client: EngineClient) -> None:
        await client.dead.wait()
        if all(other.dead.is_set() for other in self._clients.values()):
            self.dead.set()

    # -- what there is

    @property
    def snapshot(self) -> Snapshot:
        snapshots = [client.snapshot for client in self._clients.values()]
        total = self._before
        for snapshot in snapshots:
            total = added(snapshot, total)
        deadlines = [one.next_deadline for one in snapshots if one.next_deadline is not None]
        return total._replace(
            paused=bool(snapshots) and all(one.paused for one in snapshots),
            holds_admissions=bool(snapshots) and all(one.holds_admissions for one in snapshots),
            next_deadline=min(deadlines, default=None),
        )

    @property
    def num_open(self) -> int:
        return sum(not one.complete for one in self._open)

    def observe(self, observe: Observe) -> None:
        self._observe = observe
        for name, client in self._clients.items():
            client.requests.observer = observe(name)

    def why_unhealthy(self) -> str | None:
        reasons = {name: client.why_unhealthy() for name, client in self._clients.items()}
        if not reasons:
            return "there is no engine"
        if not all(reasons.values()):
            return None
        if len(reasons) == 1:
            return next(iter(reasons.values()))
        return "; ".join(f"engine {name}: {reason}" for name, reason in reasons.items())

    # -- requests

    def pack(self, token_ids: Sequence[int]) -> NDArray[np.int32]:
        return pack(token_ids, self.files.limits.vocab_size)

    def check_num_answers(self, num_prompts: int, n: int) -> None:
        check_num_answers(num_prompts, n, self.capacity, self.config.max_num_seqs)

    def submit(
        self,
        requests: Sequence[NewRequest],
        *,
        stream: bool,
        source: FindSource | None = None,
        shown: Sequence[str] = (),
    ) -> Pending:
        """See `EngineClient.submit`. The prompts are shared out to the engines (`in_parts`); a part goes on to the next
        engine if its engine dies or is full before anything has come of it: see `RoutedRequest`."""
        for request in requests:
            if self._is_in_use(request.request_id):
                raise DuplicateRequestError(f"request id {request.request_id!r} is in use")
        shares = in_parts(len(requests), len(self._choice.engines))

        def submit_to(client: EngineClient, part: Sequence[NewRequest]) -> PendingRequest:
            return client.submit(part, stream=stream, source=source, shown=shown, confirm=len(shares) > 1)

        parts: list[Part] = []
        try:
            for share in shares:
                prompts = requests[share.start : share.stop]
                parts.append(Part(self._submit_part(prompts, partial(submit_to, part=prompts)), share.start))
        except BaseException:
            for part in parts:
                part.pending.close()
            raise
        pending = parts[0].pending if len(parts) == 1 else JoinedRequest(parts)
        self._open.add(pending)
        self.num_added += 1
        return pending

    def _is_in_use(self, request_id: str) -> bool:
        return any(request_id in client.requests for client in self._clients.values())

    def _submit_part(self, requests: Sequence[NewRequest], submit_to: SubmitTo) -> MovableRequest:
        """Give these prompts to one engine, the best for the first of them. submit_to: gives them to an engine."""
        prompt = self._prefixes(requests)
        tried: list[str] = []

        def submit_next() -> PendingRequest | None:
            full: QueueFullError | None = None
            while (name := self._best(prompt, tried)) is not None:
                tried.append(name)
                try:
                    pending = submit_to(self._clients[name])
                except QueueFullError as error:
                    full = error
                    continue
                self._choice.begin(name, prompt)
                return pending
            if full is not None:
                raise full
            return None

        def another() -> PendingRequest | None:
            pending = submit_next()
            if pending is not None:
                self.retried[tried[-2]] += 1
                logger.info("request %s goes from engine %s to engine %s", requests[0].request_id, *tried[-2:])
            return pending

        def begun(failed: bool) -> None:
            self._choice.end(tried[-1], prompt, failed=failed, now=self._clock())

        pending = submit_next()
        if pending is None:
            raise self._refusal()
        return RoutedRequest(pending, another, begun)

    def _prefixes(self, requests: Sequence[NewRequest]) -> Prefixes:
        """Prompts that go to one engine, as the choice sees them: known by the first. In the engines' own blocks, if
        they say what they hold."""
        first = requests[0]
        num_tokens = sum(len(request.prompt) for request in requests)
        if not self._tells_cache:
            return replace(Prefixes.of(first.prompt, first.cache_salt), num_tokens=num_tokens)
        size = self.config.block_size
        digests = block_digests.of_prompt(first.prompt, size, PrefixCache.root(first.cache_salt))
        return Prefixes(num_tokens, digests, size)

    def _best(self, prompt: Prefixes, tried: Sequence[str]) -> str | None:
        """The engine that gets this prompt; engines that are stuck only if there is no other. None: there is none."""
        self._hear()
        names = [
            name
            for name in self._choice.order(prompt, self._clock())
            if name not in tried and self._clients[name].why_refused() is None
        ]
        return min(names, key=lambda name: self._clients[name].why_unhealthy() is not None, default=None)

    def _hear(self) -> None:
        """Tell the choice what the engines have said since the last time."""
        for name in self._choice.engines:
            client = self._clients[name]
            num_restarts, num_pulses = self._heard[name]
            if client.num_restarts != num_restarts:
                self._choose_anew(name)
            for _ in range(min(2, client.num_pulses - num_pulses)):  # with the second, all before the first is counted
                self._choice.report(name, load_of(client.snapshot), client.last_heard)
            self._heard[name] = client.num_restarts, client.num_pulses

    def _choose_anew(self, name: str) -> None:
        """An engine process with an empty cache is there."""
        client = self._clients[name]
        config = client.config
        self._choice.add(name, num_cache_tokens=(config.num_blocks - 1) * config.block_size)
        self._heard[name] = client.num_restarts, client.num_pulses
        if client.tells_cache:
            client.follow_cache(partial(self._choice.learn, name), partial(self._choice.forget, name))

    # -- calls on all engines

    async def pause(self, mode: PauseMode = "abort", *, reset_prefix_cache: bool = True, timeout: float = 30.0) -> None:
        """See `EngineClient.pause`. Engines that are being restarted begin paused. If an engine refuses, its error is
        raised, and the other engines stay as they are: paused."""
        clients = self._taking()
        for client in self._clients.values():
            if client not in clients:
                client.begin_paused(True)
        await _all(client.pause(mode, reset_prefix_cache=reset_prefix_cache, timeout=timeout) for client in clients)

    async def resume(self) -> None:
        clients = self._taking()
        for client in self._clients.values():
            if client not in clients:
                client.begin_paused(False)
        await _all(client.resume() for client in clients)

    async def is_paused(self) -> bool:
        return all(await _all(client.is_paused() for client in self._taking()))

    async def reset_prefix_cache(self, timeout: float = 5.0) -> int:
        return sum(await _all(client.reset_prefix_cache(timeout) for client in self._taking()))

    async def audit(self, timeout: float = 30.0) -> AuditReport:
        """Of all engines: problems and owners are named with their engine, if there are several. An engine that is not
        there is a problem."""
        names = [name for name, client in self._clients.items() if client in self._taking()]
        absent = {name: client.why_refused() for name, client in self._clients.items() if name not in names}
        reports = await _all(self._clients[name].audit(timeout) for name in names)
        if len(self._clients) == 1:
            return reports[0]
        return AuditReport(
            problems=(
                *(f"engine {name}: {one}" for name, report in zip(names, reports) for one in report.problems),
                *(f"engine {name} is not there: {why}" for name, why in absent.items()),
            ),
            owners=tuple(
                replace(owner, name=f"{owner.name} (engine {name})")
                for name, report in zip(names, reports)
                for owner in report.owners
            ),
            **{field: sum(getattr(report, field) for report in reports) for field in _AUDIT_COUNTS},
        )

    def fail_open(self) -> None:
        for client in self._clients.values():
            client.fail_open()

    async def shutdown(self) -> None:
        self._shut_down = True
        tasks = [*self._tasks.values(), *self._pausing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(client.shutdown() for client in self._clients.values()))
        self.prompts.texts.close()

    # -- the inside

    def _taking(self) -> list[EngineClient]:
        """The engines that can be called. Raises EngineDeadError if there is none."""
        clients = [client for client in self._clients.values() if client.why_refused() is None]
        if not clients:
            raise self._refusal()
        return clients

    def _refusal(self) -> EngineDeadError:
        """Why no engine takes requests: if any of them comes back, the client is to try again."""
        if self._shut_down:
            return ShuttingDownError("the server is shutting down")
        refusals = [error for client in self._clients.values() if (error := client.why_refused()) is not None]
        if not refusals:
            return EngineRestartingError("there is no engine yet; try again later")
        return next((error for error in refusals if isinstance(error, EngineRestartingError)), refusals[0])


_AUDIT_COUNTS = (
    *("num_requests", "num_slots_used", "num_blocks_referenced", "num_blocks_free", "num_blocks_evictable"),
    "num_leases",
)


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """What the calls return, once all of them have ended. Raises the first error among them."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    values: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        values.append(result)
    return values
